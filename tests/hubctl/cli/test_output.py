"""The printer: who hears what, in which mode."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from hubctl.cli.output import Output, ago, duration, human_bytes
from hubctl.errors import InputError, OverloadedError

ROWS: list[dict[str, Any]] = [
    {"id": "a/b", "size": 1500, "more": [1]},
    {"id": "c/d", "size": None, "more": []},
]
COLUMNS = {"id": "id", "size": "size"}
Captured = pytest.CaptureFixture[str]


def test_table_for_a_pipe_is_aligned_and_whole(capsys: Captured) -> None:
    Output().table(ROWS, COLUMNS, formats={"size": human_bytes})
    assert capsys.readouterr().out == "ID   SIZE\na/b  1.5 kB\nc/d  -\n"


def test_table_as_json_has_every_key(capsys: Captured) -> None:
    Output(json=True).table(ROWS, COLUMNS, formats={"size": human_bytes})
    assert json.loads(capsys.readouterr().out) == ROWS


def test_quiet_table_is_the_first_column(capsys: Captured) -> None:
    Output(quiet=True).table(ROWS, COLUMNS)
    assert capsys.readouterr().out == "a/b\nc/d\n"


def test_an_empty_table_is_said_on_stderr_and_is_a_json_list(capsys: Captured) -> None:
    Output().table([], COLUMNS, empty="nothing yet")
    assert capsys.readouterr() == ("", "nothing yet\n")
    Output(json=True).table([], COLUMNS)
    assert json.loads(capsys.readouterr().out) == []


def test_result(capsys: Captured) -> None:
    data = {"repo": "a/b", "url": "http://x"}
    Output().result(data, text="a/b pushed")
    Output().result({"repo": "a/b", "base_model": None})
    Output(quiet=True).result(data, quiet="repo")
    assert capsys.readouterr().out == "a/b pushed\nrepo        a/b\nbase model  -\na/b\n"
    Output(json=True).result(data, text="a/b pushed")
    assert json.loads(capsys.readouterr().out) == data


def test_escape_sequences_of_strangers_do_not_reach_the_terminal(capsys: Captured) -> None:
    evil = "name\x1b[2J\x07\x9b31m"
    out = Output()
    out.result({"k": evil}, text=evil)
    out.table([{"id": evil}], {"id": "id"})
    out.note(evil)
    out.error(InputError(evil, hint=evil))
    Output(json=True).result({"k": evil})
    captured = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b"} & set(captured.out + captured.err)


def test_json_leaves_stderr_to_errors(capsys: Captured) -> None:
    out = Output(json=True)
    with out.progress(3, "Training"):
        out.note("n")
    assert capsys.readouterr() == ("", "")


def test_notes_are_silent_when_quiet_and_warnings_are_not(capsys: Captured) -> None:
    out = Output(quiet=True)
    out.note("n")
    out.warn("w")
    assert capsys.readouterr() == ("", "Warning: w\n")


def test_events_are_json_lines(capsys: Captured) -> None:
    Output().event("step", {"loss": 0.5})
    assert capsys.readouterr().out == ""
    Output(json=True).event("step", {"loss": 0.5})
    assert json.loads(capsys.readouterr().out) == {"event": "step", "loss": 0.5}


def test_an_overload_says_when_to_come_back(capsys: Captured) -> None:
    Output(json=True).error(OverloadedError("full", retry_after_s=3))
    assert json.loads(capsys.readouterr().err)["error"]["retry_after_s"] == 3


def test_progress_without_a_terminal_is_a_line_at_each_end(capsys: Captured) -> None:
    with Output().progress(10, "Training") as bar:
        bar.update(5, loss=0.25)
        bar.update(10, loss=0.125)
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert first == "Training ..."
    assert last.startswith("Training: done in ")
    assert last.endswith("(loss 0.125)")


def test_progress_that_fails_does_not_say_done(capsys: Captured) -> None:
    out = Output()
    with pytest.raises(ValueError, match="no"), out.progress(10, "Training"):
        raise ValueError("no")
    assert "done" not in capsys.readouterr().err


def test_quiet_progress_is_silent(capsys: Captured) -> None:
    with Output(quiet=True).progress(None, "Training") as bar:
        bar.update(1)
        bar.say("Still training")
    assert capsys.readouterr() == ("", "")


def test_confirm_without_a_terminal_names_the_flag() -> None:
    with pytest.raises(InputError) as caught:
        Output().confirm("Delete it?", hint="hubctl remove x --yes")
    assert caught.value.hint == "hubctl remove x --yes"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (7300, "2 h 1 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e12, "3.0 TB")]
)
def test_human_bytes(size: float, text: str) -> None:
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "just now"), (60, "1 minute ago"), (7200, "2 hours ago"), (200000, "2 days ago")],
)
def test_ago(seconds: int, text: str) -> None:
    now = datetime(2026, 1, 10, tzinfo=UTC)
    assert ago(now - timedelta(seconds=seconds), now=now) == text
