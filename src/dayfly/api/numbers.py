"""Routes of numbers: statistics, usage, /metrics; and how sums become figures for people (quantiles, GB-seconds, cost)."""

import time
from typing import Annotated, Any

from litestar import MediaType, Request, Response, Router, get
from litestar.params import FromQuery, QueryParameter

from dayfly.api.auth import NamespacesQuery, control_of, needs, readable
from dayfly.api.shapes import Phase, Statistics, StatisticsList, UsageAnswer, UsageList, usage_of
from dayfly.control.usage import checked_day, today
from dayfly.core.decide import meter, rollout
from dayfly.core.model.errors import Refusal
from dayfly.core.model.names import checked_name
from dayfly.core.model.records import FunctionStatistics
from dayfly.core.model.settings import Settings
from dayfly.store.usage import UsageDay

AnyRequest = Request[Any, Any, Any]
USAGE_DAYS_DEFAULT = 30
DAY_SECONDS = 86_400
FirstDayQuery = Annotated[str, QueryParameter(name="from", required=False, description="First day, YYYY-MM-DD (UTC).")]
LastDayQuery = Annotated[str, QueryParameter(name="to", required=False, description="Last day, YYYY-MM-DD (UTC); today when left out.")]


@get("/api/v1/statistics", guards=[needs("read")])
async def statistics(request: AnyRequest, namespace: NamespacesQuery = "") -> StatisticsList:
    """Running numbers per function."""
    control, namespaces = control_of(request), set(await readable(request))
    sums = control.sums.by_function()
    found = []
    for space, name in sorted(control.catalog.functions):
        if space in namespaces:
            function = control.catalog.functions[space, name]
            numbers = sums.get((space, name)) or FunctionStatistics(namespace=space, function=name)
            found.append(statistics_of(numbers, rollout.live_config(function).memory_mb, control.settings))
    return StatisticsList(functions=found)


@get("/api/v1/usage", guards=[needs("read")])
async def usage(
    request: AnyRequest, first: FirstDayQuery = "", last: LastDayQuery = "", function: FromQuery[str] = "", namespace: NamespacesQuery = ""
) -> UsageList:
    """Usage and cost per function and day."""
    control, namespaces = control_of(request), await readable(request)
    last = checked_day(last) if last else today(time.time())
    first = checked_day(first) if first else today(time.time() - (USAGE_DAYS_DEFAULT - 1) * DAY_SECONDS)
    if first > last:
        raise Refusal("bad_request", f"from={first} is after to={last}.")
    if function:
        checked_name(function)
    days = await control.usage.between(first, last, namespaces, function)
    rows = [usage_answer(day, control.settings) for day in days]
    return UsageList(first=first, last=last, currency=control.settings.currency, cost=sum(row.cost for row in rows), usage=rows)


def _metrics_guard(connection: Any, handler: Any) -> None:
    if control_of(connection).settings.metrics_auth == "token":
        needs("read", everywhere=True)(connection, handler)


@get("/metrics", guards=[_metrics_guard], media_type=MediaType.TEXT)
async def metrics(request: AnyRequest) -> Response[bytes]:
    """Prometheus text."""
    from dayfly.api.metrics import CONTENT_TYPE, exposition

    return Response(exposition(control_of(request)), media_type=CONTENT_TYPE)


def statistics_of(numbers: FunctionStatistics, memory_mb: int, settings: Settings) -> Statistics:
    """Sums as figures. The cost is an estimate before the tariff's rounding; usage has the exact one."""
    mb_ms = int(numbers.sums_us.get("exec", 0) / 1000 * memory_mb)
    cost = meter.cost(numbers.calls, mb_ms, settings.tariff_per_million_calls, settings.tariff_per_gb_second)
    return Statistics(
        namespace=numbers.namespace,
        name=numbers.function,
        calls=numbers.calls,
        errors=numbers.errors,
        rejected=numbers.rejected,
        cold=numbers.cold,
        in_flight=numbers.in_flight,
        waiting=numbers.waiting,
        instances=numbers.instances,
        instances_started=numbers.instances_started,
        instances_lost=numbers.instances_lost,
        idle_times=numbers.idle_times,
        ahead_seconds=round(numbers.ahead_seconds, 1),
        keep_seconds=round(numbers.keep_seconds, 1),
        memory_mb=memory_mb * numbers.instances,
        bytes_in=numbers.bytes_in,
        bytes_out=numbers.bytes_out,
        cost=cost,
        phases={phase: _phase(counts, numbers.sums_us.get(phase, 0)) for phase, counts in numbers.histograms.items()},
        outcomes=numbers.outcomes,
        refusals=numbers.refusals,
        template=numbers.template,
        wanted=numbers.wanted,
        panic=numbers.panic,
        held_at=numbers.held_at,
        cpu_share=round(numbers.cpu_share, 2),
    )


def _phase(counts: list[int], sum_us: int) -> Phase:
    total = sum(counts)
    return Phase(
        p50_ms=round(meter.quantile(counts, 0.50) / 1000, 3),
        p99_ms=round(meter.quantile(counts, 0.99) / 1000, 3),
        mean_ms=round(sum_us / total / 1000, 3) if total else 0.0,
    )


def usage_answer(day: UsageDay, settings: Settings) -> UsageAnswer:
    """A day's usage with GB-seconds and cost by the tariff."""
    cost = meter.cost(day.calls, day.mb_ms, settings.tariff_per_million_calls, settings.tariff_per_gb_second)
    return usage_of(day, meter.gb_seconds(day.mb_ms), cost)


ROUTES: list[Any] = [Router("/", route_handlers=[statistics, usage], tags=["numbers"]), metrics]
