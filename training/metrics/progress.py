"""How far a run is, for people."""

from collections.abc import Iterable
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from schemas.terminal import Console


class RunProgress:
    """The bar at the terminal: loss, tokens a second, time left."""

    def __init__(self, title: str, total: int, done: int, *, is_active: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[news]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not is_active,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, news="")

    def __enter__(self) -> "RunProgress":
        """Shows the bar."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the bar as it is."""
        self._progress.stop()

    def advance(self, news: str) -> None:
        """Counts one step done."""
        self._progress.update(self._task, advance=1, news=news)


def show_progress(title: str, *, is_active: bool) -> Any:
    """Returns a function that passes numbers on and shows a bar while it does."""

    def shown(numbers: Iterable[int], total: int) -> Iterable[int]:
        with RunProgress(title, total, 0, is_active=is_active) as progress:
            for number in numbers:
                yield number
                progress.advance("")

    return shown
