"""`hubctl train ... --cluster ADDRESS`: the same command on a Ray cluster, its progress shown here."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from hubctl.cli.output import Output
from hubctl.errors import InputError

if TYPE_CHECKING:
    from train.config import TrainConfig
    from train.events import Event

FOLDERS = {"data": "data", "class_data": "class-data"}
"""Flags whose folder goes along, by its name there."""
_HERE = frozenset(
    {"cluster", "repo", "gpus", "send_token", "output", "resume", "restart", "overwrite", "json"}
)
"""Flags that are not for the command that runs there."""


def train_there(
    out: Output, config: TrainConfig, *, address: str, repo: str | None, gpus: float, send_token: bool
) -> Generator[Event, None, None]:
    """Send the data, train there, push from there; yields the training's events.

    Raises:
        InputError: what the cluster cannot see is asked for, or the training failed there.
        UnavailableError: there is no cluster.
    """
    from hubctl.hub.remotes import connect
    from train.cluster import run_job

    hub = connect()
    _refuse_what_stays_here(config)
    with tempfile.TemporaryDirectory(prefix="hubctl-job-") as scratch:
        folder = Path(scratch)
        for name, there in FOLDERS.items():
            path = getattr(config, name)
            if path is not None and path.is_dir():
                shutil.copytree(path, folder / there)
        if send_token:
            hub.need_token("push from the cluster as you")
            # A file and not a variable: those stand in the dashboard.
            (folder / "token").write_text(str(hub.token), encoding="utf-8")
        words = _command(click.get_current_context())
        command = _script(words, config.output.resolve().name, repo=repo, with_token=send_token)
        with closing(
            run_job(address, command, folder=folder, gpus=gpus, env={"HF_ENDPOINT": hub.endpoint})
        ) as lines:
            yield from _understood(out, lines)


def _understood(out: Output, lines: Iterator[str]) -> Iterator[Event]:
    """The events among the lines; all else is shown, and a fault said there is raised here."""
    from train.events import Saved, event_from

    documents, fault = _Documents(), None
    try:
        for line in lines:
            answer = documents.read(line)
            if isinstance(answer, str):
                out.note(f"  {answer}")
            elif answer and "error" in answer:
                fault = answer["error"]
            elif answer and "event" in answer:
                event = event_from(answer)
                if event is not None and not isinstance(event, Saved):  # what was saved lies there
                    yield event
            elif answer:
                _pushed(out, answer)
    except InputError as error:
        if fault is None:
            raise
        raise InputError(f"on the cluster: {fault['message']}", hint=fault["hint"]) from error


def _script(words: Sequence[str], name: str, *, repo: str | None, with_token: bool) -> str:
    """What the job runs, for a shell: who may push is asked before the training, and not after it."""
    python, output = "python -m hubctl", f'"$made"/{shlex.quote(name)}'
    to = f" --repo {shlex.quote(repo)}" if repo else ""
    lines = [
        "set -e",
        # The folder that a job works in is shared by all jobs with the same data.
        'made="$(mktemp -d)"',
        "trap 'rm -rf \"$made\"' EXIT",
        *(['export HUBCTL_TOKEN="$(cat token)"'] if with_token else []),
        f"{python} --json whoami > /dev/null",
        f"{python} {shlex.join(words)} --output {output} --json",
        f"{python} push {output}{to} --json",
    ]
    return "\n".join(lines)


def _refuse_what_stays_here(config: TrainConfig) -> None:
    from hubctl.base_models import embedded_path

    if Path(config.base).is_dir() and embedded_path(config.base) is None:
        raise InputError(
            f"the cluster cannot see the folder {config.base}",
            hint=f"hubctl push {shlex.quote(config.base)} --kind base, then name it as OWNER/NAME",
        )
    if config.track:
        raise InputError("what --track writes would stay on the cluster", hint="leave it out")


def _command(context: click.Context) -> list[str]:
    """The words of this command without what is only for here, folders under their names there."""
    words = context.command_path.split()[1:]
    for flag in context.command.params:
        name = str(flag.name)
        if name in _HERE or context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        word = flag.secondary_opts[0] if value is False else flag.opts[0]
        if isinstance(value, bool):
            words.append(word)
        elif isinstance(value, tuple):
            words += [part for item in value for part in (word, str(item))]
        else:
            words += [word, FOLDERS.get(name, str(value))]
    return words


class _Documents:
    """JSON objects in lines of output: an event takes one line, a command's answer several."""

    def __init__(self) -> None:
        self._begun: list[str] = []

    def read(self, line: str) -> dict[str, Any] | str | None:
        """The object that ends in this line; the line itself, if it belongs to none; None in between."""
        if not self._begun and not line.startswith("{"):
            return line
        self._begun.append(line)
        try:
            answer: dict[str, Any] = json.loads("\n".join(self._begun))
        except ValueError:
            if line.startswith(("{", " ", "}")):
                return None
            answer_text, self._begun = "\n".join(self._begun), []
            return answer_text
        self._begun = []
        return answer


def _pushed(out: Output, answer: Mapping[str, Any]) -> None:
    if out.json:
        out.event("pushed", answer)
        return
    out.result(answer, text=f"{answer['repo']}@{answer['commit'][:12]} pushed: {answer['url']}", quiet="repo")
