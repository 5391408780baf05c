"""`hubctl doctor` and `hubctl completion`: whether all is there, and the shell's part in it."""

from __future__ import annotations

import click

from hubctl.cli.options import remote_option
from hubctl.cli.output import Output, json_option

SHELLS = ("bash", "zsh", "fish")


@click.command()
@remote_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, remote: str | None) -> None:
    """Look at what hubctl needs: libraries, GPU, registry, cache; say how to get what is missing.

    Exit code 1 when something is wrong; what is merely missing may be left so.

    \b
    Examples:
      hubctl doctor
      hubctl doctor --json
    """
    from dataclasses import asdict

    from hubctl import doctor as look
    from hubctl.settings import environment

    env = environment()
    findings = [
        *look.versions(),
        look.gpu(),
        *look.variables(env),
        *look.registry(remote),
        look.cache(env.cache),
    ]
    ctx.ensure_object(Output).table(
        [asdict(finding) for finding in findings],
        {"what": "what", "state": "state", "says": "found", "hint": "next"},
        formats={"hint": lambda hint: hint or ""},
    )
    if any(finding.state == "wrong" for finding in findings):
        ctx.exit(1)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@json_option
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete hubctl's commands and options.

    \b
    Examples:
      eval "$(hubctl completion bash)"                 in ~/.bashrc
      hubctl completion fish > ~/.config/fish/completions/hubctl.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    source = made(ctx.find_root().command, {}, "hubctl", "_HUBCTL_COMPLETE").source()
    ctx.ensure_object(Output).result({"shell": shell, "source": source}, text=source, quiet="source")
