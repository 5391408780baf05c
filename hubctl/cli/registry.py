"""`hubctl registry`: run the embedded Hub, and let people in."""

from __future__ import annotations

from pathlib import Path

import click

from hubctl.cli.options import SIZE, root_option
from hubctl.cli.output import Output, json_option
from hubctl.cli.registry_mirror import mirror
from hubctl.cli.registry_people import org, quota, token, user
from hubctl.cli.registry_upkeep import backup, fsck, gc


@click.group()
def registry() -> None:
    """Keep adapters on a Hub of your own."""


@registry.command()
@root_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one."
)
@click.option("--base-url", metavar="URL", help="What clients call it, when it is behind a proxy.")
@click.option(
    "--part-size",
    default="512MB",
    show_default=True,
    type=SIZE,
    help="Clients without Xet send larger files in parts of this size; less than a proxy's limit on bodies.",
)
@click.option(
    "--rate-limit",
    metavar="N",
    type=click.IntRange(1),
    help="Requests that a user, or an address without a token, has in 5 minutes. Default: no limit.",
)
@json_option
@click.pass_obj
def serve(
    output: Output,
    root: Path,
    host: str,
    port: int,
    base_url: str | None,
    part_size: int,
    rate_limit: int | None,
) -> None:
    """Serve a registry until Ctrl-C. Stock Hub clients need only its address and a token.

    Prints its address on stdout once it answers.

    \b
    Examples:
      hubctl registry serve --root ~/registry --port 8765
      hubctl remote add local http://127.0.0.1:8765 --use
      HF_ENDPOINT=http://127.0.0.1:8765 HF_TOKEN=... hf upload alice/my-lora my-lora
    """
    from hubctl.registry import run
    from hubctl.registry.limits import Limits

    def ready(url: str) -> None:
        output.result({"url": url, "root": root}, text=f"registry ready at {url}", quiet="url")
        output.note(f"let somebody in: hubctl registry token create --root {root} --user NAME")

    limits = Limits(part_bytes=part_size, requests=rate_limit)
    run.serve(root, host, port, ready, base_url=base_url, limits=limits)
    output.note("registry stopped")


for _command in (token, user, org, quota, fsck, gc, backup, mirror):
    registry.add_command(_command)
