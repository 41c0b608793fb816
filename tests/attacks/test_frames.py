"""The protocol between instance and gateway, spoken wrongly: the liar's own call suffers, its next one works, nobody else's changes."""

import http.client
import json
import os
from pathlib import Path

import pytest

from tests.attacks.arena import DISPATCH, HANDLERS, Arena, Attacker
from tests.attacks.handlers.frames import CRAFTED

ENDED = {"Runtime.ExitError", "Sandbox.Timedout"}


def liar(arena: Arena, name: str = "liar", **config: object) -> Attacker:
    return arena.attacker("frames", name=name, **({"timeout_seconds": 1} | config))


def outcome(answer: object) -> object:
    """An answer's error in one word: of the function's (errorType) or of the platform's (its code)."""
    if isinstance(answer, dict) and "error" in answer:
        return answer["error"]["code"]
    return answer["errorType"] if isinstance(answer, dict) and "errorType" in answer else answer


def test_crafted_frames_hurt_their_author_only(arena: Arena) -> None:
    """Wrong lengths, unknown kinds, half frames, split headers, forged ids, double answers … Each is followed by a call that works."""
    attacker = liar(arena)

    def tell() -> dict[str, object]:
        said: dict[str, object] = {}
        for what in CRAFTED:
            try:
                answer = attacker.call("crafted", what=what)
                said[what] = outcome(json.loads(answer.body)) if answer.body else ""
            except http.client.HTTPException:
                said[what] = "cut"  # a stream that broke
            except ValueError:
                said[what] = answer.body.decode("latin-1")[:100]
            attacker.recovers()
        return said

    said = arena.unharmed(tell)
    # To its own caller an instance may say what it likes, or nothing: what counts is that the next call, and the neighbour's, are right.
    assert said["body too long"] in ENDED and said["number 0"] == said["log of no call"] == "told"


def test_answers_to_other_calls_early_or_late_are_not_heard(arena: Arena) -> None:
    """Forged ids: of the neighbour's calls at this moment, of calls whose deadline has passed, and of all that will come."""
    attacker = liar(arena)
    assert outcome(attacker.call("steal", seconds=5).json()) == "Sandbox.Timedout"  # a call that is over, one of "past" below
    said = arena.unharmed(lambda: [attacker.act("answer_others", past=3000, future=3000) for _ in range(8)])
    assert {answer[0] for answer in said} == {"mine"}
    for _ in range(20):
        attacker.works()


def test_answers_before_there_is_a_call_end_the_instance(arena: Arena) -> None:
    """An instance that answers while its module is still imported, calls that it may be offered soon among them: it never becomes ready."""
    source = {"handler.py": DISPATCH, "attack.py": (HANDLERS / "early.py").read_text()}
    event = arena.unharmed(lambda: arena.platform.try_put("early", source, keep_alive_seconds=0))
    assert event["event"] == "failed" and event["error"]["code"] == "init_failed", event


def test_answers_that_nobody_waits_for_are_not_kept(arena: Arena) -> None:
    """180 MB of them: the gateway's memory does not grow."""
    attacker = liar(arena, "wordy", timeout_seconds=20)
    before = resident(arena)
    assert arena.unharmed(lambda: attacker.act("bodies", count=30)) == "told"
    assert resident(arena) - before < 64 << 20
    attacker.works()


def resident(arena: Arena) -> int:
    lines = Path(f"/proc/{arena.platform.roles()['gateway']}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


def test_a_frame_byte_by_byte_holds_nobody_up(arena: Arena) -> None:
    attacker = liar(arena)
    assert arena.unharmed(lambda: attacker.act("drip")) == "dripped"
    attacker.works()


@pytest.mark.parametrize("size", [1, 200])
def test_a_hundred_thousand_log_frames_hold_nobody_up(arena: Arena, size: int) -> None:
    attacker = liar(arena, "loud", timeout_seconds=20)
    assert attacker.try_("log_frames", lines=100_000, size=size) == 100_000
    attacker.works()


@pytest.mark.parametrize("which", ["requests", "answers", "page", "output", "replaced", "crossed", "everything"])
def test_closing_the_platforms_descriptors_ends_the_instance(arena: Arena, which: str) -> None:
    attacker = liar(arena)
    said = arena.unharmed(lambda: [outcome(answer.json()) for answer in attacker.several(3, "close", which=which)])
    assert set(said) <= {"closed", "KeyError", *ENDED}, said  # KeyError: it is closed already
    attacker.call("close", which="everything")
    attacker.recovers()


@pytest.mark.parametrize("how", ["read", "write", "all"])
@pytest.mark.parametrize("which", ["answers", "requests"])
def test_shutting_the_platforms_sockets_ends_the_instance(arena: Arena, which: str, how: str) -> None:
    """Also the socket that all instances of a version share: later instances must get calls all the same."""
    attacker = liar(arena, f"shut-{which}-{how}")
    assert outcome(attacker.call("shut", which=which, how=how).json()) in {"shut", *ENDED}
    arena.unharmed(lambda: attacker.call("hello", word="meanwhile"))
    attacker.recovers()


def test_options_of_shared_sockets_cannot_stop_calls(arena: Arena) -> None:
    """They stay with the socket, for every instance of the version: a filter would drop calls, other messages beside a call's could
    hide the descriptor that a large one comes with."""
    attacker = liar(arena, "optional")
    said = attacker.act("options")
    assert {answer for label, answer in said.items() if label.startswith("filter")} == {"EPERM"}
    arena.unharmed(lambda: attacker.several(5, "options"))
    attacker.works()
    for size in (10, 1_000_000):
        assert attacker.act("length", text="x" * size) == size
    attacker.call("close", which="everything")
    for size in (1_000_000, 10):
        assert attacker.act("length", text="x" * size) == size, "an instance that came later"


def test_messages_the_wrong_way_are_read_by_nobody(arena: Arena) -> None:
    """Neither do the descriptors that ride on them stay anywhere."""
    attacker = liar(arena, "backwards")
    descriptors = open_in_gateway(arena)
    arena.unharmed(lambda: attacker.several(3, "wrong_way"))
    attacker.recovers()
    assert abs(open_in_gateway(arena) - descriptors) < 20


def open_in_gateway(arena: Arena) -> int:
    return len(os.listdir(f"/proc/{arena.platform.roles()['gateway']}/fd"))


def test_stolen_calls_end_at_their_deadline(arena: Arena) -> None:
    """Of its own version's, which is all that its socket carries. The thief is ended, and later calls are answered."""
    attacker = liar(arena, "thief", max_instances=2)
    error = arena.unharmed(lambda: attacker.call("steal", seconds=0.9))
    assert error.status == 200
    attacker.recovers()


@pytest.mark.parametrize("then", ["answer", "die"])
@pytest.mark.parametrize("claim", [0, 1, 2**63])
def test_lies_in_the_shared_page_are_not_believed(arena: Arena, claim: int, then: str) -> None:
    attacker = liar(arena, "claimant")
    for answer in arena.unharmed(lambda: attacker.several(3, "page", claim=claim, then=then)):
        said = answer.json()
        assert outcome(said) in ("queue_timeout", *ENDED) if {"errorType", "error"} & set(said) else set(said.values()) == {"EPERM"}, said
    attacker.recovers()


def test_no_defect_was_found_by_all_this(arena: Arena) -> None:
    """At the end of this module's attacks: the roles are those of its start, and the platform's log has no defect of ours."""
    log = arena.platform.log_text()
    assert "Traceback" not in log and "defect" not in log and "died" not in log, log[-4000:]
