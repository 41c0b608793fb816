"""When memory is short idle instances leave, least worth first; floors of provisioned windows come and go with the catalog."""

import msgspec

from dayfly.gateway import memory
from dayfly.gateway.memory import MemoryWatch, available_bytes
from dayfly.testing.provider import Behaviour, FakeAnswer, TakenCall
from tests.gateway.rig import Rig, function, gateway, until
from tests.gateway.test_calls import run

MB = 1024 * 1024


def machine(root, available_mb: int, limit: str = "", used_mb: int = 0, cache_mb: int = 0) -> None:
    """The files of a machine with so much memory, and of a container with that limit."""
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {available_mb * 1024} kB\n")
    if limit:
        group = root / "sys/fs/cgroup"
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{used_mb * MB}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {cache_mb * MB}\nactive_file 7\n")


def test_available_is_what_the_kernel_says_or_what_the_containers_limit_leaves(tmp_path):
    assert available_bytes(tmp_path) == float("inf")
    machine(tmp_path, 1000)
    assert available_bytes(tmp_path) == 1000 * MB
    machine(tmp_path, 1000, "max", 900)
    assert available_bytes(tmp_path) == 1000 * MB
    machine(tmp_path, 1000, str(500 * MB), 450, cache_mb=100)
    assert available_bytes(tmp_path) == 150 * MB
    assert 0 < available_bytes() < float("inf"), "and this machine says it, too"


async def warm(rig: Rig, name: str, calls: int) -> None:
    for _ in range(calls):
        assert (await rig.request("GET", f"/function/{name}"))[0] == 200


def names(rig: Rig) -> set[str]:
    return {it.boot["function"] for it in rig.provider.alive.values()}


def test_below_the_least_available_memory_idle_instances_leave_by_their_worth_and_floors_stay(tmp_path):
    async def main():
        async with gateway() as rig:
            rig.serve(function("often"), function("seldom"), function("large", memory_mb=1024), function("floor", min_instances=1))
            rig.fleet.warm(rig.catalog.functions["default", "floor"])
            await warm(rig, "often", 9)
            await warm(rig, "seldom", 1)
            await warm(rig, "large", 2)
            await until(lambda: names(rig) == {"often", "seldom", "large", "floor"})
            for entry in rig.fleet._entries.values():
                entry.pool.start_seconds = 0.005  # measured, they differ by chance
            watch = MemoryWatch(rig.fleet, 100 * MB, tmp_path)
            machine(tmp_path, 101)
            watch.tick(1.0)
            left = []
            machine(tmp_path, 99)
            memory_per_look, memory.RELEASED_PER_LOOK_MAX = memory.RELEASED_PER_LOOK_MAX, 1
            try:
                for look in range(2, 5):
                    before = names(rig)
                    assert before == names(rig)
                    watch.tick(float(look))
                    watch.tick(look + memory.LOOK_SECONDS / 2)  # too soon after the last look
                    await until(lambda before=before: len(names(rig)) < len(before))
                    left += before - names(rig)
            finally:
                memory.RELEASED_PER_LOOK_MAX = memory_per_look
            assert left == ["large", "seldom", "often"]
            watch.tick(9.0)
            assert names(rig) == {"floor"}

    run(main())


def test_a_busy_instance_is_not_asked_to_leave_and_zero_turns_the_watch_off(tmp_path):
    async def main():
        async with gateway() as rig:
            rig.serve(function("idle"))
            await warm(rig, "idle", 1)
            machine(tmp_path, 1)
            MemoryWatch(rig.fleet, 0, tmp_path).tick(1.0)
            (entry,) = rig.fleet._entries.values()
            assert not entry.pool.leaving
            entry.pool.offered[10**6] = object()  # whoever runs a call is not idle
            assert not rig.fleet.release_one()
            del entry.pool.offered[10**6]
            assert rig.fleet.release_one()
            await until(lambda: not rig.provider.alive)

    run(main())


def test_a_window_of_provisioned_instances_raises_the_floor_in_place_and_lowers_it_again():
    async def handler(call: TakenCall) -> FakeAnswer:
        return FakeAnswer(str(call.instance.boot["version"]).encode())

    async def main():
        async with gateway(Behaviour(handler)) as rig:
            shut = function(keep_alive_seconds=0.0, min_instances=1)
            opened = msgspec.structs.replace(shut, floors={1: 3})
            rig.serve(shut)
            rig.fleet.warm(shut)
            await until(lambda: len(rig.provider.alive) == 1)
            first = set(rig.provider.alive)
            rig.serve(opened)
            rig.fleet.warm(opened)
            await until(lambda: len(rig.provider.alive) == 3)
            assert first < set(rig.provider.alive), "the instances that were there stay"
            rig.serve(shut)
            rig.fleet.warm(shut)
            await until(lambda: len(rig.provider.alive) == 1)
            nobody = msgspec.structs.replace(opened, aliases=())
            rig.serve(nobody)
            rig.fleet.warm(nobody)
            await until(lambda: not rig.provider.alive)

    run(main())


def test_what_a_function_was_seen_to_do_stays_when_its_pool_is_forgotten(monkeypatch):
    monkeypatch.setattr("dayfly.gateway.fleet.DORMANT_SECONDS", 0.05)

    async def main():
        async with gateway() as rig:
            rig.serve(function(keep_alive_seconds=0.0))
            await warm(rig, "hello", 1)
            seen = rig.ledger.function("default", "hello").idle_times
            assert seen.idle_since > 0
            await until(lambda: not rig.fleet._entries)
            await warm(rig, "hello", 1)
            (entry,) = rig.fleet._entries.values()
            assert entry.pool.keep.seen is seen

    run(main())
