"""Routes of schedules: list, put, look at, remove, pause, resume, run now, next times. Parse, one verb of control, print."""

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import Request, Router, delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from dayfly.api.auth import NAME_OPT, NamespaceQuery, NamespacesQuery, control_of, needs, needs_somewhere, readable, target_of
from dayfly.api.shapes import Answer, Removed
from dayfly.control.schedules import NEXT_MAX
from dayfly.core.manifest.schedule import checked_schedule
from dayfly.core.model.errors import Refusal
from dayfly.core.model.names import checked_name
from dayfly.core.model.schedule import Kept, Missed, Overlap, Schedule

AnyRequest = Request[Any, Any, Any]
CountQuery = Annotated[int, QueryParameter(name="count", required=False, ge=1, le=NEXT_MAX, description="How many.")]
FunctionQuery = Annotated[str, QueryParameter(name="function", required=False, description="Only this function's.")]


class ScheduleOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A schedule to put: a function of the same namespace, one of `cron`, `rate`, `at`, and what else `[[schedule]]` may hold."""

    function: str
    cron: str = ""
    rate: str = ""
    at: str = ""
    timezone: str = "UTC"
    jitter_seconds: float = 0.0
    overlap: Overlap = "skip"
    missed: Missed = "last"
    payload: Any = msgspec.UNSET
    enabled: bool = True


class ScheduleCounts(Answer):
    """What became of the due times so far. `missed` are those that nothing made up for, as far as they were counted."""

    fired: int
    skipped: int
    missed: int


class ScheduleAnswer(Answer):
    """A schedule. `declared`: it stands in its function's dayfly.toml. It fires while `enabled` and not `paused`, `offset_seconds` (its own
    part of the jitter) after each due time. `next_at` is null when it will not. No `payload`: the function gets the event."""

    namespace: str
    name: str
    function: str
    expression: str
    cron: str
    rate: str
    at: str
    timezone: str
    jitter_seconds: float
    offset_seconds: float
    overlap: str
    missed: str
    enabled: bool
    declared: bool
    paused: bool
    next_at: float | None
    last_due: float | None
    last_call: str
    counts: ScheduleCounts
    created_at: float
    updated_at: float
    payload: Any = msgspec.UNSET


class ScheduleList(Answer):
    schedules: list[ScheduleAnswer]


class ScheduleTimes(Answer):
    """When a schedule fires next, as epoch seconds."""

    times: list[float]


class ScheduleRun(Answer):
    """The call that was made."""

    call_id: str


@get("/api/v1/schedules", guards=[needs("read")])
async def list_schedules(request: AnyRequest, namespace: NamespacesQuery = "", function: FunctionQuery = "") -> ScheduleList:
    """List schedules."""
    found = await control_of(request).schedules.listed(await readable(request), checked_name(function) if function else "")
    return ScheduleList(schedules=[_answer(kept) for kept in found])


@get("/api/v1/schedules/{name:str}", guards=[needs("read")], opt={NAME_OPT: True})
async def show_schedule(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> ScheduleAnswer:
    """Show a schedule."""
    target = target_of(request, named=True)
    return _answer(await control_of(request).schedules.get(target.namespace, target.name))


@put("/api/v1/schedules/{name:str}", guards=[needs("deploy")], opt={NAME_OPT: True})
async def put_schedule(
    request: AnyRequest, name: FromPath[str], data: JSONBody[ScheduleOrder], namespace: NamespaceQuery = ""
) -> ScheduleAnswer:
    """Make or replace a schedule."""
    target = target_of(request, named=True)
    table = msgspec.structs.asdict(data) | {"name": target.name}
    function = checked_name(table.pop("function"))
    return _answer(await control_of(request).schedules.put(target.namespace, function, _checked(table)))


@delete("/api/v1/schedules/{name:str}", guards=[needs("deploy")], opt={NAME_OPT: True}, status_code=200)
async def remove_schedule(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> Removed:
    """Remove a schedule."""
    target = target_of(request, named=True)
    await control_of(request).schedules.remove(target.namespace, target.name)
    return Removed(removed=target.name)


@post("/api/v1/schedules/{name:str}/pause", guards=[needs("deploy")], opt={NAME_OPT: True}, status_code=200)
async def pause_schedule(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> ScheduleAnswer:
    """Pause a schedule."""
    target = target_of(request, named=True)
    return _answer(await control_of(request).schedules.pause(target.namespace, target.name, True))


@post("/api/v1/schedules/{name:str}/resume", guards=[needs("deploy")], opt={NAME_OPT: True}, status_code=200)
async def resume_schedule(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> ScheduleAnswer:
    """Let a schedule go on."""
    target = target_of(request, named=True)
    return _answer(await control_of(request).schedules.pause(target.namespace, target.name, False))


@post("/api/v1/schedules/{name:str}/run", guards=[needs("invoke")], opt={NAME_OPT: True}, status_code=202)
async def run_schedule(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "") -> ScheduleRun:
    """Call a schedule's function now."""
    target = target_of(request, named=True)
    return ScheduleRun(call_id=await control_of(request).schedules.run_now(target.namespace, target.name))


@get("/api/v1/schedules/{name:str}/next", guards=[needs("read")], opt={NAME_OPT: True})
async def next_times(request: AnyRequest, name: FromPath[str], namespace: NamespaceQuery = "", count: CountQuery = 10) -> ScheduleTimes:
    """When a schedule fires next."""
    target = target_of(request, named=True)
    return ScheduleTimes(times=await control_of(request).schedules.coming(target.namespace, target.name, count))


@get("/api/v1/schedule-times", guards=[needs_somewhere("read")])
async def preview_times(
    request: AnyRequest,
    cron: FromQuery[str] = "",
    rate: FromQuery[str] = "",
    at: FromQuery[str] = "",
    timezone: FromQuery[str] = "UTC",
    count: CountQuery = 10,
) -> ScheduleTimes:
    """When an expression would come that is not saved."""
    schedule = _checked({"cron": cron, "rate": rate, "at": at, "timezone": timezone})
    return ScheduleTimes(times=await asyncio.to_thread(control_of(request).schedules.preview, schedule, count))


def _checked(table: dict[str, Any]) -> Schedule:
    problems: list[str] = []
    schedule = checked_schedule({key: value for key, value in table.items() if value is not msgspec.UNSET}, problems)
    if problems:
        raise Refusal("bad_config", " ".join(problems[:3]), extra={"problems": problems})
    return schedule


def _answer(kept: Kept) -> ScheduleAnswer:
    schedule = kept.schedule
    return ScheduleAnswer(
        namespace=kept.namespace,
        name=kept.name,
        function=kept.function,
        expression=schedule.expression,
        cron=schedule.cron,
        rate=schedule.rate,
        at=schedule.at,
        timezone=schedule.timezone,
        jitter_seconds=schedule.jitter_seconds,
        offset_seconds=round(kept.offset, 3),
        overlap=schedule.overlap,
        missed=schedule.missed,
        enabled=schedule.enabled,
        declared=kept.declared,
        paused=kept.paused,
        next_at=kept.next_at,
        last_due=kept.last_due,
        last_call=kept.last_call,
        counts=ScheduleCounts(fired=kept.fired, skipped=kept.skipped, missed=kept.missed),
        created_at=kept.created_at,
        updated_at=kept.updated_at,
        payload=msgspec.json.decode(schedule.payload) if schedule.payload else msgspec.UNSET,
    )


ROUTES = Router(
    "/",
    route_handlers=[
        list_schedules, show_schedule, put_schedule, remove_schedule, pause_schedule, resume_schedule, run_schedule, next_times,
        preview_times,
    ],
    tags=["schedules"],
)  # fmt: skip
