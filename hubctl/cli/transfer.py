"""`hubctl push, pull`: adapters on their way to a registry and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, human_bytes, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hubctl.adapter.findings import Finding
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
@click.option(
    "--also",
    type=click.Choice(["kohya"]),
    multiple=True,
    help="Add a copy in this form (A1111, ComfyUI), as kohya/NAME.safetensors.",
)
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
    also: tuple[Any, ...],
    dry_run: bool,
    remote: str | None,
) -> None:
    """Check an adapter folder, then upload it to the registry.

    The repository becomes exactly the folder, in one commit. Refused, with the reason: pickles, NaN, weights
    that do not fit the base, a card that names no base, a text that holds a token or private key.

    \b
    Only warned of:
      local-paths   a text, or the weights' metadata, names folders of this machine
      no-licence    the card states no licence: nobody else knows what they may do
      licence       the card's licence does not go with the base's

    \b
    Examples:
      hubctl push my-lora
      hubctl push my-lora --repo alice/line-art --private
      hubctl push my-lora --dry-run
      hubctl push my-lora --tag v1 --also kohya
      hubctl push my-base --kind base --repo alice/my-base
    """
    from hubctl.hub.push import plan_push
    from hubctl.hub.push import push as push_folder
    from hubctl.hub.remotes import connect

    hub = connect(remote)
    if dry_run:
        _show_plan(output, plan_push(hub, folder, repo, kind=kind, tag=tag, also=also))
        return
    with output.progress(None, f"Checking {folder}", unit="bytes") as bar:
        pushed = push_folder(
            hub, folder, repo, kind=kind, private=private, message=message, tag=tag, also=also, stage=bar.say,
            progress=lambda done, total: bar.update(done, total=total),
        )  # fmt: skip
    _warn(output, pushed.warnings)
    did = "is up to date already" if pushed.unchanged else "pushed"
    output.result(
        {
            "repo": pushed.repo_id,
            "commit": pushed.commit,
            "url": pushed.url,
            "unchanged": pushed.unchanged,
            "warnings": list(pushed.warnings),
        },
        text=f"{pushed.repo_id}@{pushed.commit[:12]} {did}: {pushed.url}",
        quiet="repo",
    )
    output.note(f"  next: {_use(pushed.repo_id, folder, kind)}")


def _warn(output: Output, warnings: Sequence[Finding]) -> None:
    for finding in warnings:
        output.warn(f"{finding.message} [{finding.code}]")


def _show_plan(output: Output, plan: Plan) -> None:
    _warn(output, plan.warnings)
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


def _use(repo_id: str, folder: Path, kind: str) -> str:
    """The command that uses what was pushed."""
    from hubctl.adapter.card import read_card_data

    if kind == "base":
        return f"hubctl serve --base {repo_id}"
    if read_card_data(folder).get("pipeline_tag") == "image-segmentation":
        return f"hubctl segment photo.png --adapter {repo_id}"
    return f'hubctl generate "a prompt" --adapter {repo_id}'
