"""A program that works on a queue as fast as it can and says what was acknowledged, a line each: `put ID…`, `settled ID…`, `driven ID…`.

Only test_durable_crashes.py runs it, to kill it: python hammer.py WHERE ROUND. Whatever it settles has its id as result.
"""

import random
import sys
from pathlib import Path

from dayfly.store.durable import open_queue
from dayfly.store.queue import Lease, NewItem, Settlement

NEVER = float("inf")


def say(word: str, ids: list[str]) -> None:
    if ids:
        print(word, *ids, flush=True)


def new(id: str, dice: random.Random) -> NewItem:
    body = id.encode() * dice.choice([1, 1, 300])
    group = dice.choice(["", "", "g", "h"])
    return NewItem(id=id, lane=dice.choice(["n/f", "n/g"]), body=body, accepted_at=1.0, due=1.0, expires=NEVER, group=group)


def settlement(lease: Lease, dice: random.Random) -> Settlement:
    state = dice.choice(["done", "done", "dead", "waiting"])
    result = b"" if state == "waiting" else lease.id.encode()
    return Settlement(id=lease.id, epoch=lease.epoch, now=2.0, state=state, record=b"r", result=result, keep_until=NEVER)  # type: ignore[arg-type]


def main() -> None:
    where, round = sys.argv[1:3]
    if where.startswith("postgresql:"):
        from dayfly.store.server import Server

        queue = open_queue(Server(where))
    else:
        queue = open_queue(Path(where))
    dice = random.Random(round)
    while lost := queue.reclaim(2.0, round):
        queue.settle([Settlement(id=one.id, epoch=one.epoch, now=2.0, state="waiting") for one in lost])
    n = 0
    while True:
        ids = [f"{round}-{n + k}" for k in range(dice.choice([1, 5, 60]))]
        n += len(ids)
        queue.put([new(id, dice) for id in ids])
        say("put", ids)
        leases = queue.lease([("n/f", dice.randrange(40)), ("n/g", dice.randrange(40))], 2.0, 60.0, round)
        told = [settlement(lease, dice) for lease in leases[::2]]
        queue.settle(told)
        say("settled", [one.id for one in told if one.state != "waiting"])
        queue.give_back([(lease.id, lease.epoch) for lease in leases[1::4]], 2.0, 2.0)
        if n % 7 == 0:
            dead = [item.id for item in queue.list(states=["dead"], limit=3)]
            print("driving", *dead, flush=True)
            queue.redrive(dead, 2.0, NEVER)


if __name__ == "__main__":
    main()
