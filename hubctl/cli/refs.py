"""`hubctl tag, branch, move`: names for commits, and other names for repositories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, json_option

if TYPE_CHECKING:
    from hubctl.hub.client import RefKind

_dry_run = click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")


@click.command()
@click.argument("ref", metavar="OWNER/NAME[@REV]")
@click.argument("name", required=False)
@click.option("--delete", is_flag=True, help="Take the tag away; its commit stays.")
@_dry_run
@remote_option
@json_option
@click.pass_obj
def tag(output: Output, ref: str, name: str | None, delete: bool, dry_run: bool, remote: str | None) -> None:
    """List a repository's tags, or give a commit the tag NAME: a name that does not move.

    \b
    Examples:
      hubctl tag alice/line-art                 lists them
      hubctl tag alice/line-art v1              the commit of main
      hubctl tag alice/line-art@dev v2-beta
      hubctl tag alice/line-art v1 --delete
    """
    _name(output, "tag", ref, name, delete=delete, dry_run=dry_run, remote=remote)


@click.command()
@click.argument("ref", metavar="OWNER/NAME[@REV]")
@click.argument("name", required=False)
@click.option("--delete", is_flag=True, help="Take the branch away; commits that nothing else names go.")
@_dry_run
@remote_option
@json_option
@click.pass_obj
def branch(
    output: Output, ref: str, name: str | None, delete: bool, dry_run: bool, remote: str | None
) -> None:
    """List a repository's branches, or start the branch NAME at a commit.

    \b
    Examples:
      hubctl branch alice/line-art              lists them
      hubctl branch alice/line-art dev/softer
      hubctl branch alice/line-art@v1 fixes
      hubctl branch alice/line-art dev/softer --delete
    """
    _name(output, "branch", ref, name, delete=delete, dry_run=dry_run, remote=remote)


@click.command()
@click.argument("old", metavar="OWNER/NAME")
@click.argument("new", metavar="NEW-OWNER/NEW-NAME")
@_dry_run
@remote_option
@json_option
@click.pass_obj
def move(output: Output, old: str, new: str, dry_run: bool, remote: str | None) -> None:
    """Give a repository another name, or another owner; its commits keep their ids.

    \b
    Examples:
      hubctl move alice/line-art alice/line-drawings
      hubctl move alice/line-art studio/line-art
    """
    from hubctl.hub.remotes import connect
    from hubctl.refs import check_repo_id

    hub = connect(remote)
    hub.check_move(check_repo_id(old), check_repo_id(new))
    if not dry_run:
        hub.move(old, new)
    output.result(
        {"from": old, "to": new, "dry_run": dry_run},
        text=f"{old} {'would be' if dry_run else 'is'} {new} now",
        quiet="to",
    )


def _name(
    output: Output,
    kind: RefKind,
    text: str,
    name: str | None,
    *,
    delete: bool,
    dry_run: bool,
    remote: str | None,
) -> None:
    from hubctl.errors import InputError, NotFoundError
    from hubctl.hub.remotes import connect
    from hubctl.refs import AdapterRef

    ref, hub = AdapterRef.parse(text), connect(remote)
    if name is None:
        if delete:
            raise InputError(f"which {kind}?", hint=f"hubctl {kind} {ref.repo_id} NAME --delete")
        output.table(
            [
                {"name": name, "commit": commit}
                for name, commit in sorted(hub.refs(ref.repo_id, kind).items())
            ],
            {"name": kind, "commit": "commit"},
            formats={"commit": lambda commit: commit[:12]},
            empty=f"{ref.repo_id} has no {'tags' if kind == 'tag' else 'branches'}",
        )
        return
    AdapterRef.parse(f"{ref.repo_id}@{name}")  # a name that no command could use later is refused now
    if delete:
        if not dry_run:
            hub.delete_ref(ref.repo_id, kind, name)
        elif name not in hub.refs(ref.repo_id, kind):
            raise NotFoundError(f"{ref.repo_id} has no {kind} {name}", hint=f"hubctl {kind} {ref.repo_id}")
        output.result(
            {"deleted": name, "repo": ref.repo_id, "dry_run": dry_run},
            text=f"{kind} {name} {'would go' if dry_run else 'is gone'}",
            quiet="deleted",
        )
        return
    if dry_run:
        hub.check_ref_free(ref.repo_id, kind, name)
        commit = hub.repo_info(ref).commit
    else:
        commit = hub.add_ref(ref, kind, name)
    output.result(
        {"name": name, "repo": ref.repo_id, "commit": commit, "dry_run": dry_run},
        text=f"{ref.repo_id}@{name} {'would be' if dry_run else 'is'} {commit[:12]}",
        quiet="commit",
    )
