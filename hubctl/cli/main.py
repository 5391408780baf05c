"""The `hubctl` command: its groups, and the one place where a fault becomes a message and an exit code."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import click

import hubctl
from hubctl import settings
from hubctl.cli.bench import bench
from hubctl.cli.cache import cache
from hubctl.cli.convert import convert, diff, merge, resize
from hubctl.cli.data import data
from hubctl.cli.demo import demo
from hubctl.cli.doctor import completion, doctor
from hubctl.cli.evaluate import evaluate
from hubctl.cli.find import list_, search, show
from hubctl.cli.inspect import check, inspect
from hubctl.cli.lock import lock
from hubctl.cli.login import login, logout, whoami
from hubctl.cli.output import Output
from hubctl.cli.refs import branch, move, tag
from hubctl.cli.registry import registry
from hubctl.cli.remote import remote
from hubctl.cli.remove import remove
from hubctl.cli.reproduce import reproduce
from hubctl.cli.serve import generate, segment, serve
from hubctl.cli.sweep import sweep
from hubctl.cli.train import train
from hubctl.cli.transfer import pull, push
from hubctl.cli.verify import verify
from hubctl.errors import (
    AccessError,
    AdapterError,
    ConflictError,
    HubctlError,
    InputError,
    IntegrityError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)

EXIT_CODES: dict[type[BaseException], int] = {
    HubctlError: 1,
    InputError: 2,
    NotFoundError: 3,
    AccessError: 4,
    AdapterError: 5,
    IntegrityError: 6,
    ConflictError: 7,
    UnavailableError: 8,
    OverloadedError: 9,
}
"""Looked up along the class's own ancestry, so a subclass needs no line of its own."""

INTERRUPTED = 130

PACKAGES = {
    "data": "train",
    "train": "train",
    "eval": "train",
    "reproduce": "train",
    "serve": "serve",
    "bench": "serve",
}
"""Commands that import a top-level package with a name that a user's own script may bear as well."""

EXTRAS = {
    "data": "datasets",
    "train": "train",
    "eval": "train",
    "reproduce": "train",
    "serve": "serve",
    "registry": "registry",
    "demo": "all",
    "bench": "all",
    **dict.fromkeys(("diff", "lock", "merge", "resize"), "convert"),
}
"""What to install for a command whose libraries are missing."""


class _InOrder(click.Group):
    """Lists commands in the order they were added: the order of the work, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--json", is_flag=True, help="Print JSON on stdout (errors as JSON on stderr).")
@click.option("-q", "--quiet", is_flag=True, help="Print only the bare answer: an id, a path.")
@click.option("--no-color", is_flag=True, help="No colours (also: NO_COLOR=1).")
@click.version_option(hubctl.__version__, prog_name="hubctl")
@click.pass_context
def cli(ctx: click.Context, json: bool, quiet: bool, no_color: bool) -> None:
    """Train small LoRA adapters, keep them on a model hub, serve them by name over one base.

    \b
    Examples:
      hubctl demo                                  the whole path, on this machine
      hubctl train text-to-image --base emoji-64 --data photos/ --output my-lora
      hubctl push my-lora
      hubctl serve --base emoji-64
      hubctl generate "red apple" --adapter alice/my-lora -o apple.png
    """
    output = ctx.ensure_object(Output)
    output.json = output.json or json
    output.quiet = output.quiet or quiet
    output.color = output.color and not no_color
    if ctx.invoked_subcommand in PACKAGES:
        check_not_shadowed(PACKAGES[ctx.invoked_subcommand])


def main() -> NoReturn:
    """Run the command line; the entry point of `hubctl` and the only try/except around commands."""
    output = Output(color=not settings.no_color())
    try:
        code = cli.main(prog_name="hubctl", obj=output, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except HubctlError as error:
        output.error(error)
        sys.exit(exit_code(error))
    except click.ClickException as error:
        if output.json or "--json" in sys.argv:  # which a wrong command line may have kept from being read
            output.json = True
            output.error(InputError(error.format_message()))
        else:
            error.show()
        sys.exit(error.exit_code)
    except click.Abort:  # Ctrl-C, or end of input at a prompt
        sys.exit(INTERRUPTED)
    except (ModuleNotFoundError, OSError) as error:
        fault = _missing_library(error) if isinstance(error, ModuleNotFoundError) else _disk_fault(error)
        if fault is None:
            raise
        output.error(fault)
        sys.exit(exit_code(fault))


def exit_code(error: HubctlError) -> int:
    """The exit code of the nearest ancestor of the error's class that has one."""
    return next(EXIT_CODES[cls] for cls in type(error).__mro__ if cls in EXIT_CODES)


def check_not_shadowed(package: str) -> None:
    """Refuse to go on when `import train` (or `serve`) would find somebody else's module.

    Raises:
        InputError: it would; said before anything of that module runs.
    """
    ours = Path(hubctl.__file__).parent.parent / package / "__init__.py"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or not Path(spec.origin).samefile(ours):
        found = spec.origin or next(iter(spec.submodule_search_locations or ()), None) if spec else None
        if found is None:
            raise InputError(
                f"hubctl's own package '{package}' is not installed",
                hint="pip install --force-reinstall hubctl",
            )
        raise InputError(
            f"{found} hides hubctl's own package '{package}'",
            hint=f"rename it, or run hubctl without {Path(found).parent} in PYTHONPATH",
        )


def _missing_library(error: ModuleNotFoundError) -> InputError | None:
    name = (error.name or "").partition(".")[0]
    if not name or name in {"hubctl", "train", "serve"}:
        return None  # one of our own modules: a bug, which keeps its traceback
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    extra = EXTRAS.get(command, "all")
    return InputError(
        f"this command needs '{name}', which is not installed", hint=f"pip install 'hubctl[{extra}]'"
    )


def _disk_fault(error: OSError) -> HubctlError | None:
    """What a file, standard output or the folder we are in denied us; None for faults of another kind."""
    if error.errno is None:
        return None
    if isinstance(error.filename, str):
        return HubctlError(f"cannot use {error.filename}: {error.strerror}")
    if _says(error):
        # Python would try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return HubctlError(f"cannot write to standard output: {error.strerror}")
    try:
        os.getcwd()
    except FileNotFoundError:
        return HubctlError("the folder you are in is gone", hint="cd to one that is there")
    return None


def _says(error: OSError) -> bool:
    """Whether it is of an answer on its way to standard output; click itself prints help and version."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code is click.echo.__code__


for _command in (
    demo, data, train, evaluate, reproduce,
    push, pull, lock, verify, list_, search, show, tag, branch, move, remove,
    inspect, check, diff, convert, merge, resize, serve, generate, segment,
    login, logout, whoami, remote, cache, registry, bench, doctor, completion,
):  # fmt: skip
    cli.add_command(_command)
train.add_command(sweep)


if __name__ == "__main__":
    main()
