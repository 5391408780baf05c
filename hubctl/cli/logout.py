"""`hubctl logout`: forget a registry's token."""

from __future__ import annotations

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, json_option


@click.command()
@remote_option
@json_option
@click.pass_obj
def logout(output: Output, remote: str | None) -> None:
    """Forget the token that `hubctl login` stored for a registry. The registry still knows it.

    \b
    Examples:
      hubctl logout
      hubctl logout --remote hf
    """
    from hubctl.hub.remotes import connect, forget_token, select_remote
    from hubctl.settings import environment

    env = environment()
    chosen = select_remote(remote, env)
    stored = forget_token(env.home, chosen.url)
    output.result(
        {"remote": chosen.name, "url": chosen.url, "stored": stored},
        text=f"logged out of {chosen.name} ({chosen.url})"
        if stored
        else f"no token was stored for {chosen.name} ({chosen.url})",
        quiet="remote",
    )
    if connect(remote, env=env).token:
        output.warn("a token from the environment, or of `hf auth login`, is still used")
