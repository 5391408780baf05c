"""`hubctl registry mirror`: a repository of another Hub, in a registry of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from hubctl.cli.options import remote_option, root_option
from hubctl.cli.output import Output, human_bytes, json_option


@click.command()
@click.argument("ref", metavar="OWNER/NAME[@REV]")
@root_option
@remote_option
@click.option("--as", "target", metavar="OWNER/NAME", help="Another name for it here.")
@click.option("--exclude", metavar="GLOB", multiple=True, help="Leave out files, as '*.ckpt'; repeatable.")
@click.option("--private", is_flag=True, help="Show it to its owner alone, if it is new here.")
@json_option
@click.pass_obj
def mirror(
    output: Output,
    ref: str,
    root: Path,
    remote: str | None,
    target: str | None,
    exclude: tuple[str, ...],
    private: bool,
) -> None:
    """Copy a model from a remote into a registry, under the commit id that it has there.

    For clusters without the internet: adapters and bases that are pinned to a commit are found here under the
    same name. Every byte is checked; again, only what is new is downloaded. Works while the registry runs.

    \b
    Examples:
      hubctl registry mirror stabilityai/sd-turbo --remote hf --root ~/registry --exclude '*.ckpt'
      hubctl registry mirror alice/line-art@v2 --remote team --root ~/registry --as lab/line-art
    """
    import dataclasses

    from hubctl.hub.remotes import connect
    from hubctl.refs import AdapterRef, check_repo_id
    from hubctl.registry import mirror as copying
    from hubctl.registry.auth import opened
    from hubctl.registry.blobs import FileStore

    asked = AdapterRef.parse(ref)
    repo_id = check_repo_id(target) if target else asked.repo_id
    hub = connect(remote)
    with opened(root) as db, output.progress(None, f"mirroring {asked}", unit="bytes") as bar:
        done = copying.mirror(
            db,
            FileStore(root / "blobs"),
            hub,
            asked,
            repo_id=repo_id,
            exclude=exclude,
            private=private,
            progress=lambda bytes_done, total: bar.update(bytes_done, total=total),
        )
    output.result(
        dataclasses.asdict(done),
        text=f"{done.repo_id} is {asked} of {hub} at {done.commit[:12]}: {done.files} files,"
        f" {human_bytes(done.downloaded_bytes)} downloaded",
        quiet="commit",
    )
    if done.excluded:
        output.note(f"left out: {', '.join(done.excluded)}")
