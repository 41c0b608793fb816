"""What a deploy tells while it runs: one JSON object a line, the last one says how it ended (docs/api.md). Only data."""

import msgspec

from dayfly.core.model.errors import Refusal


class Stage(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="stage"):
    """A stage begins: unpack, build, prove, activate."""

    stage: str
    message: str


class Output(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="output"):
    """A line of the installer's output."""

    text: str


class Deployed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="deployed"):
    """The version serves (or served already: `unchanged`). Times of the proof in ms, of the stages in seconds. `walls` stand around its
    instances, `missing` could not be had, each as "name: why".

    `warnings` are sentences: what was asked for and works, but not as it was probably meant."""

    version: int
    unchanged: bool
    url: str
    routes: tuple[str, ...]
    init_ms: float | None
    start_ms: float | None
    walls: tuple[str, ...]
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="failed"):
    """Nothing changed. `error` is what every error answer holds, with the user's traceback where there is one."""

    error: dict[str, object]


def failed(refusal: Refusal) -> Failed:
    """The end of a deploy that was refused, in the words of every error answer."""
    error = refusal.body()["error"]
    assert isinstance(error, dict)
    return Failed(error=error)


Event = Stage | Output | Deployed | Failed
LAST = (Deployed, Failed)
