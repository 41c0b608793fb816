"""Running numbers of all gateways, added up: for describe, `top` and /metrics. Counters never go back while control runs.

A gateway is known by its name and process. When it is gone its gauges are gone with it, and its counters stay in the sum: a
restarted gateway counts from zero again under another process id.
"""

from collections.abc import Callable, Iterable

from dayfly.core.model.records import FunctionStatistics, GatewayStatistics

GONE_MAX = 16  # ended gateways kept apart, in case the link only broke; older ones are merged into one sum
GAUGES = ("in_flight", "waiting", "instances", "wanted", "held_at")
COUNTERS = ("calls", "errors", "rejected", "cold", "bytes_in", "bytes_out", "instances_started", "instances_lost")
LATEST = ("idle_times", "ahead_seconds", "keep_seconds", "panic", "cpu_share")  # not to be added up: what the latest gateway says
TABLES = ("sums_us", "outcomes", "refusals")

GatewayKey = tuple[str, int]
FunctionKey = tuple[str, str]


class Sums:
    """The latest statistics of each gateway and their sum."""

    def __init__(self) -> None:
        self._latest: dict[GatewayKey, GatewayStatistics] = {}
        self._gone: dict[GatewayKey, GatewayStatistics] = {}
        self._past: dict[FunctionKey, FunctionStatistics] = {}

    def put(self, key: GatewayKey, statistics: GatewayStatistics) -> None:
        """A gateway's present numbers, since its start."""
        self._gone.pop(key, None)
        self._latest[key] = statistics

    def gone(self, key: GatewayKey) -> None:
        """A gateway's link ended."""
        statistics = self._latest.pop(key, None)
        if statistics is None:
            return
        self._gone[key] = statistics
        while len(self._gone) > GONE_MAX:
            oldest = self._gone.pop(next(iter(self._gone)))
            _merge(self._past, oldest.functions, gauges=False)

    def gateways(self) -> list[GatewayStatistics]:
        """The latest numbers of every connected gateway."""
        return list(self._latest.values())

    def by_function(self) -> dict[FunctionKey, FunctionStatistics]:
        """(namespace, function) → the sum over all gateways; a fresh copy."""
        return self._sum(lambda parts: parts)

    def _sum(self, choose: Callable[[Iterable[FunctionStatistics]], Iterable[FunctionStatistics]]) -> dict[FunctionKey, FunctionStatistics]:
        total: dict[FunctionKey, FunctionStatistics] = {}
        _merge(total, choose(self._past.values()), gauges=False)
        for ended in self._gone.values():
            _merge(total, choose(ended.functions), gauges=False)
        for present in self._latest.values():
            _merge(total, choose(present.functions), gauges=True)
        return total

    def of(self, namespace: str, function: str) -> FunctionStatistics:
        """One function's sum; zeros when nobody called it."""
        found = self._sum(lambda parts: (it for it in parts if it.function == function and it.namespace == namespace))
        return found.get((namespace, function)) or FunctionStatistics(namespace=namespace, function=function)


def _merge(total: dict[FunctionKey, FunctionStatistics], parts: Iterable[FunctionStatistics], *, gauges: bool) -> None:
    names = COUNTERS + GAUGES if gauges else COUNTERS
    for part in parts:
        key = (part.namespace, part.function)
        into = total.get(key)
        if into is None:
            into = total[key] = FunctionStatistics(namespace=part.namespace, function=part.function)
        for name in names:
            setattr(into, name, getattr(into, name) + getattr(part, name))
        into.template = part.template if gauges and part.template else into.template
        for name in LATEST if gauges else ():
            setattr(into, name, getattr(part, name))
        into.memory_mb = max(into.memory_mb, part.memory_mb)
        for table in TABLES:
            sums = getattr(into, table)
            for name, value in getattr(part, table).items():
                sums[name] = sums.get(name, 0) + value
        for phase, counts in part.histograms.items():
            present = into.histograms.get(phase)
            into.histograms[phase] = list(counts) if present is None else [a + b for a, b in zip(present, counts, strict=False)]
