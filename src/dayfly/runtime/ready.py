"""READY: the word that an init is over, and what it took. Used by agent.py and rehearsal.py; must never run user code."""

from sys import path as sys_path
from time import monotonic_ns, thread_time_ns

from dayfly.runtime import packages
from dayfly.runtime.answers import Answers, frame
from dayfly.runtime.frames import READY
from dayfly.runtime.jsontext import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LAYER_ROOT = "/opt/python"
RECORD_US = 5_000  # an init that took less processor time is not worth anything (core/decide/snapshot.py: WORTH_US)


def clocks() -> tuple[int, int]:
    """Time, and this thread's processor time, in nanoseconds."""
    return monotonic_ns(), thread_time_ns()


def say_ready(
    answers: Answers, began: tuple[int, int], is_async: bool, origin: str, *, problems: list[str] | None = None, may_record: bool = False
) -> None:
    """`began`: the clocks when init began. `may_record`: what it imported of the layer may be told, if that took long enough."""
    now, cpu_now = clocks()
    time_us, cpu_us = (now - began[0]) // 1000, (cpu_now - began[1]) // 1000
    said: dict[str, Any] = {"init_us": time_us, "init_cpu_us": cpu_us, "async": is_async, "origin": origin}
    if problems:
        said["problems"] = problems
    if may_record and cpu_us >= RECORD_US and LAYER_ROOT in sys_path:
        said["imports"] = packages.imported(LAYER_ROOT)
    answers.write(frame(READY, 0, meta=dumps(said)))
