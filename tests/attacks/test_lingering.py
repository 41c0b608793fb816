"""Outliving a call: what is left behind ends with its instance, and neither a thread nor a timer gets at another call's answer."""

from pathlib import Path

import pytest

from tests.attacks.arena import Arena, Attacker


def hasty(arena: Arena) -> Attacker:
    return arena.attacker("lingering", name="hasty", timeout_seconds=1)


@pytest.mark.parametrize(("act", "count"), [("grandchildren", 9), ("raw_child", 1), ("program", 1)])
def test_what_was_left_behind_ends_with_its_instance(arena: Arena, act: str, count: int) -> None:
    """Double forks in sessions of their own that ignore every signal, some spinning, some stopped; a child with the instance's sockets."""
    attacker, mark = hasty(arena), f"left-{act[:9]}"
    said = arena.unharmed(lambda: [attacker.act(act, count=count, mark=mark), attacker.act("word", word="after", seconds=0.25)])
    assert "left" in said[0] and said[1][0] == "after"
    arena.platform.wait_for("the test sees what was left", lambda: len(arena.marked(mark)) >= count)
    assert "x-amz-function-error" in attacker.call("go").headers
    arena.platform.wait_for("they are gone", lambda: not arena.marked(mark))
    attacker.works()


def test_what_was_left_behind_ends_when_its_function_is_deleted(arena: Arena) -> None:
    attacker = arena.attacker("lingering", name="deleted")
    attacker.act("grandchildren", count=6, mark="left-deleted")
    arena.platform.wait_for("they call themselves so", lambda: len(arena.marked("left-deleted")) >= 6)
    assert arena.platform.request("DELETE", "/api/v1/functions/deleted").status == 200
    arena.platform.wait_for("they are gone", lambda: not arena.marked("left-deleted"))


def test_an_instance_cannot_stop_itself_for_good(arena: Arena) -> None:
    """SIGSTOP: either the kernel does not deliver it to the first process of a namespace, or the deadline ends what has stopped."""
    attacker = hasty(arena)
    said = arena.unharmed(lambda: attacker.call("stop_itself", over_seconds=0.25).json())
    assert said == "still here" or said["errorType"] == "Sandbox.Timedout"
    attacker.works()


@pytest.mark.parametrize("busy", [False, True])
def test_who_ignores_every_signal_is_ended_at_the_deadline(arena: Arena, busy: bool) -> None:
    attacker, mark = hasty(arena), f"deaf-{busy}"
    error = arena.unharmed(lambda: attacker.call("ignore", busy=busy, mark=mark)).json()
    assert error["errorType"] == "Sandbox.Timedout"
    arena.platform.wait_for("it has ended", lambda: not arena.marked(mark))
    attacker.works()


def test_a_thread_that_runs_into_the_next_calls_answers_none_of_them(arena: Arena) -> None:
    attacker = arena.attacker("lingering", name="threads")
    said = arena.unharmed(lambda: [attacker.act("thread", word="first"), *(attacker.act("word", word=n, seconds=0.01) for n in range(30))])
    assert said[0] == "first"
    assert [answer[0] for answer in said[1:]] == list(range(30))
    assert said[-1][1] > said[1][1], "the thread did run meanwhile"


@pytest.mark.parametrize("way", ["itimer", "virtual itimer", "alarm", "timer thread", "child", "interrupts"])
def test_timers_and_signals_of_an_ended_call_change_no_answer(arena: Arena, way: str) -> None:
    """They end the instance, fail the call that they hit, or do nothing: an answer that comes is the right one."""
    attacker = arena.attacker("lingering", name="timers")

    def calls() -> list[object]:
        answers: list[object] = []
        for then in ("raise", "count", "default"):
            attacker.call("timers", way=way, then=then)
            answers += [attacker.call("word", word=word, seconds=0.002).json() for word in range(6)]
            attacker.call("go")
        return answers

    answers = arena.unharmed(calls)
    words = [answer[0] if isinstance(answer, list) else answer for answer in answers]
    wrong = [(number % 6, word) for number, word in enumerate(words) if not isinstance(word, dict) and word != number % 6]
    assert wrong == []
    errors = {word["errorType"] for word in words if isinstance(word, dict)}
    assert errors <= {"Late", "Runtime.ExitError", "KeyboardInterrupt"}, errors
    attacker.recovers()


def test_nothing_of_all_this_is_left_on_the_machine(arena: Arena) -> None:
    """At the end of this module's attacks: roles that never died, and no process of an instance that is no child of the node's."""
    state = arena.platform.roles()
    assert all(Path(f"/proc/{pid}").exists() for pid in state.values())
    assert "died" not in arena.platform.log_text()
