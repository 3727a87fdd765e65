"""How far long work is, for people: bars at a terminal, elsewhere a line now and then.

Whatever takes long says at least every half minute that it goes on, in a log file too: counted work
says how much is done, how fast, and what time is left; other work how long it has gone on.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from schemas.command_line import format_seconds
from schemas.terminal import Console

SAY_EVERY_SECONDS = 20.0
"""Between two lines of the same work where the output is no terminal."""
PACE_SECONDS = 120.0
"""How far back the rate looks, and at least over two steps."""

T = TypeVar("T")

_console = Console(stderr=True)
_at_work: list["_Lines"] = []
"""What is being done, the work within work last: only that speaks."""


def is_first_process() -> bool:
    """Returns whether this is the one of the processes that speaks to the user."""
    return os.environ.get("RANK", "0") == "0"


def _is_terminal() -> bool:
    return sys.stderr.isatty() and not _console.is_dumb_terminal


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True, highlight=False, markup=False)


class _Lines:
    """Says a text every few seconds, from a thread of its own, for the length of a block."""

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._speak, name="progress", daemon=True)

    def __enter__(self) -> "_Lines":
        """Starts to speak; work around this one falls silent."""
        _at_work.append(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Falls silent."""
        self._is_over.set()
        self._thread.join()
        _at_work.remove(self)

    def _speak(self) -> None:
        while not self._is_over.wait(SAY_EVERY_SECONDS):
            if _at_work[-1:] == [self]:
                _say(self._text())


class Pace:
    """How much of counted work is done, and how fast it goes."""

    def __init__(self, title: str, total: int, done: int, unit: str, now: float) -> None:
        self._title, self._total, self._done, self._unit = title, total, done, unit
        self._news = ""
        self._began_at = now
        self._history: deque[tuple[float, int]] = deque([(now, done)])

    def advance(self, news: str, now: float) -> None:
        """Counts one more as done."""
        self._done += 1
        self._news = news
        if len(self._history) > 2 and now - self._history[-2][0] < PACE_SECONDS / 100:
            self._history.pop()
        self._history.append((now, self._done))
        while len(self._history) > 3 and now - self._history[1][0] > PACE_SECONDS:
            self._history.popleft()

    def words(self, now: float) -> str:
        """Returns done of total, the rate, the news and the time left."""
        parts = [f"{self._title}: {self._done:,} of {self._total:,} {_plural(self._unit)}"]
        seconds = self._seconds_each()
        if seconds is not None:
            parts.append(_rate(seconds, self._unit))
        if self._news:
            parts.append(self._news)
        if seconds is not None:
            parts.append(f"{format_seconds(seconds * (self._total - self._done))} left")
        waited = now - self._history[-1][0]
        if waited > SAY_EVERY_SECONDS:
            parts.append(f"at this {self._unit} for {format_seconds(waited)}")
        return ", ".join(parts)

    def last_words(self, now: float) -> str:
        """Returns where the work ended."""
        took = format_seconds(now - self._began_at)
        parts = [f"{self._title}: {self._done:,} of {self._total:,} {_plural(self._unit)}"]
        return ", ".join([*parts, *([self._news] if self._news else []), f"in {took}"])

    def _seconds_each(self) -> float | None:
        """Returns the time of one of the last while; None before the first is done."""
        (start, before), (end, done) = self._history[0], self._history[-1]
        return (end - start) / (done - before) if done > before else None


def _rate(seconds: float, unit: str) -> str:
    if seconds > 1.0:
        return f"{seconds:.1f} s a {unit}"
    return f"{1 / max(seconds, 1e-9):,.1f} {_plural(unit)}/s"


def _plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"


class RunProgress:
    """Shows how far counted work is, for the length of a block."""

    def __init__(
        self, title: str, total: int, done: int, *, is_active: bool, unit: str = "step"
    ) -> None:
        self._pace = Pace(title, total, done, unit, time.monotonic())
        self._bar: Progress | None = None
        self._lines: _Lines | None = None
        if is_active and _is_terminal():
            self._bar = _bar()
            self._task = self._bar.add_task(title, total=total, completed=done, news="")
        elif is_active:
            self._lines = _Lines(lambda: self._pace.words(time.monotonic()))

    def __enter__(self) -> "RunProgress":
        """Starts to show it."""
        shown = self._bar or self._lines
        if shown is not None:
            shown.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Shows where the work ended."""
        if self._bar is not None:
            self._bar.stop()
        if self._lines is not None:
            self._lines.__exit__()
            _say(self._pace.last_words(time.monotonic()))

    def advance(self, news: str = "") -> None:
        """Counts one step done."""
        self._pace.advance(news, time.monotonic())
        if self._bar is not None:
            self._bar.update(self._task, advance=1, news=news)


def _bar() -> Progress:
    """Returns the bar at the terminal: loss, tokens a second, time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[news]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_console,
    )


def shown(
    title: str, items: Iterable[T], total: int, *, unit: str, is_active: bool | None = None
) -> Iterator[T]:
    """Yields the items and shows how many of the total went by.

    Args:
        is_active: whether this process shows it; by default the first one does.
    """
    is_active = is_first_process() if is_active is None else is_active
    with RunProgress(title, total, 0, is_active=is_active, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()


def show_progress(title: str, *, is_active: bool) -> Any:
    """Returns a function that passes numbers on and shows how many of the total went by."""

    def passed_on(numbers: Iterable[int], total: int) -> Iterable[int]:
        return shown(title, numbers, total, is_active=is_active, unit="sample")

    return passed_on


def at_work(
    title: str, *, into: Path | None = None, num_bytes: int = 0
) -> AbstractContextManager[Any]:
    """Returns a context that says every few seconds that work without steps goes on.

    Args:
        into: file or folder that is written; how much of `num_bytes` it holds is said, too.
    """
    if not is_first_process():
        return nullcontext()
    began_at = time.monotonic()

    def text() -> str:
        written = ""
        if into and num_bytes:
            written = f" {_gigabytes(into):.1f} of {num_bytes / 1e9:.1f} GB written,"
        return f"{title}:{written} {format_seconds(time.monotonic() - began_at)} so far"

    return _console.status(title) if _is_terminal() else _Lines(text)


def _gigabytes(path: Path) -> float:
    """Returns the gigabytes of a file, or of a folder's files; 0 before it is there."""
    size = 0
    with suppress(OSError):  # a file that was just renamed
        for file in [path] if path.is_file() else path.rglob("*"):
            size += file.stat().st_size if file.is_file() else 0
    return size / 1e9
