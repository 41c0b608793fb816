"""A deploy's progress on standard error: a spinner with the stage on a terminal, one line a stage elsewhere.

Rich is imported when the stage lasts long enough that a person would wonder, so a quick deploy never pays for it.
"""

import sys
import time
from typing import TYPE_CHECKING, Any, Self

from dayfly.cli import output

if TYPE_CHECKING:
    from rich.status import Status

SPINNER_AFTER_SECONDS = 0.3
STAGES = {"unpack": "unpacking", "build": "installing dependencies", "prove": "starting one instance", "activate": "moving live"}


class Progress:
    """A context manager around one deploy; `event` is told every event of its stream."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()
        self.begun = time.monotonic()
        self.status: Status | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None

    def event(self, event: dict[str, Any]) -> None:
        """Show one event. With --json only the installer's output is shown: it explains a failure."""
        if event.get("event") == "output":
            output.message(str(event.get("text", "")).rstrip("\n"), output.DIM)
        elif event.get("event") == "stage" and not self.quiet:
            stage = str(event.get("stage", ""))
            self._stage(f"{STAGES.get(stage, stage)} {event.get('message') or ''}".strip(), slow=stage == "build")

    def _stage(self, text: str, *, slow: bool) -> None:
        if not self.terminal:
            output.message(f"… {text}")
            return
        if self.status is None and (slow or time.monotonic() - self.begun > SPINNER_AFTER_SECONDS):
            from rich.status import Status

            self.status = Status("", console=output.console(stderr=True))
            self.status.start()
        if self.status is not None:
            from rich.text import Text

            self.status.update(Text(output.visible(text)))
