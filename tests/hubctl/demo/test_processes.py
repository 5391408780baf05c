"""Commands of the demo: what they say while they run, how they fail, and that they are surely gone."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from hubctl.demo.family import Entry, family, parse_stat, read_table, still_alive
from hubctl.demo.interrupts import Interrupts
from hubctl.demo.processes import Processes, processes, while_running
from hubctl.errors import HubctlError
from hubctl.settings import child_environment

# Starts a grandchild in a session of its own that ignores SIGTERM; prints the grandchild's id.
STUBBORN = """
import signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
print(subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True).pid, flush=True)
time.sleep(99)
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    (tmp_path / "talks.py").write_text("import sys\nprint('one')\nprint('two')\nprint(sys.stdin.read())\n")
    (tmp_path / "breaks.py").write_text("import sys\nsys.exit('the reason')\n")
    return tmp_path


def opened(work: Path) -> Processes:
    (work / "logs").mkdir(exist_ok=True)
    return Processes(work / "logs", environment=child_environment(), cwd=work, interrupts=Interrupts())


def test_a_command_that_ends_well_gives_its_lines(work: Path) -> None:
    with processes(
        work / "logs", environment=child_environment(), cwd=work, interrupts=Interrupts()
    ) as started:
        command = started.start("talk", module="talks")
        lines = [line for _ in while_running([command]) for line in command.new_lines()]
    assert lines == ["one", "two", ""]
    assert started.typed == ["python -m talks"]


def test_a_call_gives_stdout_and_writes_it_to_no_file(work: Path) -> None:
    assert opened(work).call("secret", module="talks", stdin="token") == "one\ntwo\ntoken\n"
    assert all("token" not in file.read_text() for file in (work / "logs").iterdir())


def test_a_failure_shows_the_end_of_the_log_and_where_it_is(work: Path) -> None:
    with pytest.raises(HubctlError, match=r"break it ended with exit status 1\n  \| the reason") as caught:
        opened(work).call("break it", module="breaks")
    assert caught.value.hint == f"less {work / 'logs' / 'break-it.log'}"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="grandchildren are found through /proc")
def test_stopping_ends_grandchildren_that_hide_and_refuse(work: Path) -> None:
    started = opened(work)
    command = started.start("stubborn", module="stubborn")
    while not (lines := command.new_lines()):
        time.sleep(0.05)
    grandchild = int(lines[0])
    os.kill(grandchild, 0)  # it lives
    started.close()
    assert command.process.returncode == -signal.SIGTERM
    assert grandchild not in read_table()


def test_a_family_is_a_session_and_all_descendants() -> None:
    rows = [(10, 1, 10), (11, 10, 10), (12, 11, 12), (13, 12, 12), (14, 1, 10), (20, 1, 20), (21, 20, 20)]
    table = {pid: Entry(pid, parent, session, 5) for pid, parent, session in rows}
    members = family(table, 10)
    assert {entry.pid for entry in members} == {10, 11, 12, 13, 14}
    later = {12: Entry(12, 1, 12, 5), 13: Entry(13, 1, 13, 99)}  # 13 is another process by now
    assert {entry.pid for entry in still_alive(later, members)} == {12}


def test_stat_lines_survive_strange_names() -> None:
    rest = " ".join(["S", "3", "4", "5", *["0"] * 15, "777", "0"])
    assert parse_stat(f"42 (a) b ( c) {rest}") == Entry(42, 3, 5, 777)
    assert parse_stat(f"42 (dead) {rest.replace('S', 'Z', 1)}") is None


def test_a_signal_waits_until_a_process_is_noted() -> None:
    reached = []

    def work() -> None:
        interrupts = Interrupts()
        with interrupts.caught():
            with interrupts.held():
                os.kill(os.getpid(), signal.SIGINT)
                reached.append("after the signal")
            reached.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["after the signal"]


def test_terminate_becomes_an_exit_status() -> None:
    with pytest.raises(SystemExit) as caught, Interrupts().caught():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
