"""`hubctl verify`: the cache against what was promised, offline."""

from __future__ import annotations

import click

from hubctl.cli.output import Output, json_option


@click.command()
@click.argument("ref", metavar="[OWNER/NAME[@COMMIT]]", required=False)
@json_option
@click.pass_obj
def verify(output: Output, ref: str | None) -> None:
    """Hash what is in the cache again, and compare it with what the registry promised. Asks nobody.

    Ends with code 6 when a file is missing, was changed, or is not of its commit.

    \b
    Examples:
      hubctl verify
      hubctl verify alice/line-art
      hubctl verify alice/line-art@3f2c9a1 --json
    """
    from hubctl.errors import IntegrityError
    from hubctl.hub.verify import verify as look
    from hubctl.refs import AdapterRef
    from hubctl.settings import environment

    with output.progress(None, "Hashing"):
        found = look(environment().cache, AdapterRef.parse(ref) if ref else None)
    output.table(
        [
            {
                "kind": one.kind,
                "id": one.repo_id,
                "commit": one.commit,
                "path": one.path,
                "faults": one.faults,
            }
            for one in found
        ],
        {"id": "id", "kind": "kind", "commit": "commit", "faults": "files"},
        formats={
            "commit": lambda commit: commit[:12],
            "faults": lambda faults: ", ".join(f"{k}: {v}" for k, v in faults.items()) or "as promised",
        },
    )
    if wrong := [one for one in found if one.faults]:
        raise IntegrityError(
            f"{len(wrong)} of {len(found)} commits in the cache are not what was promised",
            hint=f"rm -r {wrong[0].path}, then hubctl pull {wrong[0].repo_id}@{wrong[0].commit}",
        )
