"""How far the demo is: one bar a stage on a terminal, lines elsewhere, and the seconds each stage took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from hubctl.cli.output import Output, duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 15.0
"""Without a terminal, a long stage says how it is doing this often."""


class Bar(Protocol):
    """One stage's progress."""

    def update(self, done: float | None = None, *, note: str | None = None) -> None:
        """Set how much is done, and what is to be said about it."""


class Board:
    """All stages of one run, in order."""

    def __init__(self, output: Output, titles: Mapping[str, str]) -> None:
        self._output, self._titles = output, titles
        self._rich: Progress | None = None
        self.seconds: dict[str, float] = {}
        """By the stages' keys."""
        self.started: dict[str, float] = {}
        """When each began, in seconds since the board was made."""
        self._zero = time.monotonic()

    def elapsed_s(self) -> float:
        """Since the board was made."""
        return time.monotonic() - self._zero

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the bars on the terminal, if there is one."""
        import sys

        if self._output.quiet or not sys.stderr.isatty():
            yield
            return
        from rich.console import Console

        self._rich = _bars(Console(stderr=True, no_color=not self._output.color))
        with self._rich:
            yield
        self._rich = None

    @contextmanager
    def stage(self, key: str, *, total: float | None = None) -> Iterator[Bar]:
        """Time what is done inside as `key`, and show it under the key's title."""
        title = self._titles[key]
        started = time.monotonic()
        self.started[key] = started - self._zero
        bar: _RichBar | _Lines
        if self._rich is not None:
            bar = _RichBar(self._rich, self._rich.add_task(title, total=total, note="", mark="[cyan]>"))
        else:
            bar = _Lines(self._output.note, title, total)
        try:
            yield bar
        except BaseException:
            bar.end("[red]x", f"{title}: failed after {duration(time.monotonic() - started)}")
            raise
        self.seconds[key] = time.monotonic() - started
        bar.end("[green]✓", f"{title}: done in {duration(self.seconds[key])}")


class _RichBar:
    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def update(self, done: float | None = None, *, note: str | None = None) -> None:
        self._bars.update(self._task, completed=done)
        if note is not None:
            self._bars.update(self._task, note=note)

    def end(self, mark: str, _line: str) -> None:
        task = self._bars.tasks[self._task]
        if "✓" in mark:
            total = task.total or 1
            self._bars.update(self._task, total=total, completed=total)
        self._bars.update(self._task, mark=mark)
        self._bars.stop_task(self._task)


class _Lines:
    def __init__(self, say: Callable[[str], None], title: str, total: float | None) -> None:
        self._say, self._title, self._total = say, title, total
        self._done: float | None = None
        self._note = ""
        self._started = self._said = time.monotonic()
        say(f"{title} ...")

    def update(self, done: float | None = None, *, note: str | None = None) -> None:
        self._done = self._done if done is None else done
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now - self._said >= LINE_EVERY_S:
            self._said = now
            line = progress_line(self._done, self._total, now - self._started)
            self._say("  " + (f"{line}, {self._note}" if self._note else line))

    def end(self, _mark: str, line: str) -> None:
        self._say(line + (f" ({self._note})" if self._note else ""))


def progress_line(done: float | None, total: float | None, elapsed_s: float) -> str:
    """`120 of 400, 35 s left`, or how long it has taken when nothing can be said about its end."""
    if not done or not total:
        return f"{duration(elapsed_s)} so far"
    left_s = elapsed_s * max(total - done, 0) / done
    return f"{done:.0f} of {total:.0f}, {duration(left_s)} left"


def _bars(console: object) -> Progress:
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    class Left(rich.TimeRemainingColumn):
        """The time left, while anything is known of it."""

        def render(self, task: rich.Task) -> Text:
            known = task.time_remaining is not None and not task.finished
            return Text(
                f"{duration(task.time_remaining or 0)} left" if known else "", style="progress.remaining"
            )

    assert isinstance(console, Console)
    return rich.Progress(
        "{task.fields[mark]}",
        "{task.description}",
        rich.BarColumn(bar_width=22),
        rich.TimeElapsedColumn(),
        Left(),
        rich.TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=console,
    )
