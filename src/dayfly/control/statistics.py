"""Running numbers of all gateways, added up: for describe, `top` and /metrics. Counters never go back while control runs.

A gateway is known by its name and process, and tells what has changed. When it is gone its gauges are gone with it, and its counters stay
in the sum: a restarted gateway counts from zero again under another process id, and so does one that has forgotten what it counted of a
function (`FunctionStatistics.since`). Numbers are kept encoded: most are of functions that do nothing, and nobody looks at them.
"""

from collections.abc import Callable, Container, Iterable, Iterator

import msgspec

from dayfly.core.model.records import FunctionStatistics, GatewayStatistics

GONE_MAX = 16  # ended gateways kept apart, in case the link only broke; older ones are merged into one sum
GAUGES = ("in_flight", "waiting", "instances", "wanted", "held_at")
COUNTERS = ("calls", "errors", "rejected", "cold", "bytes_in", "bytes_out", "instances_started", "instances_lost")
LATEST = ("idle_times", "ahead_seconds", "keep_seconds", "panic", "cpu_share")  # not to be added up: what the latest gateway says
TABLES = ("sums_us", "outcomes", "refusals")

GatewayKey = tuple[str, int]
FunctionKey = tuple[str, str]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FunctionStatistics).decode


class _Numbers:
    """Encoded statistics by namespace and function, which are not in them again."""

    def __init__(self) -> None:
        self._data: dict[str, dict[str, bytes]] = {}

    def of(self, key: FunctionKey) -> FunctionStatistics | None:
        data = self._data.get(key[0], {}).get(key[1])
        return None if data is None else _decoded(*key, data)

    def all(self) -> Iterator[FunctionStatistics]:
        return (_decoded(namespace, name, data) for namespace, functions in self._data.items() for name, data in functions.items())

    def put(self, statistics: FunctionStatistics) -> None:
        data = _encode(msgspec.structs.replace(statistics, namespace="", function=""))
        self._data.setdefault(statistics.namespace, {})[statistics.function] = data

    def add(self, statistics: FunctionStatistics) -> None:
        """Add the counters to what is here."""
        key = (statistics.namespace, statistics.function)
        found = self.of(key)
        total = {} if found is None else {key: found}
        _merge(total, (statistics,), gauges=False)
        self.put(total[key])

    def keep(self, keys: Container[FunctionKey]) -> None:
        """Forget all others."""
        for namespace, functions in list(self._data.items()):
            for name in [name for name in functions if (namespace, name) not in keys]:
                del functions[name]
            if not functions:
                del self._data[namespace]


def _decoded(namespace: str, function: str, data: bytes) -> FunctionStatistics:
    statistics = _decode(data)
    statistics.namespace, statistics.function = namespace, function
    return statistics


class _Gateway:
    """What one gateway has said."""

    def __init__(self) -> None:
        self.latest = GatewayStatistics(gateway="", at=0.0)  # without functions
        self.functions = _Numbers()


class Sums:
    """The latest statistics of each gateway and their sum."""

    def __init__(self) -> None:
        self._present: dict[GatewayKey, _Gateway] = {}
        self._gone: dict[GatewayKey, _Gateway] = {}
        self._past = _Numbers()

    def __repr__(self) -> str:
        return f"<Sums of {len(self._present)} gateways and {len(self._gone)} that are gone>"

    def put(self, key: GatewayKey, statistics: GatewayStatistics) -> None:
        """A gateway's present numbers; of functions those that have changed."""
        gateway = self._present.get(key)
        if gateway is None:
            gateway = self._present[key] = self._gone.pop(key) if key in self._gone else _Gateway()
        gateway.latest = msgspec.structs.replace(statistics, functions=[])
        for numbers in statistics.functions:
            before = gateway.functions.of((numbers.namespace, numbers.function))
            if before is not None and before.since != numbers.since:
                self._past.add(before)
            gateway.functions.put(numbers)

    def gone(self, key: GatewayKey) -> None:
        """A gateway's link ended."""
        gateway = self._present.pop(key, None)
        if gateway is None:
            return
        self._gone[key] = gateway
        while len(self._gone) > GONE_MAX:
            oldest = self._gone.pop(next(iter(self._gone)))
            for numbers in oldest.functions.all():
                self._past.add(numbers)

    def keep(self, functions: Container[FunctionKey]) -> None:
        """Forget the numbers of all other functions: they were removed."""
        for numbers in (self._past, *(it.functions for it in (*self._present.values(), *self._gone.values()))):
            numbers.keep(functions)

    def gateways(self) -> list[GatewayStatistics]:
        """The latest numbers of every connected gateway, those of functions apart."""
        return [gateway.latest for gateway in self._present.values()]

    def by_function(self) -> dict[FunctionKey, FunctionStatistics]:
        """(namespace, function) → the sum over all gateways; a fresh copy."""
        return self._sum(lambda numbers: numbers.all())

    def _sum(self, choose: Callable[[_Numbers], Iterable[FunctionStatistics]]) -> dict[FunctionKey, FunctionStatistics]:
        total: dict[FunctionKey, FunctionStatistics] = {}
        _merge(total, choose(self._past), gauges=False)
        for ended in self._gone.values():
            _merge(total, choose(ended.functions), gauges=False)
        for present in self._present.values():
            _merge(total, choose(present.functions), gauges=True)
        return total

    def of(self, namespace: str, function: str) -> FunctionStatistics:
        """One function's sum; zeros when nobody called it."""
        key = (namespace, function)
        found = self._sum(lambda numbers: () if (it := numbers.of(key)) is None else (it,))
        return found.get(key) or FunctionStatistics(namespace=namespace, function=function)


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
