"""What a map does next: every order of events, killed at every step, ends; each item and each result is counted once."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dayfly.core.decide import mapping
from dayfly.core.decide.mapping import Bounds, Chunks, Facts, step
from dayfly.core.model.errors import Refusal
from dayfly.core.model.mapping import MapOrder, MapRecord
from dayfly.core.wire.lines import Lines

BOUNDS = Bounds(upload_seconds=100.0, keep_seconds=1000.0)


def record(**more: Any) -> MapRecord:
    order = MapOrder(function="f", reduce=more.pop("reduce", ""), fail_fast=more.pop("fail_fast", False))
    return MapRecord(**({"id": "m", "namespace": "n", "order": order, "seed": "s", "created_at": 0.0} | more))


class Maps(RuleBasedStateMachine):
    """A map over a queue that is as simple as can be: id → state. A kill loses what was done but not written down, and all memory."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: dict[str, str] = {}
        self.record = record()
        self.now = self.fed_at = 0.0
        self.swept = False
        self.total = 0
        self.given: dict[str, list[str]] = {}  # reducer → its inputs
        self.forgotten = False

    def items(self, *states: str) -> list[str]:
        return [id_ for id_, state in self.queue.items() if ".r" not in id_ and (not states or state in states)]

    def facts(self) -> Facts:
        level = f"s.r{self.record.generation}.{self.record.level}."
        told = [state for id_, state in self.queue.items() if id_.startswith(level)]
        return Facts(
            self.now, len(self.items()), len(self.items("done")), len(self.items("dead")), told.count("done"), told.count("dead"),
            self.swept, self.fed_at,
        )  # fmt: skip

    @precondition(lambda self: self.record.state == "filling" and not self.queue)
    @rule(reduce=st.booleans(), fail_fast=st.booleans())
    def choose(self, reduce: bool, fail_fast: bool) -> None:
        self.record = record(reduce="g" if reduce else "", fail_fast=fail_fast)

    @precondition(lambda self: self.record.state == "filling")
    @rule(count=st.integers(1, 9), whole=st.booleans())
    def feed(self, count: int, whole: bool) -> None:
        first = len(self.items())
        self.queue |= {self.record.item_id(index): "waiting" for index in range(first, first + count)}
        self.fed_at = self.now
        if whole:
            self.record = mapping.whole(self.record, len(self.items()))

    @precondition(lambda self: any(state in ("waiting", "leased") for state in self.queue.values()))
    @rule(which=st.integers(0, 99), ok=st.sampled_from([True, True, True, False]), lease=st.booleans())
    def run(self, which: int, ok: bool, lease: bool) -> None:
        """Somebody takes one, or what he took is settled."""
        leasable = [id_ for id_, state in self.queue.items() if state == "leased" or (state == "waiting" and self._may_run(id_))]
        if leasable:
            id_ = leasable[which % len(leasable)]
            self.queue[id_] = "leased" if lease else "done" if ok else "dead"

    def _may_run(self, id_: str) -> bool:
        return self.record.state == "reducing" if ".r" in id_ else self.record.state in ("filling", "running")

    @precondition(lambda self: not self.forgotten)
    @rule(killed=st.booleans())
    def go_on(self, killed: bool) -> None:
        """One step; `killed` before it could be written down."""
        found = step(self.record, self.facts(), BOUNDS)
        match found:
            case mapping.Become(following):
                if not killed:
                    self.become(following)
            case mapping.Cancel():
                for id_, state in self.queue.items():
                    if state == "waiting":
                        self.queue[id_] = "dead"
                self.swept = not killed
            case mapping.PutBack():
                for id_ in self.items("dead")[: 1 if killed else None]:
                    self.queue[id_] = "waiting"
                self.swept = not killed
            case mapping.Plan():
                calls = self._plan()
                if not killed:
                    self.become(mapping.planned(self.record, calls))
            case mapping.Forget():
                self.forgotten = True
        if killed:
            self.swept = False

    def become(self, following: MapRecord) -> None:
        if self.record.ended:
            assert following is self.record, "what has ended stays as it is"
        self.record, self.swept = following, False

    def _plan(self) -> int:
        below = self.record.level - 1
        inputs = (
            [self.record.reducer_id(below, number) for number in range(self.record.inputs)]
            if self.record.level
            else [self.record.item_id(index) for index in range(self.record.total)]
        )
        chunks, parts = Chunks(10**9, 2), list[list[str]]([[]])
        for id_ in inputs:
            if self.queue[id_] == "done":
                if chunks.begins(1):
                    parts.append([])
                parts[-1].append(id_)
        for number, part in enumerate(parts):
            id_ = self.record.reducer_id(self.record.level, number)
            self.queue.setdefault(id_, "waiting")
            assert self.given.setdefault(id_, part) == part, "the same level planned twice is the same calls"
        return len(parts)

    @rule(seconds=st.sampled_from([1.0, 50.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: not self.record.ended)
    @rule()
    def cancel(self) -> None:
        self.record, self.swept = mapping.cancelled(self.record), False

    @precondition(lambda self: self.record.ended and not self.forgotten)
    @rule()
    def redrive(self) -> None:
        try:
            self.record, self.swept = mapping.redriven(self.record), False
        except Refusal as refusal:
            assert refusal.kind.code == "conflict"

    @invariant()
    def what_has_ended_has_nothing_under_way(self) -> None:
        if self.record.ended:
            assert not self.items("waiting", "leased")
            assert (self.record.done, self.record.dead) == (len(self.items("done")), len(self.items("dead")))
            assert self.record.done + self.record.dead == len(self.items())

    @invariant()
    def a_result_is_of_every_item_that_succeeded_once(self) -> None:
        if self.record.state == "done" and self.record.order.reduce:
            leaves = list(self._leaves(self.record.result))
            assert sorted(leaves) == sorted(self.items("done"))

    def _leaves(self, id_: str) -> Iterator[str]:
        if ".r" not in id_:
            yield id_
            return
        for below in self.given[id_]:
            yield from self._leaves(below)

    def teardown(self) -> None:
        """Left alone, it ends."""
        for _ in range(500):
            if self.record.ended:
                return
            self.go_on(False)
            self.now += 10.0
            for id_, state in list(self.queue.items()):
                if state == "leased" or (state == "waiting" and self._may_run(id_)):
                    self.queue[id_] = "done"
        raise AssertionError(f"never ends: {self.record}")


Maps.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestMaps = Maps.TestCase


def test_a_map_of_nothing_is_refused_and_what_never_was_whole_is_not_redriven() -> None:
    with pytest.raises(Refusal):
        mapping.whole(record(), 0)
    with pytest.raises(Refusal):
        mapping.redriven(record(state="cancelled"))
    with pytest.raises(Refusal):
        mapping.redriven(record(state="done", total=3, done=3, dead=0))
    with pytest.raises(Refusal):
        mapping.cancelled(record(state="done"))


def test_a_reducer_whose_answers_never_get_fewer_ends_the_map() -> None:
    above = record(reduce="g", state="reducing", level=1, inputs=3)
    assert (mapping.planned(above, 3).state, mapping.planned(above, 3).reason) == ("ending", "reduce_too_large")
    assert mapping.planned(above, 2).calls == 2
    items = msgspec.structs.replace(above, level=0, inputs=0)
    assert mapping.planned(items, 3).state == "reducing", "results may each need an event of their own"


@given(st.lists(st.integers(1, 100)), st.integers(1, 150), st.integers(1, 10))
def test_no_event_is_over_its_bounds_but_for_one_large_result(sizes: list[int], bytes_max: int, items_max: int) -> None:
    chunks, parts = Chunks(bytes_max, items_max), list[list[int]]([[]])
    for size in sizes:
        if chunks.begins(size):
            parts.append([])
        parts[-1].append(size)
    assert [size for part in parts for size in part] == sizes
    assert all(len(part) <= items_max and (sum(part) <= bytes_max or len(part) == 1) for part in parts)
    assert all(parts) or not sizes


@given(st.lists(st.sampled_from(["1", '"a"', "", " ", '{"a":[1,\r 2]}', "null"])), st.integers(1, 7))
def test_lines_come_whole_however_they_are_cut(texts: list[str], cut: int) -> None:
    data = "\n".join(texts).encode()
    lines = Lines(1000)
    found = [value for at in range(0, len(data), cut) for value in lines.feed(data[at : at + cut])] + lines.rest()
    assert found == [text.strip().encode() for text in texts if text.strip()]


@pytest.mark.parametrize(
    ("data", "line", "code"),
    [
        (b"1\n2\n{nope}\n4\n", 3, "bad_json"), (b"1\n\n\xff\n", 3, "bad_json"), (b"1\n" + b"9" * 200, 2, "body_too_large"),
        (b"[" * 90 + b"\n", 1, "bad_json"), (b"1 2\n", 1, "bad_json"), (b"NaN\n", 1, "bad_json"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(data: bytes, line: int, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        list(Lines(100).feed(data))
    assert (caught.value.kind.code, caught.value.extra["line"]) == (code, line)
    assert f"Line {line} " in caught.value.detail
