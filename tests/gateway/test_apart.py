"""The gateway says which starts keep apart, and keeps to its own half while they do."""

import asyncio
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dayfly.core.decide.apart import CALLS_MIN, HOLD_SECONDS, halves
from dayfly.gateway.apart import Apart
from dayfly.testing.provider import Behaviour
from tests.gateway.rig import function, gateway, until
from tests.gateway.test_calls import run

ALL = os.sched_getaffinity(0)


@pytest.fixture(autouse=True)
def everywhere() -> Iterator[None]:
    """Whatever a test leaves behind."""
    yield
    os.sched_setaffinity(0, ALL)


def entry(answered: int, ready: int = 1) -> Any:
    class Entry(SimpleNamespace):
        __hash__ = object.__hash__

    return Entry(pool=SimpleNamespace(answered_count=answered, ready=ready))


def test_several_starts_beside_calls_of_another_keep_apart_until_the_last_is_a_while_ago() -> None:
    apart, warm, cold = Apart(), entry(0), entry(0, ready=0)
    apart.tick([warm, cold], 0.0)
    warm.pool.answered_count = 50
    apart.tick([warm, cold], 1.0)
    assert not apart.asked(cold, 0, 1.0), "one start alone keeps nobody waiting for long"
    assert os.sched_getaffinity(0) == ALL
    assert apart.asked(cold, 1, 1.0)
    assert os.sched_getaffinity(0) == halves(ALL)[0]
    assert not apart.asked(warm, 1, 1.0), "its own calls are what it starts for"
    apart.tick([warm, cold], 1.0 + HOLD_SECONDS / 2)
    assert os.sched_getaffinity(0) == halves(ALL)[0]
    apart.tick([warm, cold], 1.0 + HOLD_SECONDS)
    assert os.sched_getaffinity(0) == ALL


def test_without_calls_of_others_starts_may_have_everything() -> None:
    apart, cold, other = Apart(), entry(0, ready=0), entry(0, ready=0)
    for now in (0.0, 1.0):
        apart.tick([cold, other], now)
        assert not apart.asked(cold, 5, now)
    assert os.sched_getaffinity(0) == ALL


def test_a_burst_is_told_to_keep_apart_while_another_function_answers_and_not_otherwise() -> None:
    """By what the provider was asked; the clock's looks are those of a real gateway."""

    async def main() -> None:
        async with gateway(Behaviour(start_seconds=0.02)) as rig:
            rig.serve(function("warm"), function("alone"), function("burst"))

            async def call(name: str) -> None:
                assert (await rig.request("POST", f"/function/{name}"))[0] == 200

            async def crowd(name: str) -> list[bool]:
                await asyncio.gather(*(call(name) for _ in range(8)))
                return [one.start.apart for one in rig.behaviour.instances if one.boot["function"] == name]

            assert not any(await crowd("alone")), "nobody else is there"
            for _ in range(2):  # what was answered before the first look is no news
                looked = rig.fleet._apart._served._looked_at
                await asyncio.gather(*(call("warm") for _ in range(2 * CALLS_MIN)))
                await until(lambda: rig.fleet._apart._served._looked_at > looked)  # noqa: B023
            told = await crowd("burst")
            assert len(told) > 1
            assert any(told)
            await until(lambda: os.sched_getaffinity(0) == ALL)

    run(main())
