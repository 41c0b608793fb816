"""When starts keep apart: halves of any set of processors, and only beside calls that instances of others answer."""

from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.decide.apart import LOOK_SECONDS, Served, halves


@given(st.sets(st.integers(0, 300), min_size=1))
def test_halves_are_both_there_and_together_all(processors: set[int]) -> None:
    calls, starts = halves(processors)
    assert calls
    assert starts
    assert calls | starts == processors
    if len(processors) > 1:
        assert not calls & starts
        assert 0 <= len(calls) - len(starts) <= 1


def test_one_processor_is_everybodys() -> None:
    assert halves({7}) == ({7}, {7})


def test_a_version_that_answers_is_somebody_for_others_and_not_for_itself() -> None:
    served: Served[str] = Served()
    served.look({"warm": 100}, 0.0)
    assert not served.beside("burst"), "nobody knows yet how many of them were lately"
    served.look({"warm": 102}, 1.0)
    assert served.beside("burst")
    assert not served.beside("warm")
    served.look({"warm": 102}, 2.0)
    assert not served.beside("burst"), "its calls have ended"


def test_a_crowd_of_first_calls_is_nobodys_neighbour() -> None:
    """Two hundred functions, called once each: whose call was answered waits for nothing any more."""
    served: Served[int] = Served()
    served.look({}, 0.0)
    served.look(dict.fromkeys(range(100), 1), 1.0)
    served.look(dict.fromkeys(range(200), 1), 2.0)
    assert not served.beside(201)


def test_two_that_answer_are_each_others_neighbour() -> None:
    served: Served[str] = Served()
    served.look({"a": 0, "b": 0, "c": 0}, 0.0)
    served.look({"a": 9, "b": 9, "c": 9}, 1.0)
    assert all(served.beside(one) for one in "abc")


def test_looks_are_made_now_and_then() -> None:
    served: Served[str] = Served()
    assert served.is_due(0.0)
    served.look({}, 0.0)
    assert not served.is_due(LOOK_SECONDS / 2)
    assert served.is_due(LOOK_SECONDS)
