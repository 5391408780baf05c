"""`hubctl remote add, use, list, remove`: registries by name."""

from __future__ import annotations

import click

from hubctl.cli.login import ask_token
from hubctl.cli.output import Output, json_option


@click.group()
def remote() -> None:
    """Name the registries you use; `hf` is huggingface.co.

    \b
    Examples:
      hubctl remote add local http://127.0.0.1:8765 --use
      hubctl remote use hf
      hubctl remote list
    """


@remote.command()
@click.argument("name")
@click.argument("url")
@click.option("--token-stdin", is_flag=True, help="Also log in, with the token from standard input.")
@click.option("--use", is_flag=True, help="Make it the current remote.")
@json_option
@click.pass_obj
def add(output: Output, name: str, url: str, token_stdin: bool, use: bool) -> None:
    """Remember the registry at URL as NAME.

    \b
    Examples:
      hubctl remote add local http://127.0.0.1:8765 --use
      hubctl remote add team https://hub.example.org --token-stdin < token.txt
    """
    from hubctl.hub.remotes import add_remote, normal_url, sends_in_clear
    from hubctl.hub.tokens import save_token
    from hubctl.settings import environment

    home = environment().home
    if sends_in_clear(normal_url(url)):
        output.warn(f"{url} is not encrypted: tokens sent to it can be read on the way")
    login = ask_token(name, True, None, normal_url(url)) if token_stdin else None
    added = add_remote(home, name, url, use=use)
    if login:
        save_token(home, added.url, *login)
    output.result(
        {"name": added.name, "url": added.url, "current": added.current, "user": login[1] if login else None},
        text=f"remote {added.name} is {added.url}"
        + (f", logged in as {login[1]}" if login else "")
        + (", now current" if added.current else ""),
        quiet="name",
    )
    if not (login or added.logged_in):
        output.note(f"  next: hubctl login --remote {added.name}")


@remote.command(name="use")
@click.argument("name")
@json_option
@click.pass_obj
def use_(output: Output, name: str) -> None:
    """Make NAME the remote that commands talk to.

    \b
    Examples:
      hubctl remote use hf
    """
    from hubctl.hub.remotes import use_remote
    from hubctl.settings import environment

    env = environment()
    used = use_remote(env.home, name)
    output.result(
        {"name": used.name, "url": used.url}, text=f"now using {used.name} ({used.url})", quiet="name"
    )
    if env.endpoint:
        output.warn("HF_ENDPOINT is set, and wins over the current remote")


@remote.command(name="list")
@json_option
@click.pass_obj
def list_(output: Output) -> None:
    """List the remotes; the current one is marked.

    \b
    Examples:
      hubctl remote list --json
    """
    from hubctl.hub.remotes import list_remotes
    from hubctl.settings import environment

    output.table(
        [
            {"name": r.name, "url": r.url, "current": r.current, "logged_in": r.logged_in}
            for r in list_remotes(environment().home)
        ],
        {"name": "name", "url": "url", "current": "current", "logged_in": "logged in"},
        formats={"current": lambda yes: "*" if yes else "", "logged_in": lambda yes: "yes" if yes else "no"},
    )


@remote.command()
@click.argument("name")
@json_option
@click.pass_obj
def remove(output: Output, name: str) -> None:
    """Forget a remote and its token; nothing on the registry changes.

    \b
    Examples:
      hubctl remote remove local
    """
    from hubctl.hub.remotes import remove_remote
    from hubctl.settings import environment

    removed = remove_remote(environment().home, name)
    output.result(
        {"removed": removed.name, "url": removed.url}, text=f"forgot {removed.name}", quiet="removed"
    )
