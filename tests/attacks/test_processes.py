"""Processes: others cannot be seen, read, traced or signalled, by number, by name, or through what is open already."""

import hashlib
import os

from tests.attacks.arena import CANARIES, Arena
from tests.e2e.harness import descendants

BOTH = True
EPERM, ESRCH, EINVAL = -1, -3, -22


def others(arena: Arena) -> list[int]:
    """Process numbers as the machine has them: the test's own, the platform's, all instances'. Each is far above an instance's own."""
    pids = [os.getpid(), *descendants(arena.platform.pid)]
    return [pid for pid in pids if pid > 50]


def test_nothing_of_other_processes_is_in_proc(arena: Arena) -> None:
    attacker = arena.attacker("processes")
    said = attacker.try_("proc", pids=others(arena))
    assert len(said) > 50 and set(said.values()) == {"FileNotFoundError 2"}, said
    assert attacker.act("listed", most=5000) == {"listed": ["1"], "guessed": [1], "me": 1}


def test_the_environment_tells_nothing_of_the_platform_or_of_others(arena: Arena) -> None:
    said = arena.attacker("processes").try_("environment")
    strangers = [CANARIES["env"], arena.platform.token, "E2E_CANARY", "DAYFLY_CONFIG_DIR", str(arena.platform.folder), CANARIES["secret"]]
    assert "AWS_LAMBDA_FUNCTION_NAME" in said
    assert [word for word in strangers if word in said] == []


def halved(word: str) -> list[object]:
    """A needle of handlers/processes.py: half of it, so that looking for it does not put the whole into memory."""
    text = word.encode()
    return [text[: len(text) // 2][::-1].hex(), len(text), hashlib.sha256(text).hexdigest()]


def test_its_own_memory_holds_nothing_of_the_process_it_was_forked_from(arena: Arena) -> None:
    """The zygote's memory is every instance's: no token, secret, code, environment or event of anybody's is in it."""
    mine = "a word of the attacker's own: found"
    needles = [halved(word) for word in (*CANARIES.values(), arena.platform.token, arena.platform.token.rpartition("_")[2])]
    attacker = arena.attacker("processes")
    said = attacker.try_("own_memory", needles=needles)
    assert said["scanned"] > 4 << 20
    assert said["found"] == []
    assert attacker.act("own_memory", needles=[halved(mine)], word=mine)["found"], "the search finds what is there"


def test_other_processes_cannot_be_read_signalled_or_slowed_down(arena: Arena) -> None:
    alive = arena.alive()
    said = arena.attacker("processes").try_("other_memory", pids=others(arena))
    assert {done for name, done in said.items() if name.startswith(("readv", "writev"))} == {EPERM}
    rest = {name: done for name, done in said.items() if not name.startswith(("readv", "writev"))}
    assert set(rest.values()) == {ESRCH}, rest
    assert arena.alive() == alive


def test_a_signal_to_everybody_reaches_nobody(arena: Arena) -> None:
    alive, instances = arena.alive(), arena.platform.invoke("victim", {"kept": "", "tmp": "", "log": ""}).headers["x-dayfly-instance"]
    assert arena.attacker("processes").try_("everybody") in (ESRCH, 0)
    assert arena.alive() == alive
    assert arena.platform.invoke("victim", {"kept": "", "tmp": "", "log": ""}).headers["x-dayfly-instance"] == instances


def test_what_is_open_leads_nowhere(arena: Arena) -> None:
    """Descriptors: pipes, sockets and pages of its gateway's. No folder, no file of the machine, no way to the process behind."""
    alive = arena.alive()
    said = arena.attacker("processes").try_("descriptors")
    for number, entry in said.items():
        target = entry["target"]
        assert target.startswith(("pipe:", "socket:", "/memfd:", "/dev/null")), (number, entry)
        assert entry["parent"] == entry["fchdir"] == "NotADirectoryError 20", (number, entry)
        assert entry["inside"] == "NotADirectoryError 20", (number, entry)
        if "peer" in entry:
            assert entry["peer"]["pid"] == 0, "a process of no number here"
            assert "signal" not in entry["peer"] or entry["peer"]["signal"] in (EPERM, EINVAL, ESRCH), entry
            assert "getfd" not in entry["peer"] or entry["peer"]["getfd"] == EPERM, entry
            assert "setns" not in entry["peer"] or entry["peer"]["setns"] == -1, entry
    assert arena.alive() == alive


def test_process_numbers_used_again_hit_nobody(arena: Arena) -> None:
    """Numbers are its own namespace's: using them up, or signalling one that has ended, reaches nothing of the machine's."""
    alive = arena.alive()
    attacker = arena.attacker("processes")
    said = attacker.try_("recycle", seconds=0.4)
    assert said["born"] > 20
    assert said["signal"] == said["kill"] == ESRCH
    assert "x-amz-function-error" in attacker.call("go").headers, "its numbers are free again, and nobody else is ended for it"
    attacker.works()
    assert arena.alive() == alive
