"""The demo as a user runs it: one whole run with few steps, and one that is interrupted."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hubctl.adapter.gate import gate
from hubctl.settings import child_environment

WHOLE_S = 400
"""A whole `--fast` run takes about a minute on two free cores."""
START_S = 600


def start_demo(workdir: Path, *words: str) -> subprocess.Popen[str]:
    """`hubctl demo --fast`, in a session of its own, so that it sees only the signals we send it."""
    return subprocess.Popen(
        [sys.executable, "-m", "hubctl", "demo", "--fast", "--workdir", str(workdir), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
        start_new_session=True,
    )


def processes_of(workdir: Path) -> list[str]:
    """Command lines of live processes that the demo in `workdir` started: all of them inherit its home."""
    mark = f"HUBCTL_HOME={workdir}/home\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes() + b"\0":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is not ours
            continue
    return found


def wait_until(what: Callable[[], bool], running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + START_S
    while not what():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Workdir, stdout and stderr of one whole run."""
    workdir = tmp_path_factory.mktemp("demo") / "work"
    demo = start_demo(workdir, "--json")
    try:
        out, err = demo.communicate(timeout=WHOLE_S)
    except subprocess.TimeoutExpired:
        demo.terminate()
        out, err = demo.communicate()
    assert demo.returncode == 0, err
    return workdir, out, err


def test_it_prints_figures_seconds_images_and_adapters(ran: tuple[Path, str, str]) -> None:
    _, out, _ = ran
    told = json.loads(out)
    assert {"train", "push", "serve", "requests", "draw", "segment", "judge", "total"} <= set(told["seconds"])
    assert told["seconds"]["total"] >= told["seconds"]["train"] > 0
    assert [adapter["id"] for adapter in told["adapters"]] == ["demo/openmoji-line", "demo/animal-trimap"]
    for figures in (told["style_hit_rate"], told["miou"]):
        assert set(figures) == {"base", "adapter"}
        assert all(0 <= value <= 1 for value in figures.values())
    # Eight images and four segmentations at once, then four captions and four pictures, each twice.
    assert len(told["images"]) == 8 + 4 + 2 * 4 + 2 * 4
    assert all(Path(image).read_bytes().startswith(b"\x89PNG") for image in told["images"])


def test_base_and_adapter_differ_and_half_lies_beside_both(ran: tuple[Path, str, str]) -> None:
    together = ran[0] / "images" / "together"
    versions = {(together / f"red-apple-{name}.png").read_bytes() for name in ("base", "half", "adapter")}
    assert len(versions) == 3


def test_the_report_is_one_page_with_its_pictures_inside(ran: tuple[Path, str, str]) -> None:
    page = (ran[0] / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'<img src="([^"]{0,40})', page)
    # 4 captions and 8 requests, 4 pictures in 4 versions; OpenMoji's own drawings where they are at hand.
    assert len(sources) >= 4 * 2 + 8 + 4 * 4
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "<polyline" in page


def test_it_shows_no_token(ran: tuple[Path, str, str]) -> None:
    workdir, out, err = ran
    logs = "".join(path.read_text(errors="replace") for path in (workdir / "logs").iterdir())
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "hubctl_" not in out + err + logs + page  # how the registry's tokens begin


def test_nothing_is_left_running(ran: tuple[Path, str, str]) -> None:
    assert processes_of(ran[0]) == []


def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    demo = start_demo(workdir)
    training = workdir / "logs" / "train-style.out"
    wait_until(lambda: training.exists() and training.stat().st_size > 0, demo)
    assert len(processes_of(workdir)) >= 3  # the registry and both trainings
    demo.send_signal(signal.SIGINT)
    _, err = demo.communicate(timeout=START_S)
    assert demo.returncode == 130
    assert re.search(r"Bases into the registry: done in \d", err)
    assert re.search(r"Training both adapters: failed after \d", err)
    assert "Traceback" not in err
    assert processes_of(workdir) == []
    for made in (workdir / "adapters").iterdir():  # where the fast training was faster: no half-made adapter
        assert made.name == "openmoji-line"
        gate(made, None)


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    demo = start_demo(tmp_path)
    _, err = demo.communicate(timeout=START_S)
    assert demo.returncode == 7
    assert "holds something that is not a demo's" in err
    assert (tmp_path / "letter.txt").read_text() == "mine"
