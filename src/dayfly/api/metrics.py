"""/metrics: control's sums in Prometheus's text format. Imported at the first scrape; docs/operations.md has the names."""

import time
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.registry import Collector

from dayfly import __version__
from dayfly.control import quotas
from dayfly.control.plane import Control
from dayfly.core.decide import meter, rollout
from dayfly.core.decide.quota import day_of
from dayfly.core.model.limits import Consumed
from dayfly.core.model.records import FunctionStatistics

__all__ = ["CONTENT_TYPE", "exposition"]

FUNCTION = ("namespace", "function")
MICROSECONDS = 1_000_000
LE = (*(repr(bound / MICROSECONDS) for bound in meter.BOUNDS_US), "+Inf")
GAUGES = (
    ("dayfly_instances", "Instances alive.", "instances"),
    ("dayfly_in_flight", "Calls being executed.", "in_flight"),
    ("dayfly_waiting", "Calls waiting for an instance.", "waiting"),
    ("dayfly_instances_wanted", "Instances wanted by the target of [scale]; 0 without one.", "wanted"),
    ("dayfly_instances_held_at", "Instances that pressed processors can run of a function that computes; 0: not held.", "held_at"),
    ("dayfly_scale_panic", "1 while the short window of [scale] is far above what is there.", "panic"),
)
COUNTERS = (
    ("dayfly_cold_starts", "Calls that waited for a new instance.", "cold"),
    ("dayfly_rejected", "Calls refused before an instance saw them.", "rejected"),
    ("dayfly_instances_started", "Instances started.", "instances_started"),
    ("dayfly_instances_lost", "Instances that ended without being asked to.", "instances_lost"),
    ("dayfly_request_bytes", "Bytes of requests.", "bytes_in"),
    ("dayfly_response_bytes", "Bytes of answers.", "bytes_out"),
)


class _Sums(Collector):
    """All families from one look at the sums."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        sums = list(self._control.sums.by_function().values())
        yield from _calls(sums)
        yield from _limits(self._control)
        yield _phases(sums)
        yield from _billed(self._control)
        yield from _platform(self._control)


def exposition(control: Control) -> bytes:
    """The whole text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Sums(control))
    return generate_latest(registry)


def _calls(sums: Iterable[FunctionStatistics]) -> Iterator[Metric]:
    calls = CounterMetricFamily("dayfly_calls", "Calls by outcome: ok, or an error code.", labels=[*FUNCTION, "outcome"])
    for numbers in sums:
        for outcome, count in numbers.outcomes.items():
            calls.add_metric([numbers.namespace, numbers.function, outcome], count)
    yield calls
    refusals = CounterMetricFamily("dayfly_refusals", "Calls refused, by the limit or queue they were over.", labels=[*FUNCTION, "reason"])
    for numbers in sums:
        for reason, count in numbers.refusals.items():
            refusals.add_metric([numbers.namespace, numbers.function, reason], count)
    yield refusals
    for kinds, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
        for name, about, field in kinds:
            metric = family(name, about, labels=FUNCTION)
            for numbers in sums:
                metric.add_metric([numbers.namespace, numbers.function], getattr(numbers, field))
            yield metric


def _limits(control: Control) -> Iterator[Metric]:
    """Limits of functions (as `live` has them) and of namespaces (with an empty `function`), and what was used of those by the day."""
    limit = GaugeMetricFamily("dayfly_limit", "Limits that are set.", labels=[*FUNCTION, "limit"])
    used = GaugeMetricFamily("dayfly_limit_used_today", "Used on this UTC day of a limit by the day.", labels=[*FUNCTION, "limit"])
    today = control.usage.used_on(day_of(time.time()))
    found = [
        (key, rollout.live_config(control.catalog.functions[key]).limits, today.get(key) or Consumed(*key))
        for key in sorted(control.catalog.limited)
    ]
    namespaces = sorted(control.catalog.limits.items())
    wholes = quotas.wholes(today, control.catalog.limits)
    found += [((name, ""), limits, wholes[name]) for name, limits in namespaces]
    for key, limits, consumed in found:
        for name, value, amount in quotas.rows(limits, consumed) if limits.any else ():
            limit.add_metric([*key, name], value)
            if amount is not None:
                used.add_metric([*key, name], amount)
    yield limit
    yield used


def _phases(sums: Iterable[FunctionStatistics]) -> Metric:
    """One histogram for all functions: per function it would be 200 series each; /api/v1/statistics has those quantiles."""
    counts: dict[str, list[int]] = {}
    sums_us: dict[str, int] = {}
    for numbers in sums:
        for phase, more in numbers.histograms.items():
            present = counts.setdefault(phase, meter.empty())
            counts[phase] = [a + b for a, b in zip(present, more, strict=True)]
            sums_us[phase] = sums_us.get(phase, 0) + numbers.sums_us.get(phase, 0)
    family = HistogramMetricFamily("dayfly_call_phase_seconds", "Time in a phase of calls.", labels=["phase"])
    for phase, found in sorted(counts.items()):
        running, buckets = 0, []
        for le, count in zip(LE, found, strict=True):
            running += count
            buckets.append((le, float(running)))
        family.add_metric([phase], buckets, sums_us[phase] / MICROSECONDS)
    return family


def _billed(control: Control) -> Iterator[Metric]:
    family = CounterMetricFamily("dayfly_billed_gb_seconds", "Billed GB-seconds since control started.", labels=FUNCTION)
    for key, mb_ms in sorted(control.usage.billed_mb_ms().items()):
        family.add_metric(key, meter.gb_seconds(mb_ms))
    yield family


def _platform(control: Control) -> Iterator[Metric]:
    yield GaugeMetricFamily("dayfly_functions", "Functions deployed.", value=len(control.catalog.functions))
    info = GaugeMetricFamily("dayfly_info", "Always 1; the release as a label.", labels=["version"])
    info.add_metric([__version__], 1)
    yield info
    connections = GaugeMetricFamily("dayfly_gateway_connections", "Open client connections.", labels=["gateway"])
    requests = CounterMetricFamily("dayfly_gateway_requests", "HTTP requests.", labels=["gateway"])
    for gateway in control.sums.gateways():
        connections.add_metric([gateway.gateway], gateway.connections)
        requests.add_metric([gateway.gateway], gateway.requests)
    pressure = GaugeMetricFamily("dayfly_cpu_pressure", "Share of time in which a thread waits for a processor.", labels=["gateway"])
    for gateway in control.sums.gateways():
        pressure.add_metric([gateway.gateway], gateway.cpu_pressure)
    yield connections
    yield requests
    yield pressure
    yield CounterMetricFamily("dayfly_logs_dropped", "Log records lost for want of room.", value=control.logs.dropped)
    yield CounterMetricFamily("dayfly_usage_dropped", "Calls that could not be counted for want of room.", value=control.usage.dropped)
    yield CounterMetricFamily("dayfly_builds", "Dependency layers built.", value=control.builder.builds)
