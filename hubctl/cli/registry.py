"""`hubctl registry`: run the embedded Hub, and let people in."""

from __future__ import annotations

from pathlib import Path

import click

from hubctl.cli.amounts import SIZE
from hubctl.cli.output import Output, json_option


@click.group()
def registry() -> None:
    """Keep adapters on a Hub of your own."""


@registry.command()
@click.option(
    "--root", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder that holds it."
)
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
@json_option
@click.pass_obj
def serve(output: Output, root: Path, host: str, port: int, base_url: str | None, part_size: int) -> None:
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

    run.serve(root, host, port, ready, base_url=base_url, limits=Limits(part_bytes=part_size))
    output.note("registry stopped")


@registry.group()
def token() -> None:
    """Who may write."""


@token.command("create")
@click.option(
    "--root", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the registry."
)
@click.option("--user", required=True, help="Whose token; the user is made if new.")
@json_option
@click.pass_obj
def create(output: Output, root: Path, user: str) -> None:
    """Make a token and print it; it cannot be shown again. Works while the registry runs.

    \b
    Examples:
      hubctl registry token create --root ~/registry --user alice
      hubctl registry token create --root ~/registry --user alice | hubctl login --token-stdin
    """
    from hubctl.registry.auth import create_token

    output.result({"user": user, "token": (made := create_token(root, user))}, text=made, quiet="token")
