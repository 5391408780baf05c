"""The only printer: data on stdout, talk on stderr; for people, pipes (`--quiet`) or programs (`--json`).

Commands take it with `@click.pass_obj` and never call `print` or `click.echo`. Rich is imported only by what
needs it, a table or a progress bar, so that `hubctl --help` stays quick.
"""

from __future__ import annotations

import dataclasses
import functools
import json as jsonlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import click

from hubctl.errors import HubctlError, OverloadedError, UnavailableError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

F = TypeVar("F", bound=Callable[..., Any])

# Card fields and file names come from strangers; an escape sequence in them must not reach the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Progress(Protocol):
    """What `Output.progress` yields: a bar on a terminal, a line at each end elsewhere, quiet when quiet."""

    def update(self, completed: float | None = None, *, total: float | None = None, **fields: object) -> None:
        """Set how much is done, and of how much once that is known; `fields` are shown beside it."""

    def say(self, description: str) -> None:
        """Describe what is being done now, in place of the description so far."""


@dataclasses.dataclass(kw_only=True, slots=True)
class Output:
    """How this run speaks. The global flags and each command's own `--json` and `--quiet` set it."""

    json: bool = False
    """Exactly one JSON document on stdout (or one per line from `event`), nothing else there."""
    quiet: bool = False
    """Only the bare answer on stdout (an id, a path), no notes on stderr."""
    color: bool = True

    # -- data: stdout

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        columns: Mapping[str, str],
        *,
        formats: Mapping[str, Callable[[Any], str]] | None = None,
        empty: str = "nothing to show",
    ) -> None:
        """Print `rows` under `columns` (key: header); the first column alone when quiet.

        JSON gets the rows themselves, with every key they have; `formats` only touches what people see.
        """
        if self.json:
            self._data(_json(list(rows)))
            return
        if self.quiet:
            first = next(iter(columns))
            for row in rows:
                self._data(_clean(row[first]))
            return
        if not rows:
            self.note(empty)
            return
        formats = formats or {}
        cells = [[_cell(row.get(key), formats.get(key)) for key in columns] for row in rows]
        if sys.stdout.isatty():
            self._rich_table(list(columns.values()), cells)
            return
        widths = [max(map(len, column)) for column in zip(columns.values(), *cells, strict=True)]
        for line in [[header.upper() for header in columns.values()], *cells]:
            self._data("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip())

    def result(self, data: Mapping[str, Any], *, text: str | None = None, quiet: str | None = None) -> None:
        """Print one answer: `data` as JSON, `text` (or a line per key) for people, `data[quiet]` if quiet."""
        if self.json:
            self._data(_json(dict(data)))
        elif self.quiet:
            if quiet is not None:
                self._data(_clean(data[quiet]))
        elif text is not None:
            self._data(_clean(text))
        else:
            width = max((len(key) for key in data), default=0)
            for key, value in data.items():
                self._data(f"{key.replace('_', ' ').ljust(width)}  {_cell(value, None)}")

    def text(self, text: str) -> None:
        """Print a line of the answer for people; JSON never holds it."""
        if not self.json:
            self._data(_clean(text))

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Print one JSON line of a running command (`{"event": kind, ...}`); only with `--json`."""
        if self.json:
            self._data(jsonlib.dumps({"event": kind, **data}, default=_plain))

    # -- talk: stderr

    def note(self, text: str) -> None:
        """Tell people something on stderr; silent with `--quiet`, and with `--json` unless people watch."""
        if not self.quiet and (not self.json or sys.stderr.isatty()):
            click.echo(_clean(text), err=True)

    def warn(self, text: str) -> None:
        """Warn on stderr, also with `--quiet`."""
        click.echo(self._style("Warning: ", fg="yellow") + _clean(text), err=True)

    def error(self, error: HubctlError) -> None:
        """Explain a fault: message and next step on stderr; with `--json` as one JSON document there."""
        if self.json:
            fault: dict[str, Any] = {
                "type": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
            }
            if isinstance(error, OverloadedError | UnavailableError) and error.retry_after_s is not None:
                fault["retry_after_s"] = error.retry_after_s
            click.echo(jsonlib.dumps({"error": fault}), err=True)
            return
        click.echo(self._style("Error: ", fg="red", bold=True) + _clean(error.message), err=True)
        if error.hint:
            click.echo(self._style("  next: ", dim=True) + _clean(error.hint), err=True)

    def confirm(self, question: str, *, hint: str) -> None:
        """Ask before what cannot be undone; without a terminal, refuse with `hint` (the flag to give).

        Raises:
            InputError: there is nobody to ask, or the answer was no.
        """
        from hubctl.errors import InputError

        if self.json or self.quiet or not sys.stdin.isatty():
            raise InputError(f"{question} needs a yes", hint=hint)
        if not click.confirm(_clean(question), err=True):
            raise InputError("not done: you said no")

    @contextmanager
    def progress(
        self, total: float | None, description: str, *, unit: Literal["steps", "bytes"] = "steps"
    ) -> Iterator[Progress]:
        """Show how far something is, with the time left, on stderr.

        On a terminal a bar; elsewhere one line at the start and one at the end; nothing with `--quiet`.
        `total=None` when it is not known yet (say it later with `update(..., total=...)`).
        """
        if self.quiet:
            yield _Silent()
            return
        if sys.stderr.isatty():
            with _rich_progress(total, description, unit, color=self.color) as bar:
                yield bar
            return
        lines = _Lines(self.note, description)
        started = time.monotonic()
        yield lines
        shown = ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in lines.fields.items())
        self.note(
            f"{lines.description}: done in {duration(time.monotonic() - started)}{shown and f' ({shown})'}"
        )

    # -- inside

    def _data(self, text: str) -> None:
        click.echo(text)

    def _style(self, text: str, **style: Any) -> str:
        return click.style(text, **style) if self.color and sys.stderr.isatty() else text

    def _rich_table(self, headers: list[str], cells: list[list[str]]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, header in enumerate(headers):
            # The id is what people copy: it wraps rather than being cut with an ellipsis.
            table.add_column(header, overflow="fold" if index == 0 else "ellipsis")
        for row in cells:
            table.add_row(*map(Text, row))
        Console(no_color=not self.color, highlight=False).print(table)


class _Silent:
    def update(self, completed: float | None = None, *, total: float | None = None, **fields: object) -> None:
        """Say nothing."""

    def say(self, description: str) -> None:
        """Say nothing."""


class _Lines:
    def __init__(self, note: Callable[[str], None], description: str) -> None:
        self.fields: dict[str, object] = {}
        self.description = description
        self._note = note
        note(f"{description} ...")

    def say(self, description: str) -> None:
        """Begin another line."""
        self.description = description
        self._note(f"{description} ...")

    def update(self, completed: float | None = None, *, total: float | None = None, **fields: object) -> None:
        """Remember the latest fields for the closing line."""
        self.fields.update(fields)


class _Bar:
    def __init__(self, bar: RichProgress, task: TaskID) -> None:
        self._bar, self._task = bar, task
        self._fields: dict[str, object] = {}

    def say(self, description: str) -> None:
        """Change the text before the bar."""
        from rich.markup import escape

        self._bar.update(self._task, description=escape(_clean(description)))

    def update(self, completed: float | None = None, *, total: float | None = None, **fields: object) -> None:
        """Move the bar."""
        self._fields.update(fields)
        shown = "  ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in self._fields.items())
        self._bar.update(self._task, completed=completed, total=total, shown=_clean(shown))


@contextmanager
def _rich_progress(total: float | None, description: str, unit: str, *, color: bool) -> Iterator[_Bar]:
    from rich import progress as rich
    from rich.console import Console
    from rich.markup import escape
    from rich.text import Text

    counted: rich.ProgressColumn = rich.DownloadColumn() if unit == "bytes" else rich.MofNCompleteColumn()

    class OnceKnown(rich.ProgressColumn):
        """How much of how much; nothing as long as nobody knows how much there will be."""

        def render(self, task: rich.Task) -> RenderableType:
            return counted.render(task) if task.total is not None else Text()

    amount = OnceKnown()
    columns: tuple[rich.ProgressColumn | str, ...] = (
        "{task.description}",
        rich.BarColumn(bar_width=24),
        amount,
        rich.TextColumn("{task.fields[shown]}", markup=False),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True, no_color=not color)) as bar:
        yield _Bar(bar, bar.add_task(escape(_clean(description)), total=total, shown=""))


def json_option(command: F) -> F:
    """Give a command its own `--json` and `--quiet`, so they may stand after its name as well as before."""

    def switch(name: str, ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.ensure_object(Output), name, True)

    json_flag = click.option(
        "--json", is_flag=True, expose_value=False, is_eager=True,
        callback=functools.partial(switch, "json"), help="Print JSON on stdout.",
    )  # fmt: skip
    quiet_flag = click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, is_eager=True,
        callback=functools.partial(switch, "quiet"), help="Print only the bare answer.",
    )  # fmt: skip
    return json_flag(quiet_flag(command))


def human_bytes(size: float) -> str:
    """`1536` -> `1.5 kB` (powers of 1000, as the Hub shows sizes)."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def duration(seconds: float) -> str:
    """`75.2` -> `1 min 15 s`; below ten seconds with one decimal."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def ago(moment: datetime, *, now: datetime | None = None) -> str:
    """How long ago `moment` was, as people say it: `3 minutes ago`, `2 days ago`."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    for size, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"


def _clean(value: object) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))


def _cell(value: object, form: Callable[[Any], str] | None) -> str:
    if value is None:
        return "-"
    if form is None and isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return _clean(form(value) if form else value).replace("\n", " ")


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _json(data: object) -> str:
    # ASCII only: whatever the locale, and no control character of a stranger's survives unescaped.
    return jsonlib.dumps(data, indent=2, default=_plain)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (Path, set, frozenset)):
        return str(value) if isinstance(value, Path) else sorted(value)
    return str(value)
