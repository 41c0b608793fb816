"""Greedy-dual: the lazy bookkeeping decides as the paper's eager one does, and what the rule means for instances."""

from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.evict import GreedyDual, Item


class Eager:
    """FaasCache as written down: the clock is stamped at every use."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.stamps: dict[str, float] = {}

    def priority(self, item: Item[str]) -> float:
        return self.stamps[item.key] + item.uses * item.cost_seconds / item.size_bytes


STEPS = st.lists(st.one_of(st.sampled_from("abcdef"), st.none()), max_size=80)
FACTS = st.lists(st.tuples(st.floats(0.001, 10), st.integers(1, 1000)), min_size=6, max_size=6)


@given(STEPS, FACTS)
def test_looking_only_at_evictions_decides_as_stamping_every_use_does(steps, facts):
    about = dict(zip("abcdef", facts, strict=True))
    eager, lazy = Eager(), GreedyDual[str]()
    uses: dict[str, int] = {}
    for step in steps:
        if step is not None:
            uses[step] = uses.get(step, 0) + 1
            eager.stamps[step] = eager.clock
            continue
        items = [Item(key, uses[key], *about[key]) for key in uses]
        chosen = lazy.choose(items)
        if not items:
            assert chosen is None
            continue
        lowest = min(items, key=eager.priority)
        assert chosen == lowest.key
        eager.clock = eager.priority(lowest)
        assert lazy.clock == eager.clock
        lazy.left(lowest.key)
        del uses[lowest.key]


def test_dear_small_and_much_used_stay_and_what_may_not_leave_is_never_chosen():
    cheap, dear = Item("cheap", 1, 0.005, 100), Item("dear", 1, 0.5, 100)
    large, used = Item("large", 10, 0.005, 10_000), Item("used", 10, 0.005, 100)
    assert GreedyDual[str]().choose([cheap, dear]) == "cheap"
    assert GreedyDual[str]().choose([large, used]) == "large"
    assert GreedyDual[str]().choose([cheap, used]) == "cheap"
    assert GreedyDual[str]().choose([cheap._replace(evictable=False), dear]) == "dear"
    assert GreedyDual[str]().choose([cheap._replace(evictable=False)]) is None


def test_what_was_much_used_long_ago_leaves_in_the_end():
    eviction = GreedyDual[str]()
    old = Item("old", 50, 1.0, 100)
    for number in range(1, 1000):
        if eviction.choose([old, Item(f"new{number}", 10, 1.0, 100)]) == "old":
            break
    assert 2 < number < 20


def test_it_remembers_only_what_is_there():
    eviction = GreedyDual[str]()
    for number in range(100):
        eviction.choose([Item(f"a{number}", 1, 1.0, 1)])
    assert repr(eviction).endswith("1 items>")
