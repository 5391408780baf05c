"""`hubctl list, search, show`: what a registry has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, ago, human_bytes, json_option

if TYPE_CHECKING:
    from hubctl.hub.client import AdapterSummary, Hub

_limit = click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)


@click.command(name="list")
@click.argument("search", required=False)
@click.option("--author", help="Only this user's.")
@click.option("--base", metavar="OWNER/NAME", help="Only adapters for this base model.")
@click.option("--all", "everything", is_flag=True, help="Base models too.")
@click.option("--removed", is_flag=True, help="What was removed, and can come back.")
@_limit
@remote_option
@json_option
@click.pass_obj
def list_(
    output: Output,
    search: str | None,
    author: str | None,
    base: str | None,
    everything: bool,
    removed: bool,
    limit: int,
    remote: str | None,
) -> None:
    """List the registry's adapters, the latest first.

    \b
    Examples:
      hubctl list
      hubctl list cats --base hubctl/emoji-64
      hubctl list --remote hf --author alice --json
      hubctl list --removed
    """
    from hubctl.hub.find import list_adapters
    from hubctl.hub.remotes import connect

    hub = connect(remote)
    if removed:
        _show_removed(output, hub)
        return
    found = list_adapters(hub, search, author, base, limit, everything=everything)
    _table(output, found, empty=f"no adapters on {hub} yet; next: hubctl push DIR")


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="WORD...")
@click.option("--base", metavar="OWNER/NAME", help="Only adapters for this base model.")
@_limit
@remote_option
@json_option
@click.pass_obj
def search(output: Output, words: tuple[str, ...], base: str | None, limit: int, remote: str | None) -> None:
    """Find adapters by words in their names, tags, bases and triggers; every word must be there.

    One of them must be part of the name, or be a whole tag.

    \b
    Examples:
      hubctl search line art
      hubctl search lora text-to-image --base hubctl/emoji-64
      hubctl search cats --remote hf -q
    """
    from hubctl.hub.find import search_adapters
    from hubctl.hub.remotes import connect

    hub = connect(remote)
    found = search_adapters(hub, words, base_model=base, limit=limit)
    _table(output, found, empty=f"nothing on {hub} says {' '.join(words)}; next: hubctl list")


@click.command()
@click.argument("ref", metavar="OWNER/NAME[@REV]")
@remote_option
@json_option
@click.pass_obj
def show(output: Output, ref: str, remote: str | None) -> None:
    """Show what a registry has under a name: card, files, commit, and the adapter's layout.

    \b
    Examples:
      hubctl show alice/line-art
      hubctl show alice/line-art@v2 --json
    """
    from hubctl.errors import AdapterError
    from hubctl.hub.describe import describe
    from hubctl.hub.headers import remote_layout
    from hubctl.hub.remotes import connect
    from hubctl.refs import AdapterRef

    hub = connect(remote)
    info = hub.repo_info(AdapterRef.parse(ref))
    try:
        layout = describe(remote_layout(hub, hub.pin(info)))
    except AdapterError:
        layout = None  # a base model, or a kind that hubctl does not run: the rest is shown all the same
    size = sum(file.size_bytes for file in info.files.values())
    if output.json or output.quiet:
        files = [
            {"path": name, "size_bytes": file.size_bytes, "sha256": file.sha256, "git_sha1": file.git_sha1}
            for name, file in sorted(info.files.items())
        ]
        output.result(
            {
                "repo": info.repo_id,
                "revision": info.revision,
                "commit": info.commit,
                "base_model": info.base_model,
                "task": info.task,
                "tags": info.tags,
                "private": info.private,
                "updated": info.updated,
                "size_bytes": size,
                "layout": layout,
                "files": files,
                "card": info.card,
            },
            quiet="commit",
        )
        return
    output.result(
        {
            "adapter" if layout else "repository": info.repo_id,
            "commit": info.commit,
            "base": info.base_model,
            "task": info.task,
            "licence": info.card.get("license"),
            "trigger": info.card.get("instance_prompt"),
            "updated": ago(info.updated) if info.updated else None,
            "private": "yes" if info.private else "no",
            "size": human_bytes(size),
            **({"layout": layout["summary"]} if layout else {}),
        }
    )
    output.text("")
    output.table(
        [{"path": name, "size": human_bytes(f.size_bytes), "hash": (f.sha256 or f.git_sha1 or "")[:12]}
         for name, f in sorted(info.files.items())],
        {"path": "file", "size": "size", "hash": "hash"},
    )  # fmt: skip
    if layout:
        output.note(f"  next: hubctl pull {ref}")


def _table(output: Output, found: list[AdapterSummary], *, empty: str) -> None:
    output.table(
        [
            {
                "id": one.repo_id,
                "base": one.base_model,
                "task": one.task,
                "trigger": one.trigger,
                "updated": one.updated,
                "size_bytes": one.size_bytes,
                "commit": one.commit,
                "private": one.private,
            }
            for one in found
        ],
        {"id": "id", "base": "base", "task": "task", "trigger": "trigger", "updated": "updated",
         "size_bytes": "size"},
        formats={"updated": ago, "size_bytes": human_bytes},
        empty=empty,
    )  # fmt: skip


def _show_removed(output: Output, hub: Hub) -> None:
    from hubctl.errors import InputError
    from hubctl.hub.undo import removed

    kept = removed(hub)
    if kept is None:
        raise InputError(f"{hub} keeps nothing of what was removed")
    output.table(
        [
            {"id": one.repo_id, "removed": one.removed, "removed_by": one.removed_by, "private": one.private}
            for one in kept
        ],
        {"id": "id", "removed": "removed", "removed_by": "by"},
        formats={"removed": ago},
        empty="nothing can be brought back",
    )
    if kept:
        output.note(f"  next: hubctl remove {kept[0].repo_id} --undo")
