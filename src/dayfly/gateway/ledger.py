"""What is written down about calls: usage by function and day, running statistics, log records; all in memory, all bounded.

gateway/link.py takes them away in batches. When control is away the buffers fill to their named maximum and then count what they drop.
Written for every call, so it is arithmetic on lists and ints and nothing else. Never raises, never waits.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Container

from dayfly.core.decide.keepalive import NEVER, IdleTimes
from dayfly.core.decide.meter import BOUNDS_US, BUCKETS, NOT_RUN, bucket
from dayfly.core.decide.quota import DAY_SECONDS
from dayfly.core.model.records import Answered, FunctionStatistics, LogRecord, UsageSum
from dayfly.core.model.settings import Settings

PHASES = ("queue", "start", "init", "exec", "total")
UNTOLD = {"namespace", "function", "since", "histograms", "sums_us", "outcomes", "refusals"}  # the tables: none changes without a counter
TELLING = tuple(name for name in FunctionStatistics.__struct_fields__ if name not in UNTOLD)


class FunctionLedger:
    """One function's running numbers and its allowance of log bytes."""

    __slots__ = (
        "_log_allowance", "_log_at", "_log_rate", "idle_times", "log_dropped", "numbers", "phases", "sums", "told", "usage", "versions",
    )  # fmt: skip

    def __init__(self, namespace: str, function: str, since: int, log_bytes_per_second: int) -> None:
        self.numbers = FunctionStatistics(namespace=namespace, function=function, since=since)
        self.versions = 0  # that are here, when that was counted last
        self.told: tuple[object, ...] = ()  # what `told_by` was when control was told
        self.idle_times = IdleTimes()  # here, because pools come and go
        self.phases: dict[str, list[int]] = {}  # two kilobytes, from the first answer on: most of many functions are hardly ever called
        self.sums: dict[str, int] = {}
        self._log_rate = log_bytes_per_second
        self._log_allowance = float(log_bytes_per_second)
        self._log_at = 0.0
        self.log_dropped = 0
        self.usage: UsageSum | None = None  # what was used since control was told last

    def begin(self) -> None:
        """The first of its calls is answered."""
        self.phases = self.numbers.histograms = {phase: [0] * BUCKETS for phase in PHASES}
        self.sums = self.numbers.sums_us = dict.fromkeys(PHASES, 0)

    def clear_gauges(self) -> None:
        """Before the entries add up what is now."""
        numbers = self.numbers
        numbers.in_flight = numbers.waiting = numbers.instances = numbers.memory_mb = numbers.wanted = numbers.held_at = self.versions = 0
        numbers.template = ""

    @property
    def told_by(self) -> tuple[object, ...]:
        """What is different when any number is."""
        numbers = self.numbers
        return tuple([getattr(numbers, name) for name in TELLING])

    @property
    def is_idle(self) -> bool:
        """No version of the function is here, and no template: nothing will change by itself."""
        return not self.versions and not self.numbers.template

    @property
    def is_empty(self) -> bool:
        """The function was never called: control has what there is to know of it."""
        numbers = self.numbers
        return not (numbers.calls or numbers.rejected or self.log_dropped) and self.idle_times.idle_since == NEVER

    def log_allowed(self, size: int, now: float) -> bool:
        """Token bucket of one second's depth."""
        self._log_allowance = min(self._log_rate, self._log_allowance + (now - self._log_at) * self._log_rate)
        self._log_at = now
        if size > self._log_allowance:
            self.log_dropped += 1
            return False
        self._log_allowance -= size
        return True


class Ledger:
    """All of one gateway's records until the link takes them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._step_us = settings.tariff_round_ms * 1000
        self._round_ms = settings.tariff_round_ms
        self.usage: list[UsageSum] = []  # as many as functions were called since control was told last, and one more each at midnight
        self._users: list[FunctionLedger] = []  # whose these are
        self.logs: deque[LogRecord] = deque()
        self.logs_dropped = 0
        self.functions: dict[tuple[str, str], FunctionLedger] = {}
        self.cpu_pressure = 0.0  # of this machine's processors (gateway/scaling.py)
        self._awake: dict[tuple[str, str], FunctionLedger] = {}  # those of `functions` that may have something to tell
        self._made = 0

    def function(self, namespace: str, name: str) -> FunctionLedger:
        """The function's ledger, made at first sight; whoever asks will write in it."""
        key = (namespace, name)
        found = self.functions.get(key)
        if found is None:
            self._made += 1
            found = FunctionLedger(namespace, name, self._made, self._settings.log_bytes_per_second_max)
            self.functions[key] = found
        self._awake[key] = found
        return found

    def clear_gauges(self) -> None:
        """Before the entries add up what is now."""
        for ledger in self._awake.values():
            ledger.clear_gauges()

    def report(self) -> list[FunctionStatistics]:
        """The numbers that are not as control was told last. What has nothing to tell any more sleeps until it is written in again; of a
        function that was never called nothing is kept: control adds up what one ledger after another has counted (`since`)."""
        found = []
        for key, ledger in list(self._awake.items()):
            if (telling := ledger.told_by) != ledger.told:
                ledger.told = telling
                found.append(ledger.numbers)
            elif ledger.is_idle:
                del self._awake[key]
                if ledger.is_empty:
                    del self.functions[key]
        return found

    def tell_all(self) -> None:
        """Whoever asks next has been told nothing."""
        self._awake = dict(self.functions)
        for ledger in self._awake.values():
            ledger.told = ()

    def answered(self, ledger: FunctionLedger, record: Answered) -> None:
        """A call was answered, by an instance or by the pool: counted, and billed if it ran."""
        numbers = ledger.numbers
        numbers.calls += 1
        numbers.bytes_in += record.bytes_in
        numbers.bytes_out += record.bytes_out
        outcome = record.outcome
        numbers.outcomes[outcome] = numbers.outcomes.get(outcome, 0) + 1
        if outcome != "ok":
            numbers.errors += 1
        if not ledger.phases:
            ledger.begin()
        phases, sums = ledger.phases, ledger.sums
        queue_us, exec_us = record.queue_us, record.exec_us
        phases["queue"][bisect_left(BOUNDS_US, queue_us)] += 1  # core/decide/meter.py bucket, unrolled
        sums["queue"] += queue_us
        phases["exec"][bisect_left(BOUNDS_US, exec_us)] += 1
        sums["exec"] += exec_us
        total = queue_us + exec_us
        if record.cold:
            numbers.cold += 1
            phases["start"][bucket(record.start_us)] += 1
            sums["start"] += record.start_us
            phases["init"][bucket(record.init_us)] += 1
            sums["init"] += record.init_us
            total += record.start_us + record.init_us
        phases["total"][bisect_left(BOUNDS_US, total)] += 1
        sums["total"] += total
        if outcome != "ok" and outcome in NOT_RUN:
            return
        day = int(record.finished_at) // DAY_SECONDS
        used = ledger.usage
        if used is None or used.day != day:
            used = ledger.usage = UsageSum(day, numbers.namespace, numbers.function)
            self.usage.append(used)
            self._users.append(ledger)
        billed = (-(-exec_us // self._step_us) or 1) * self._round_ms  # core/decide/meter.py billed_ms, unrolled
        used.calls += 1
        used.billed_ms += billed
        used.mb_ms += billed * record.memory_mb
        used.exec_us += exec_us
        used.bytes_in += record.bytes_in
        used.bytes_out += record.bytes_out
        if record.cold:
            used.cold += 1
        if outcome != "ok":
            used.errors += 1

    def rejected(self, ledger: FunctionLedger, code: str, reason: str = "") -> None:
        """A call was refused before an instance saw it: counted, not billed. `reason`: which limit, where the code alone does not say."""
        # Asked for anew: while the call's body was on its way, its version and this ledger may have gone.
        numbers = self.function(ledger.numbers.namespace, ledger.numbers.function).numbers
        numbers.rejected += 1
        numbers.outcomes[code] = numbers.outcomes.get(code, 0) + 1
        numbers.refusals[reason or code] = numbers.refusals.get(reason or code, 0) + 1

    def logged(self, ledger: FunctionLedger, record: LogRecord, now: float) -> None:
        """A piece of output; dropped and counted beyond the function's rate or the buffer's size."""
        if not ledger.log_allowed(len(record.text) + 64, now):
            return
        if ledger.log_dropped:
            missed, ledger.log_dropped = ledger.log_dropped, 0
            self._append_log(_missed(record, missed))
        self._append_log(record)

    def _append_log(self, record: LogRecord) -> None:
        if len(self.logs) >= self._settings.log_buffer_max:
            self.logs_dropped += 1
        else:
            self.logs.append(record)

    def take_usage(self) -> list[UsageSum]:
        """What was used since the last time."""
        taken, self.usage = self.usage, []
        for ledger in self._users:
            ledger.usage = None
        self._users.clear()
        return taken

    def take_logs(self, most: int) -> tuple[list[LogRecord], int]:
        taken = [self.logs.popleft() for _ in range(min(most, len(self.logs)))]
        dropped, self.logs_dropped = self.logs_dropped, 0
        return taken, dropped

    def forget(self, keep: Container[tuple[str, str]]) -> None:
        """Drop the numbers of functions that no longer exist."""
        for key in [key for key in self.functions if key not in keep]:
            self.forget_function(*key)

    def forget_function(self, namespace: str, name: str) -> None:
        """A function is gone."""
        self.functions.pop((namespace, name), None)
        self._awake.pop((namespace, name), None)


def _missed(record: LogRecord, count: int) -> LogRecord:
    return LogRecord(
        record.at, record.namespace, record.function, record.version, record.instance, "", "platform", 30,
        f"{count} log records were dropped: the function logged faster than log_bytes_per_second_max.",
    )  # fmt: skip
