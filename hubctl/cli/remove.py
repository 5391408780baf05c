"""`hubctl remove`: a repository away from its registry, and back."""

from __future__ import annotations

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, human_bytes, json_option


@click.command()
@click.argument("repo", metavar="OWNER/NAME")
@click.option("--undo", is_flag=True, help="Bring it back.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and delete nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@remote_option
@json_option
@click.pass_obj
def remove(output: Output, repo: str, undo: bool, dry_run: bool, yes: bool, remote: str | None) -> None:
    """Delete a repository, with its history, from the registry.

    A registry of hubctl keeps it for a month, where --undo finds it; on huggingface.co it is gone for good.

    \b
    Examples:
      hubctl remove alice/old-style
      hubctl remove alice/old-style --undo
      hubctl remove alice/old-style -y
    """
    from hubctl.hub.remotes import connect
    from hubctl.hub.undo import removed, restore
    from hubctl.refs import AdapterRef, check_repo_id

    check_repo_id(repo)
    hub = connect(remote)
    hub.need_token(f"delete {repo}")
    if undo:
        if not dry_run:
            restore(hub, repo)
        output.result(
            {"restored": repo, "dry_run": dry_run},
            text=f"{repo} {'would be' if dry_run else 'is'} back on {hub.name}",
            quiet="restored",
        )
        return
    kept = removed(hub) is not None
    way_back = f"hubctl remove {repo} --undo brings it back" if kept else "this cannot be undone"
    if dry_run:
        info = hub.repo_info(AdapterRef(repo))
        hub.check_write(repo)
        size = sum(file.size_bytes for file in info.files.values())
        output.result(
            {"removed": info.repo_id, "files": len(info.files), "size_bytes": size, "dry_run": True},
            text=f"{info.repo_id} would go: {len(info.files)} files, {human_bytes(size)}; {way_back}",
            quiet="removed",
        )
        return
    if not yes:
        output.confirm(
            f"Delete {repo} and its history from {hub} ({way_back})?", hint=f"hubctl remove {repo} --yes"
        )
    hub.delete(repo)
    output.result(
        {"removed": repo, "dry_run": False}, text=f"{repo} removed from {hub.name}", quiet="removed"
    )
    if kept:
        output.note(f"  {way_back}")
