"""A gateway looks at its machine's processors and steers its pools: with a fake /proc, fake instances, and real sockets between them."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dayfly.core.model.scale import Scale
from dayfly.gateway import scaling
from dayfly.gateway.processors import Processors
from dayfly.gateway.scaling import Scaling
from dayfly.testing.provider import Behaviour, FakeAnswer, TakenCall
from tests.gateway.rig import Rig, function, gateway, until
from tests.gateway.test_calls import run

PID = 1  # what fake instances say
TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """The files of a machine with two processors; every instance is the same process here, so all of them have used the same."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stalled = self.cpu = self.now = 0.0
        (root / "proc/pressure").mkdir(parents=True)
        (root / f"proc/{PID}").mkdir()
        (root / "sys/fs/cgroup").mkdir(parents=True)
        (root / "sys/fs/cgroup/cpu.max").write_text("200000 100000\n")
        (root / "proc/loadavg").write_text("0.5 0.5 0.5 2/99 4711\n")
        self.write()

    def write(self) -> None:
        """What was used by now."""
        (self.root / "proc/pressure/cpu").write_text(
            f"some avg10=0.00 avg60=0.00 avg300=0.00 total={int(self.stalled * 1e6)}\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        )
        process = self.root / f"proc/{PID}"
        fields = ["S", *["0"] * 10, str(int(self.cpu * TICKS)), "0", "0", "0", *["0"] * 20]
        (process / "stat").write_text(f"{PID} (a name) with ) in it) {' '.join(fields)}\n")
        (process / "schedstat").write_text(f"{int(self.cpu * 1e9)} 0 7\n")

    def pass_time(self, it: Scaling, looks: int, *, pressed: float, computing: float) -> None:
        """So many looks, with these shares of the time between them."""
        for _ in range(looks):
            self.now += scaling.LOOK_SECONDS
            self.stalled += pressed * scaling.LOOK_SECONDS
            self.cpu += computing * scaling.LOOK_SECONDS
            self.write()
            it.tick(self.now)
            it.tick(self.now + 0.001)  # too soon: nothing happens


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def hang(call: TakenCall) -> FakeAnswer | None:
    return None


def ready(rig: Rig, name: str) -> int:
    return sum(entry.pool.ready for key, entry in rig.fleet.entries.items() if key[1] == name)


@asynccontextmanager
async def crowd(rig: Rig, instances: int, **callers: int) -> AsyncIterator[None]:
    """So many callers of each function, until the body ends; it begins when each has so many instances."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(rig.request("GET", f"/function/{name}")) for name, count in callers.items() for _ in range(count)]
    try:
        await until(lambda: all(ready(rig, name) >= instances for name in callers))
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_pressed_processors_hold_who_computes_and_let_go_when_it_is_quiet(machine: Machine) -> None:
    async def main() -> None:
        async with gateway(Behaviour(hang)) as rig:
            rig.serve(function("hot", max_instances=12))
            it = Scaling(rig.fleet, rig.provider, Processors(str(machine.root)))
            async with crowd(rig, 12, hot=30):
                (entry,) = rig.fleet.entries.values()
                machine.pass_time(it, 5, pressed=0.1, computing=1.0)
                assert entry.steering.held_at == 0 and entry.pool.ceiling == 12 and not rig.provider.weights
                machine.pass_time(it, 6, pressed=1.0, computing=1.0)
                assert entry.steering.held_at == entry.pool.ceiling == 4
                assert len(rig.provider.weights) == 12 and all(83 <= weight <= 117 for weight in rig.provider.weights.values())
                (numbers,) = rig.fleet.observe()
                assert (numbers.held_at, numbers.cpu_share) == (4, pytest.approx(1.0, abs=0.05))
                assert rig.ledger.cpu_pressure > 0.9
                machine.pass_time(it, 6, pressed=0.0, computing=1.0)
                assert entry.steering.held_at == 0 and entry.pool.ceiling == 12

    run(main())


def test_pressed_processors_do_not_hold_who_waits(machine: Machine) -> None:
    async def main() -> None:
        async with gateway(Behaviour(hang)) as rig:
            rig.serve(function("waiter", max_instances=12))
            it = Scaling(rig.fleet, rig.provider, Processors(str(machine.root)))
            async with crowd(rig, 12, waiter=30):
                (entry,) = rig.fleet.entries.values()
                machine.pass_time(it, 12, pressed=1.0, computing=0.01)
                assert entry.steering.held_at == 0 and entry.pool.ceiling == 12

    run(main())


def test_a_target_brings_up_and_lets_go_instances(machine: Machine) -> None:
    """Two calls inside for each: of twelve callers that stay, six instances; when they are gone, one."""

    async def main() -> None:
        held = asyncio.Event()

        async def wait(call: TakenCall) -> FakeAnswer | None:
            await held.wait()
            return FakeAnswer()

        async with gateway(Behaviour(wait)) as rig:
            scale = Scale(metric="concurrency", target=2, utilisation=1.0, stable_window_seconds=1.0)
            rig.serve(function("target", concurrency=10, scale=scale))
            it = Scaling(rig.fleet, rig.provider, Processors(str(machine.root)))
            async with crowd(rig, 1, target=12):
                (entry,) = rig.fleet.entries.values()
                await until(lambda: len(entry.pool.waiting) + len(entry.pool.offered) == 12)
                machine.pass_time(it, 12, pressed=0.0, computing=0.0)
                await until(lambda: ready(rig, "target") == 6)
                (numbers,) = rig.fleet.observe()
                assert (numbers.wanted, numbers.panic, numbers.cpu_share) == (6, True, -1.0)
                held.set()
                await until(lambda: not rig.fleet.busy)
                for left in (3, 1):  # half of them at once, by one decision
                    machine.pass_time(it, 25, pressed=0.0, computing=0.0)
                    await until(lambda left=left: ready(rig, "target") == left)
                machine.pass_time(it, 5, pressed=0.0, computing=0.0)
                assert (entry.steering.scaler.wanted, entry.pool.ceiling) == (0, 1)

    run(main())


def test_a_target_of_cores_reads_a_few_instances_also_on_a_quiet_machine(machine: Machine) -> None:
    async def main() -> None:
        async with gateway(Behaviour(hang)) as rig:
            scale = Scale(metric="cpu", target=0.5, utilisation=1.0, stable_window_seconds=1.0)
            rig.serve(function("cores", scale=scale, min_instances=2))
            rig.fleet.warm(rig.catalog.functions["default", "cores"])
            await until(lambda: ready(rig, "cores") == 2)
            it = Scaling(rig.fleet, rig.provider, Processors(str(machine.root)))
            machine.pass_time(it, 20, pressed=0.0, computing=0.9)
            (entry,) = rig.fleet.entries.values()
            assert entry.steering.computes.cores == pytest.approx(0.9, abs=0.1)
            await until(lambda: ready(rig, "cores") == 4)  # 2 × 0.9 ÷ 0.5

    run(main())


def test_readings_take_turns_when_there_are_too_many_for_one_look(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "READINGS_PER_LOOK_MAX", 2)

    async def main() -> None:
        async with gateway(Behaviour(hang)) as rig:
            rig.serve(*(function(f"f{number}", max_instances=1) for number in range(7)))
            it = Scaling(rig.fleet, rig.provider, Processors(str(machine.root)))
            async with crowd(rig, 1, **{f"f{number}": 2 for number in range(7)}):
                machine.pass_time(it, 20, pressed=1.0, computing=1.0)
                assert [entry.steering.held_at for entry in rig.fleet.entries.values()] == [1] * 7

    run(main())


def test_processors_say_what_they_do_not_know(tmp_path: Path) -> None:
    nothing = Processors(str(tmp_path))
    assert (nothing.source, nothing.stalled_us(), nothing.running(), nothing.reading(1)) == ("", -1, -1, None)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/loadavg").write_text("0.5 0.5 0.5 3/99 4711\n")
    threads = Processors(str(tmp_path))
    assert (threads.source, threads.running()) == ("loadavg", 2)
    here = Processors()
    assert here.source in ("psi", "loadavg") and here.cores > 0
    first = here.reading(os.getpid())
    assert first is not None and first.cpu_seconds > 0 and first.delay_seconds >= 0
    assert here.reading(2**22 + 1) is None
