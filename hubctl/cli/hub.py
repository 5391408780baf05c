"""`hubctl push, pull, list, show, remove, login, whoami`: adapters and where they live."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, ago, human_bytes, json_option

if TYPE_CHECKING:
    from hubctl.hub.preflight import Plan
    from hubctl.hub.pull import Pulled


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--repo", metavar="OWNER/NAME", help="Default: your name and the folder's.")
@click.option("--private", is_flag=True, help="Create the repository private.")
@click.option(
    "--kind",
    type=click.Choice(["adapter", "base"]),
    default="adapter",
    help="What the folder holds: an adapter, or a base model.",
)
@click.option("-m", "--message", help="Of the commit.")
@click.option("--tag", metavar="NAME", help="Also give the commit this name, for example v1.")
@click.option("--dry-run", is_flag=True, help="Check everything, print what would change, and send nothing.")
@remote_option
@json_option
@click.pass_obj
def push(
    output: Output,
    folder: Path,
    repo: str | None,
    private: bool,
    kind: Any,
    message: str | None,
    tag: str | None,
    dry_run: bool,
    remote: str | None,
) -> None:
    """Check an adapter folder, then upload it to the registry.

    The repository becomes exactly the folder, in one commit. Refused, with the reason: pickles, NaN, weights
    that do not fit the base, a card that names no base, a text that holds a token or private key.

    \b
    Examples:
      hubctl push my-lora
      hubctl push my-lora --repo alice/line-art --private
      hubctl push my-lora --dry-run
      hubctl push my-lora --tag v1
      hubctl push my-base --kind base --repo alice/my-base
    """
    from hubctl.hub.push import plan_push
    from hubctl.hub.push import push as push_folder
    from hubctl.hub.remotes import connect

    hub = connect(remote)
    if dry_run:
        _show_plan(output, plan_push(hub, folder, repo, kind=kind, tag=tag))
        return
    with output.progress(None, f"Checking {folder}") as bar:
        pushed = push_folder(
            hub, folder, repo, kind=kind, private=private, message=message, tag=tag, stage=bar.say
        )
    did = "is up to date already" if pushed.unchanged else "pushed"
    output.result(
        {"repo": pushed.repo_id, "commit": pushed.commit, "url": pushed.url, "unchanged": pushed.unchanged},
        text=f"{pushed.repo_id}@{pushed.commit[:12]} {did}: {pushed.url}",
        quiet="repo",
    )
    output.note(f"  next: {_use(pushed.repo_id, folder, kind)}")


def _show_plan(output: Output, plan: Plan) -> None:
    parent = (
        f"after {plan.parent[:12]}" if plan.parent else "the first commit; the repository is made if missing"
    )
    output.note(f"{plan.repo_id}: {'nothing to push' if plan.unchanged else parent}")
    output.table(
        [
            {"path": path, "change": change, "size_bytes": plan.sizes.get(path), "parent": plan.parent}
            for path, change in plan.changes.items()
        ],
        {"path": "file", "change": "change", "size_bytes": "size"},
        formats={"size_bytes": lambda size: "-" if size is None else human_bytes(size)},
    )
    output.note("  nothing was sent")


@click.command()
@click.argument("ref", metavar="[OWNER/NAME[@REV]]", required=False)
@click.option(
    "--output", "target", metavar="DIR", type=click.Path(path_type=Path), help="Also copy it to DIR."
)
@click.option("--overwrite", is_flag=True, help="Replace DIR if it is there.")
@click.option("--locked", is_flag=True, help="Only what hub.lock says; without a name, all of it.")
@remote_option
@json_option
@click.pass_obj
def pull(
    output: Output, ref: str | None, target: Path | None, overwrite: bool, locked: bool, remote: str | None
) -> None:
    """Download an adapter, checking every byte against the registry's hashes.

    Only safetensors and plain files are taken, never pickles. It goes to the cache; the path is printed.

    \b
    Examples:
      hubctl pull alice/line-art
      hubctl pull alice/line-art@3f2c9a1 --output line-art
      hubctl pull --locked
    """
    from hubctl.adapter.package import refuse_existing
    from hubctl.cli.lock import pull_adapter, pull_locked
    from hubctl.hub.pull import copy_out
    from hubctl.hub.remotes import connect
    from hubctl.refs import AdapterRef

    if ref is None and (target is not None or not locked):
        raise click.UsageError("Missing argument 'OWNER/NAME[@REV]'.")
    if target is not None:
        refuse_existing(target, overwrite=overwrite)
    hub = connect(remote)
    if ref is None:
        output.table(
            [_pulled_row(one, one.path) for one in pull_locked(output, hub, None)],
            {"repo": "adapter", "commit": "commit", "path": "path"},
            formats={"commit": lambda commit: commit[:12]},
        )
        return
    wanted = AdapterRef.parse(ref)
    pulled = pull_locked(output, hub, wanted)[0] if locked else pull_adapter(output, hub, wanted)
    if target is not None:
        copy_out(pulled, target, overwrite=overwrite)
    path = target or pulled.path
    output.result(
        _pulled_row(pulled, path),
        text=f"{pulled.pinned} {'was here already' if pulled.cached else 'verified'}: {path}",
        quiet="path",
    )


def _pulled_row(pulled: Pulled, path: Path) -> dict[str, Any]:
    return {
        "repo": pulled.pinned.repo_id,
        "commit": pulled.pinned.commit,
        "sha256": pulled.pinned.sha256,
        "path": path,
        "cached": pulled.cached,
    }


@click.command(name="list")
@click.argument("search", required=False)
@click.option("--author", help="Only this user's.")
@click.option("--base", metavar="OWNER/NAME", help="Only adapters for this base model.")
@click.option("--all", "everything", is_flag=True, help="Base models too.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@remote_option
@json_option
@click.pass_obj
def list_(
    output: Output,
    search: str | None,
    author: str | None,
    base: str | None,
    everything: bool,
    limit: int,
    remote: str | None,
) -> None:
    """List the registry's adapters, the latest first.

    \b
    Examples:
      hubctl list
      hubctl list cats --base hubctl/emoji-64
      hubctl list --remote hf --author alice --json
    """
    from hubctl.hub.remotes import connect

    hub = connect(remote)
    found = hub.list_adapters(search, author, base, limit, everything=everything)
    output.table(
        [
            {
                "id": one.repo_id,
                "base": one.base_model,
                "task": one.task,
                "updated": one.updated,
                "size_bytes": one.size_bytes,
                "commit": one.commit,
                "private": one.private,
            }
            for one in found
        ],
        {"id": "id", "base": "base", "task": "task", "updated": "updated", "size_bytes": "size"},
        formats={"updated": ago, "size_bytes": human_bytes},
        empty=f"no adapters on {hub} yet; next: hubctl push DIR",
    )


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


@click.command()
@click.argument("repo", metavar="OWNER/NAME")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@remote_option
@json_option
@click.pass_obj
def remove(output: Output, repo: str, yes: bool, remote: str | None) -> None:
    """Delete a repository, with its history, from the registry.

    \b
    Examples:
      hubctl remove alice/old-style
      hubctl remove alice/old-style -y
    """
    from hubctl.hub.remotes import connect
    from hubctl.refs import check_repo_id

    check_repo_id(repo)
    hub = connect(remote)
    hub.need_token(f"delete {repo}")
    if not yes:
        output.confirm(f"Delete {repo} and its history from {hub}?", hint=f"hubctl remove {repo} --yes")
    hub.delete(repo)
    output.result({"removed": repo}, text=f"{repo} removed from {hub.name}", quiet="removed")


@click.command()
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input.")
@remote_option
@json_option
@click.pass_obj
def login(output: Output, token_stdin: bool, remote: str | None) -> None:
    """Store a token for a registry, after the registry has said whose it is.

    \b
    Examples:
      hubctl login                          asks, and does not show what you type
      hubctl login --remote local --token-stdin < token.txt
    """
    from hubctl.hub.remotes import save_token, select_remote, sends_in_clear
    from hubctl.settings import environment

    env = environment()
    chosen = select_remote(remote, env)
    if sends_in_clear(chosen.url):
        output.warn(f"{chosen.url} is not encrypted: the token can be read on the way")
    token, user = ask_token(chosen.name, token_stdin, remote)
    save_token(env.home, chosen.url, token)
    output.result(
        {"user": user, "remote": chosen.name, "url": chosen.url},
        text=f"logged in to {chosen.name} ({chosen.url}) as {user}",
        quiet="user",
    )


@click.command()
@remote_option
@json_option
@click.pass_obj
def whoami(output: Output, remote: str | None) -> None:
    """Say who you are on a registry.

    \b
    Examples:
      hubctl whoami
      hubctl whoami --remote hf
    """
    from hubctl.hub.remotes import connect

    hub = connect(remote)
    user = hub.whoami()
    output.result(
        {"user": user, "remote": hub.name, "url": hub.endpoint}, text=f"{user} on {hub}", quiet="user"
    )


def ask_token(name: str, from_stdin: bool, remote: str | None, url: str | None = None) -> tuple[str, str]:
    """Get a token for the remote `name` (hidden prompt, or stdin) and the user it belongs to.

    Raises:
        AccessError: the registry refuses it.
        InputError: nothing came, or what came is no token.
    """
    from hubctl.errors import InputError
    from hubctl.hub.client import Hub
    from hubctl.hub.remotes import clean_token, connect

    if sys.stdin.isatty() and not from_stdin:
        text = click.prompt(f"Token for {name}", hide_input=True, err=True)
    elif not (text := sys.stdin.read()).strip():
        raise InputError("there is no token on standard input", hint="hubctl login --token-stdin < token.txt")
    token = clean_token(text)
    hub = Hub(url, token, name) if url else connect(remote, token=token)
    return token, hub.whoami()


def _use(repo_id: str, folder: Path, kind: str) -> str:
    """The command that uses what was pushed."""
    from hubctl.adapter.card import read_card_data

    if kind == "base":
        return f"hubctl serve --base {repo_id}"
    if read_card_data(folder).get("pipeline_tag") == "image-segmentation":
        return f"hubctl segment photo.png --adapter {repo_id}"
    return f'hubctl generate "a prompt" --adapter {repo_id}'
