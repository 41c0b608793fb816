"""How far a map is, on standard error: a bar on a terminal, a line every few seconds elsewhere. Rich is imported when there is a bar."""

import sys
import time
from typing import TYPE_CHECKING, Any, Self

from dayfly.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_SECONDS = 5.0


class Bar:
    """A context manager; `show` is told a map as the API has it."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()
        self._said_at = time.monotonic()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self.terminal and not self.quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(
                *columns, console=output.console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
            )  # results on standard output are the results, byte by byte
            self._progress.start()
            self._progress.add_task("sending", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def sent(self, count: int, total: int) -> None:
        """So many items are there; `total` is 0 when nobody knows."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description="sending", completed=count, total=total or None)
        else:
            self._line(f"… {count} items sent")

    def show(self, it: dict[str, Any]) -> None:
        """It is this far."""
        settled, failed = it["done"] + it["failed"], it["failed"]
        words = f"{it['state']}, {it['running']} running, {it['rate']:g}/s" + (f", {failed} failed" if failed else "")
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=words, completed=settled, total=max(it["total"], it["accepted"]))
        else:
            self._line(f"… {settled} of {max(it['total'], it['accepted'])}: {words}")

    def _line(self, text: str) -> None:
        if not self.quiet and not self.terminal and time.monotonic() - self._said_at >= LINE_SECONDS:
            self._said_at = time.monotonic()
            output.message(text)
