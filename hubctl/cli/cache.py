"""`hubctl cache`: what pulls and trainings have left on this disk."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from hubctl.cli.options import SIZE
from hubctl.cli.output import Output, ago, human_bytes, json_option
from hubctl.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubctl.hub.cache import Entry


@click.group()
def cache() -> None:
    """What was pulled, and what trainings encoded: list it, keep it, make room.

    \b
    Examples:
      hubctl cache list
      hubctl cache pin alice/line-art
      hubctl cache gc --quota 20GB --dry-run
    """


@cache.command(name="list")
@json_option
@click.pass_obj
def list_(output: Output) -> None:
    """List the commits in the cache, the latest used first, and what trainings encoded.

    \b
    Examples:
      hubctl cache list
      hubctl cache list --json
    """
    from hubctl.hub.cache import encoded, entries
    from hubctl.settings import environment

    folder = environment().cache
    found = [*entries(folder), *encoded(folder)]
    _table(output, found, empty=f"{folder} is empty; next: hubctl pull OWNER/NAME")


@cache.command()
@json_option
@click.pass_obj
def du(output: Output) -> None:
    """Say how much room the cache takes, by kind.

    \b
    Examples:
      hubctl cache du
      hubctl cache du -q
    """
    from hubctl.hub.cache import ENCODED, KINDS, encoded, entries
    from hubctl.settings import environment

    kept = encoded(environment().cache)
    found, kinds = [*entries(environment().cache), *kept], {**KINDS, ENCODED: "encoded"}
    sums = {
        where: sum(entry.size_bytes for entry in found if entry.kind == kind) for where, kind in kinds.items()
    }
    total, batches = sum(sums.values()), sum(entry.batches for entry in kept)
    names = {ENCODED: f"images and prompts in {batches} encoded batches"}
    shown = ", ".join(f"{human_bytes(size)} of {names.get(where, where)}" for where, size in sums.items())
    output.result(
        {"path": environment().cache, **{f"{where}_bytes": size for where, size in sums.items()},
         "encoded_batches": batches, "total_bytes": total},
        text=f"{human_bytes(total)} in {environment().cache}: {shown}",
        quiet="total_bytes",
    )  # fmt: skip


@cache.command()
@click.option("--quota", type=SIZE, help="What may stay of pulls, for example 20GB.")
@click.option("--encoded", "with_encoded", is_flag=True, help="Also all that trainings encoded.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def gc(output: Output, quota: int | None, with_encoded: bool, dry_run: bool, yes: bool) -> None:
    """Delete what has not been used for longest, until the cache is within the quota.

    Never what is pinned, what another process is downloading, or what was used in the last ten minutes.
    Images and prompts that trainings encoded have a limit of their own, 4 GB, and do not count.

    \b
    Examples:
      hubctl cache gc --quota 20GB --dry-run
      hubctl cache gc --quota 0 -y                everything that is not pinned
      hubctl cache gc --encoded                   what trainings encoded, and no pulls
    """
    from hubctl.hub.cache import encoded, entries, evict, forget_encoded, to_evict
    from hubctl.settings import environment

    if quota is None and not with_encoded:
        raise InputError("neither --quota nor --encoded is given", hint="hubctl cache gc --quota 20GB")
    folder, now = environment().cache, datetime.now(UTC).timestamp()
    kept = encoded(folder) if with_encoded else []
    chosen = to_evict(entries(folder), quota, now) if quota is not None else []
    gone = [*chosen, *kept]
    if not dry_run and gone:
        if not yes:
            size = human_bytes(sum(entry.size_bytes for entry in gone))
            what = [f"{len(chosen)} commits"] if chosen else []
            what += ["what trainings encoded"] if kept else []
            flags = [f"--quota {quota}"] if quota is not None else []
            flags += ["--encoded"] if with_encoded else []
            output.confirm(
                f"Delete {' and '.join(what)}, {size}, from {folder}?",
                hint=f"hubctl cache gc {' '.join(flags)} --yes",
            )
        if quota is not None:
            gone = [*evict(folder, quota, now), *kept]
        if kept:
            forget_encoded(folder)
    _table(output, gone, empty="nothing has to go")
    freed = human_bytes(sum(entry.size_bytes for entry in gone))
    output.note(f"  {freed} {'would be freed' if dry_run else 'freed'}")
    left = sum(entry.size_bytes for entry in entries(folder)) - (
        sum(entry.size_bytes for entry in chosen) if dry_run else 0
    )
    if quota is not None and left > quota:
        output.warn(f"{human_bytes(left)} stay: pinned, in use, or used in the last ten minutes")


@cache.command()
@click.argument("ref", metavar="OWNER/NAME[@COMMIT]")
@json_option
@click.pass_obj
def pin(output: Output, ref: str) -> None:
    """Keep a repository's cached commits, or one of them, whatever the quota.

    \b
    Examples:
      hubctl cache pin alice/line-art
      hubctl cache pin alice/line-art@3f2c9a1
    """
    _pin(output, ref, pinned=True)


@cache.command()
@click.argument("ref", metavar="OWNER/NAME[@COMMIT]")
@json_option
@click.pass_obj
def unpin(output: Output, ref: str) -> None:
    """Let pinned commits go again when room is needed.

    \b
    Examples:
      hubctl cache unpin alice/line-art
    """
    _pin(output, ref, pinned=False)


def _pin(output: Output, text: str, *, pinned: bool) -> None:
    from hubctl.hub.cache import entries, matching, set_pin
    from hubctl.refs import AdapterRef
    from hubctl.settings import environment

    ref, folder = AdapterRef.parse(text), environment().cache
    for entry in matching(entries(folder), ref, folder):
        set_pin(entry, pinned=pinned)
    _table(output, matching(entries(folder), ref, folder), empty="")


def _table(output: Output, found: Sequence[Entry], *, empty: str) -> None:
    output.table(
        [
            {"id": entry.repo_id, "kind": entry.kind, "commit": entry.commit, "size_bytes": entry.size_bytes,
             "used": datetime.fromtimestamp(entry.used_s, UTC), "whole": entry.whole, "pinned": entry.pinned,
             "path": entry.path, **({"batches": entry.batches} if entry.batches else {})}
            for entry in found
        ],
        {"id": "id", "kind": "kind", "commit": "commit", "size_bytes": "size", "used": "used",
         "whole": "whole", "pinned": "pinned"},
        formats={"commit": lambda commit: commit[:12], "size_bytes": human_bytes, "used": ago},
        empty=empty,
    )  # fmt: skip
