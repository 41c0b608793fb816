"""How many gateways, and who of them does what."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dayfly.core.decide.gateways import gateways_of
from dayfly.core.decide.share import GUEST_CALLS_PER_SECOND, Most, Used, guest_max, is_busy, lack, may_be_guest, order
from dayfly.core.model.function import FunctionConfig
from dayfly.core.model.limits import Limits


@pytest.mark.parametrize(("wanted", "cores", "found"), [("auto", 1, 1), ("auto", 2, 1), ("auto", 7, 1), ("auto", 8, 2), ("auto", 64, 16),
                                                        (1, 64, 1), (2, 2, 2), (64, 1, 64)])  # fmt: skip
def test_one_gateway_for_every_four_cores_unless_a_number_is_named(wanted, cores, found):
    assert gateways_of(wanted, cores) == found


counts = st.integers(1, 64)
names = st.text("abcdefgh", min_size=1, max_size=8)


@given(names, names, counts)
def test_each_function_has_every_gateway_in_its_order_once(namespace, function, gateways):
    assert sorted(order(namespace, function, gateways, together=False)) == list(range(gateways))


@given(names, counts, st.lists(names, min_size=2, max_size=5))
def test_functions_of_a_namespace_with_limits_live_together(namespace, gateways, functions):
    assert len({order(namespace, function, gateways, together=True) for function in functions}) == 1


@given(names, names, st.integers(2, 64), st.data())
def test_when_a_gateway_is_away_nobody_moves_but_its_functions(namespace, function, gateways, data):
    away = data.draw(st.integers(0, gateways - 1))
    before = order(namespace, function, gateways, together=False)
    left = [slot for slot in before if slot != away]
    assert (left[0] == before[0]) == (before[0] != away)


def test_functions_are_shared_out_evenly():
    homes = Counter(order("default", f"function-{number}", 16, together=False)[0] for number in range(3200))
    assert len(homes) == 16 and min(homes.values()) > 140 and max(homes.values()) < 260, homes


@given(st.integers(1, 1000), counts)
def test_guests_together_never_leave_the_home_without(max_instances, gateways):
    guests = (gateways - 1) * guest_max(max_instances, gateways)
    assert max_instances - guests >= max(1, guest_max(max_instances, gateways))


@pytest.mark.parametrize(
    ("config", "together", "may"),
    [
        (FunctionConfig(), False, True),
        (FunctionConfig(), True, False),
        (FunctionConfig(limits=Limits(concurrency=5)), False, False),
        (FunctionConfig(websocket=True), False, False),
        (FunctionConfig(websocket=True, handler="web:app"), False, True),
        (FunctionConfig(max_instances=2), False, True),
        (FunctionConfig(max_instances=1), False, False),
    ],
)
def test_guests_serve_only_what_is_not_counted_and_what_leaves_the_home_something(config, together, may):
    assert may_be_guest(config, 2, together=together) is may


def test_a_guest_stays_one_until_there_are_far_fewer_calls():
    assert not is_busy(False, GUEST_CALLS_PER_SECOND - 1)
    assert is_busy(False, GUEST_CALLS_PER_SECOND)
    assert is_busy(True, GUEST_CALLS_PER_SECOND / 2)
    assert not is_busy(True, GUEST_CALLS_PER_SECOND / 5)


class Machine(RuleBasedStateMachine):
    """Gateways start and lose instances in any order: a home as many as it likes, a guest within its part."""

    @initialize(gateways=st.integers(2, 6), instances=st.integers(1, 40), starting=st.integers(1, 8), bounds=st.lists(st.integers(1, 30), min_size=1, max_size=4))  # fmt: skip  # noqa: E501
    def made(self, gateways, instances, starting, bounds):
        self.gateways, self.most, self.bounds = gateways, Most(instances, starting), bounds
        self.homes = [order("default", str(version), gateways, together=False)[0] for version in range(len(bounds))]
        self.places: list[tuple[int, int, bool]] = []  # whose, which version, whether it starts

    def own(self, slot, version):
        return sum((owner, of) == (slot, version) for owner, of, _ in self.places)

    def lacking(self, slot, version):
        bound = self.bounds[version]
        if self.own(slot, version) >= (bound if self.homes[version] == slot else guest_max(bound, self.gateways)):
            return "part"
        used = Used(len(self.places), sum(it[2] for it in self.places), sum(it[1] == version for it in self.places))
        return lack(used, self.most, bound)

    @rule(data=st.data())
    def start(self, data):
        slot, version = data.draw(st.integers(0, self.gateways - 1)), data.draw(st.integers(0, len(self.bounds) - 1))
        if not self.lacking(slot, version):
            self.places.append((slot, version, True))

    @precondition(lambda self: self.places)
    @rule(data=st.data(), gone=st.booleans())
    def go_on(self, data, gone):
        owner, version, _ = self.places.pop(data.draw(st.integers(0, len(self.places) - 1)))
        if not gone:
            self.places.append((owner, version, False))

    @invariant()
    def nothing_is_exceeded(self):
        assert len(self.places) <= self.most.instances
        assert sum(starting for *_, starting in self.places) <= self.most.starting
        for version, bound in enumerate(self.bounds):
            assert sum(it[1] == version for it in self.places) <= bound

    @invariant()
    def nobody_starves(self):
        """Where the machine has room, a home without an instance may always start one, whatever guests have."""
        for version, home in enumerate(self.homes):
            if not self.own(home, version):
                assert self.lacking(home, version) in ("", "instances", "starts")


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
