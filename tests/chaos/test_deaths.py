"""kill -9 at random moments, of whichever process the dice choose, while calls are made: each call is answered once or was not accepted.

CHAOS_DEATHS=200 makes a full day of it; CHAOS_SEED repeats a day that failed (the order of deaths; their moments are the machine's).
"""

import os
import signal
import threading
from collections import Counter
from contextlib import suppress
from random import Random

import pytest

from tests.chaos.callers import Load
from tests.chaos.conftest import DEATHS, SEED, New
from tests.chaos.judge import GRACE_SECONDS, Judge
from tests.e2e import leaks
from tests.e2e.harness import Platform, descendants, parent_of

WHO = {"gateway": 4, "node": 4, "control": 3, "egress": 1, "instance": 8, "zygote": 2, "supervisor": 2}
DAY_SECONDS = 60 + 12 * DEATHS


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def victims(platform: Platform, who: str) -> list[int]:
    """Pids of those who are called so now: of this platform's own processes, never others (a role that is down has no pid)."""
    ours = set(platform.processes())
    if who == "supervisor":
        return [platform.pid]
    with suppress(OSError, ValueError, KeyError):
        roles = platform.roles()
        if who in roles:
            return [pid for pid in [roles[who]] if pid in ours]
        node = roles["node"]
        below = [pid for pid in descendants(node) if pid != node and pid in ours] if node in ours else []
        return [pid for pid in below if (parent_of(pid) == node) == (who == "zygote")]
    return []


class Killer:
    """Kills by the dice, and starts the platform again when it was the supervisor."""

    def __init__(self, judge: Judge, dice: Random) -> None:
        self.judge, self.dice, self.platform = judge, dice, judge.platform
        self.killed: Counter[str] = Counter()

    def kill_one(self) -> str:
        """Somebody dies, at a moment that nobody has chosen."""
        who = self.dice.choices(list(WHO), list(WHO.values()))[0]
        threading.Event().wait(self.dice.random() * 0.1)  # the moment: between two frames, in a start, in a restart
        found = victims(self.platform, who)
        if found and kill(self.dice.choice(sorted(found))):
            self.killed[who] += 1
        if who == "supervisor":
            self.again()
        return who

    def again(self) -> None:
        """The supervisor is dead: everybody else ends by himself; then the platform is started at the same address."""
        platform = self.platform
        assert platform.process is not None and platform.process.stdout is not None
        platform.process.wait(GRACE_SECONDS)
        platform.process.stdout.close()
        self.judge.wait("all ended with the supervisor", lambda: not leaks.strays())
        assert not leaks.mounts_below(platform.folder)
        platform.start()


def test_processes_die_at_random_and_every_call_is_answered_once_or_not_accepted(new_judge: New, request: pytest.FixtureRequest) -> None:
    request.node.add_marker(pytest.mark.timeout(DAY_SECONDS))
    print(f"CHAOS_SEED={SEED} CHAOS_DEATHS={DEATHS}")
    judge = new_judge(port=free_port(), log_retention_days=1)
    judge.deploy("first", min_instances=1)
    judge.deploy("second", keep_alive_seconds=1)
    judge.deploy("third", max_instances=2)
    killer = Killer(judge, Random(SEED))
    story: list[str] = []
    try:
        with Load(judge, ("first", "second", "third"), seed=SEED, pause_max=0.1) as load:
            while killer.killed.total() < DEATHS:
                story.append(killer.kill_one())
                if killer.dice.random() < 0.7:  # otherwise the next one dies before the last one is back
                    load.wait_answers(killer.dice.randrange(1, 30))
            load.wait_answers(20)
        counts = judge.settle()
    except BaseException:
        print("died:", " ".join(story))
        raise
    print(f"{dict(killer.killed)} died; {judge}")
    assert counts["answered"] > DEATHS
    nothing_piled_up(judge)


def nothing_piled_up(judge: Judge) -> None:
    """After all those deaths: no control group with somebody in it, no scratch folder and no mount of an instance that is gone."""
    platform = judge.platform
    node = platform.roles()["node"]
    alive = len(list(descendants(node)))
    scratch = platform.data / "run" / "scratch"
    assert not scratch.exists() or len(list(scratch.iterdir())) <= alive
    assert not leaks.mounts_below(platform.folder)
    groups = [folder for name in leaks.control_groups(platform.data) for folder, _, _ in os.walk(name)]
    assert len({os.path.basename(name) for name in groups}) <= alive + 120, "spare groups are bounded"


def free_port() -> int:
    """A port for a platform that is started again and again at the same address."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
