"""Options that several commands share: a remote, a registry's folder; sizes and times as people type them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hubctl.settings import SIZES, read_amount


class _Amount(click.ParamType[int]):
    """A number with a unit, read into an integer of the smallest unit."""

    def __init__(self, name: str, units: dict[str, int], example: str) -> None:
        self.name = name
        self._units = units
        self._example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read `value`; a number that was read already (a default) stays."""
        if isinstance(value, int):
            return value
        amount = read_amount(str(value), self._units)
        if amount is None:
            known = ", ".join(unit for unit in self._units if unit)
            self.fail(f"{value!r} is no {self.name}; write it like {self._example} ({known})", param, ctx)
        return amount


SIZE = _Amount("size", SIZES, "64MB")
"""Bytes."""
SPAN = _Amount("time span", {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}, "30d")
"""Seconds; a bare number is refused, as nobody could tell what it means."""

root_option = click.option(
    "--root",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the registry.",
)
"""Passed as `root: Path`."""

remote_option = click.option("--remote", metavar="NAME", help="Another registry than the current one.")
"""Passed as `remote: str | None`."""
