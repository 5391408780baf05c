"""`hubctl login, logout, whoami`: who you are on a registry."""

from __future__ import annotations

import sys

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, json_option


@click.command()
@click.option("--token-stdin", is_flag=True, help="Read the token from standard input.")
@remote_option
@json_option
@click.pass_obj
def login(output: Output, token_stdin: bool, remote: str | None) -> None:
    """Store a token for a registry, after the registry has said whose it is.

    For huggingface.co it is the login of `hf auth login` as well.

    \b
    Examples:
      hubctl login                          asks, and does not show what you type
      hubctl login --remote local --token-stdin < token.txt
    """
    from hubctl.hub.remotes import select_remote, sends_in_clear
    from hubctl.hub.tokens import save_token
    from hubctl.settings import environment

    env = environment()
    chosen = select_remote(remote, env)
    if sends_in_clear(chosen.url):
        output.warn(f"{chosen.url} is not encrypted: the token can be read on the way")
    token, user = ask_token(chosen.name, token_stdin, remote)
    save_token(env.home, chosen.url, token, user)
    output.result(
        {"user": user, "remote": chosen.name, "url": chosen.url},
        text=f"logged in to {chosen.name} ({chosen.url}) as {user}",
        quiet="user",
    )


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
    from hubctl.hub.remotes import connect, select_remote
    from hubctl.hub.tokens import forget_token
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
        output.warn("a token from the environment is still used")


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
    from hubctl.hub.remotes import connect
    from hubctl.hub.tokens import clean_token

    if sys.stdin.isatty() and not from_stdin:
        text = click.prompt(f"Token for {name}", hide_input=True, err=True)
    elif not (text := sys.stdin.read()).strip():
        raise InputError("there is no token on standard input", hint="hubctl login --token-stdin < token.txt")
    token = clean_token(text)
    hub = Hub(url, token, name) if url else connect(remote, token=token)
    return token, hub.whoami()
