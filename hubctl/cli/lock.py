"""`hubctl lock`, and the locked half of `hubctl pull`: a project's adapters at known commits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.convert import show_difference
from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, json_option

if TYPE_CHECKING:
    from hubctl.hub.client import Hub
    from hubctl.hub.lock import LockFile
    from hubctl.hub.pull import Pulled
    from hubctl.refs import AdapterRef, PinnedRef


@click.command()
@click.argument("refs", metavar="[OWNER/NAME[@REV]]...", nargs=-1)
@click.option("--upgrade", is_flag=True, help="Move to the newest commits, and show what changed.")
@click.option("--remove", is_flag=True, help="Take the adapters named out of the file.")
@remote_option
@json_option
@click.pass_obj
def lock(output: Output, refs: tuple[str, ...], upgrade: bool, remove: bool, remote: str | None) -> None:
    """Write hub.lock: adapters at one commit each, with the sha256 of every file.

    Keep hub.lock beside your code. `hubctl pull --locked` then takes exactly these bytes, and asks nobody
    for what is in the cache. Without names, the file is listed, or all of it upgraded.

    \b
    Examples:
      hubctl lock alice/line-art bob/pets@v2
      hubctl lock                                 lists what is locked
      hubctl lock --upgrade                       all, each along its branch or tag
      hubctl lock alice/line-art --remove
      hubctl pull --locked
    """
    from hubctl.errors import NotFoundError
    from hubctl.hub.lock import LOCK, LockFile, locked_ref, read_lock, write_lock
    from hubctl.hub.remotes import connect
    from hubctl.refs import AdapterRef

    path = Path(LOCK)
    fresh = bool(refs) and not upgrade and not remove
    now = LockFile() if fresh and not path.exists() else read_lock(path)
    asked = [AdapterRef.parse(text) for text in refs]
    if remove:
        if not refs:
            raise click.UsageError("--remove needs the names of adapters.")
        gone = {locked_ref(now, ref, path).repo_id for ref in asked}
        write_lock(path, LockFile(adapters={k: v for k, v in now.adapters.items() if k not in gone}))
        output.result({"removed": sorted(gone)}, text=f"{', '.join(sorted(gone))} taken out of {path}")
        return
    if upgrade:
        for ref in asked:
            if ref.repo_id not in now.adapters:
                raise NotFoundError(f"{ref.repo_id} is not in {path}", hint=f"hubctl lock {ref}")
        asked = asked or [AdapterRef(name, entry.revision) for name, entry in now.adapters.items()]
        asked = [ref if ref.revision else AdapterRef(ref.repo_id, now.adapters[ref.repo_id].revision)
                 for ref in asked]  # fmt: skip
    if not asked:
        _list(output, now)
        return
    _move(output, path, now, asked, connect(remote), compare=upgrade)


def pull_locked(output: Output, hub: Hub, ref: AdapterRef | None) -> list[Pulled]:
    """Bring what hub.lock says of `ref`, or all of it, and check every file against it.

    Raises:
        NotFoundError: there is no lock file, or `ref` is not in it.
        IntegrityError: a file differs from the locked one.
    """
    from hubctl.hub.lock import LOCK, check_files, locked_ref, read_lock
    from hubctl.refs import AdapterRef

    path = Path(LOCK)
    locked = read_lock(path)
    pulled = []
    for wanted in [ref] if ref else [AdapterRef(repo_id) for repo_id in sorted(locked.adapters)]:
        pinned = locked_ref(locked, wanted, path)
        one = pull_adapter(output, hub, pinned)
        check_files(one.path, locked.adapters[pinned.repo_id], pinned.repo_id)
        pulled.append(one)
    return pulled


def _move(
    output: Output, path: Path, now: LockFile, asked: list[AdapterRef], hub: Hub, *, compare: bool
) -> None:
    """Lock `asked` at what they are today, and say what that changes."""
    from hubctl.hub.lock import LockFile, lock_pulled, locked_ref, write_lock
    from hubctl.refs import AdapterRef

    entries, rows = dict(now.adapters), []
    for ref in asked:
        pulled = pull_adapter(output, hub, ref)
        entry = entries[ref.repo_id] = lock_pulled(hub, pulled)
        before = now.adapters.get(ref.repo_id)
        row: dict[str, Any] = {
            "id": ref.repo_id,
            "revision": entry.revision,
            "from": before.commit if before else None,
            "commit": entry.commit,
        }
        if compare and before and before.commit != entry.commit:
            from hubctl.adapter.diff import diff

            old = pull_adapter(output, hub, locked_ref(now, AdapterRef(ref.repo_id), path))
            found = diff(old.path, pulled.path)
            row |= {"files": dict(found.files), "norm": found.norm, "change": found.change}
            row["cosine"] = found.cosine
            if not output.json and not output.quiet:
                output.text(f"{ref.repo_id}: {before.commit[:12]} -> {entry.commit[:12]}")
                show_difference(output, found)
        rows.append(row)
    write_lock(path, LockFile(adapters=entries))
    output.table(
        rows,
        {"id": "adapter", "revision": "revision", "from": "from", "commit": "locked at"},
        formats={"commit": _short, "from": _short},
    )
    output.note("  next: hubctl pull --locked")


def _list(output: Output, lock: LockFile) -> None:
    output.table(
        [
            {"id": repo_id, "revision": entry.revision, "commit": entry.commit, "base": entry.base,
             "base_commit": entry.base_commit, "rank": list(entry.rank), "files": dict(entry.files)}
            for repo_id, entry in sorted(lock.adapters.items())
        ],
        {"id": "adapter", "revision": "revision", "commit": "commit", "base": "base", "rank": "rank"},
        formats={"commit": _short, "rank": lambda ranks: ", ".join(map(str, ranks))},
        empty="nothing is locked; next: hubctl lock OWNER/NAME",
    )  # fmt: skip


def pull_adapter(output: Output, hub: Hub, ref: AdapterRef | PinnedRef) -> Pulled:
    """`hubctl.hub.pull.pull` with a progress bar."""
    from hubctl.hub.pull import pull

    with output.progress(None, f"Pulling {ref}", unit="bytes") as bar:
        return pull(hub, ref, progress=lambda done, total: bar.update(done, total=total))


def _short(commit: str | None) -> str:
    return commit[:12] if commit else "-"
