"""`hubctl registry fsck, gc, backup`: keeping a registry whole and small. They work while it runs."""

from __future__ import annotations

from pathlib import Path

import click

from hubctl.cli.options import SPAN, root_option
from hubctl.cli.output import Output, human_bytes, json_option
from hubctl.errors import IntegrityError


@click.command()
@root_option
@click.option("--quick", is_flag=True, help="Look at sizes only, not at every byte.")
@click.option(
    "--quarantine",
    is_flag=True,
    help="Move damaged files to ROOT/damaged, so that they can be uploaded again.",
)
@json_option
@click.pass_obj
def fsck(output: Output, root: Path, quick: bool, quarantine: bool) -> None:
    """Check every file and commit of a registry against its hash (exit code 6 if something is wrong).

    \b
    Examples:
      hubctl registry fsck --root ~/registry
      hubctl registry fsck --root ~/registry --quarantine
    """
    from hubctl.registry import fsck as checks
    from hubctl.registry.auth import opened
    from hubctl.registry.blobs import FileStore

    with opened(root, must_exist=True) as db:
        blobs, xorbs = FileStore(root / "blobs"), FileStore(root / "xorbs")
        found = list(checks.check(db, blobs, xorbs, contents=not quick))
        moved = [p.name for p in found if quarantine and checks.quarantine(root, db, blobs, xorbs, p)]
    rows = [
        {"kind": p.kind, "name": p.name, "fault": p.fault, "used_by": p.used_by, "moved": p.name in moved}
        for p in found
    ]
    columns = {"name": "name", "kind": "kind", "fault": "fault", "used_by": "used by"}
    output.table(rows, columns, empty="all is well")
    if found:
        raise IntegrityError(
            f"{len(found)} problems" + (f", {len(moved)} files moved to {root / 'damaged'}" if moved else ""),
            hint=None if quarantine else f"hubctl registry fsck --root {root} --quarantine",
        )


@click.command()
@root_option
@click.option(
    "--older-than",
    type=SPAN,
    default="1d",
    show_default=True,
    help="Leave what was uploaded or used in this time; uploads must not take longer.",
)
@click.option(
    "--keep-removed",
    type=SPAN,
    default="30d",
    show_default=True,
    help="How long a removed repository can be restored; 0s forgets all of them now.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@click.pass_obj
def gc(output: Output, root: Path, older_than: int, keep_removed: int, dry_run: bool) -> None:
    """Remove what no branch or tag leads to: commits, files, chunks that Xet clients sent; old removals.

    Clients send their chunks anew afterwards; an upload that runs meanwhile may have to be started again.

    \b
    Examples:
      hubctl registry gc --root ~/registry --dry-run
      hubctl registry gc --root ~/registry --older-than 7d
    """
    import dataclasses
    from datetime import UTC, datetime, timedelta

    from hubctl.registry.auth import opened
    from hubctl.registry.blobs import FileStore
    from hubctl.registry.database import stamp
    from hubctl.registry.gc import collect

    now = datetime.now(UTC)
    moment = now - timedelta(seconds=older_than)
    with opened(root, must_exist=True) as db:
        gone = collect(
            db,
            FileStore(root / "blobs"),
            FileStore(root / "xorbs"),
            before=stamp(moment),
            before_s=moment.timestamp(),
            removed_before=stamp(now - timedelta(seconds=keep_removed)),
            dry_run=dry_run,
        )
    what = f"{gone.repositories} repositories, {gone.commits} commits, {gone.blobs} files"
    rest = f"{gone.xorbs} xorbs and {gone.drafts} unfinished uploads: {human_bytes(gone.freed_bytes)}"
    output.result(
        {**dataclasses.asdict(gone), "dry_run": dry_run},
        text=f"{'would remove' if dry_run else 'removed'} {what}, {rest}",
        quiet="freed_bytes",
    )


@click.command()
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@root_option
@json_option
@click.pass_obj
def backup(output: Output, target: Path, root: Path) -> None:
    """Copy a registry as it is at this moment to the folder TARGET; again, only what is new is copied.

    The copy is a registry: to restore it, serve it, or copy it back while nothing serves the original.

    \b
    Examples:
      hubctl registry backup /mnt/backup/registry --root ~/registry
      hubctl registry serve --root /mnt/backup/registry
    """
    import dataclasses

    from hubctl.registry.auth import opened
    from hubctl.registry.backup import back_up

    with (
        opened(root, must_exist=True) as db,
        output.progress(None, f"backing up {root}", unit="bytes") as bar,
    ):
        copied = back_up(root, db, target, lambda done, total: bar.update(done, total=total))
    output.result(
        {**dataclasses.asdict(copied), "target": target},
        text=f"copied {copied.files} files ({human_bytes(copied.copied_bytes)}) to {target}; "
        f"{copied.kept_files} were there",
        quiet="target",
    )
