"""Deploys through a real control plane with a fake gateway and node: what serves, what is kept, what failures leave behind."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from dayfly.control.events import Deployed, Event, Failed, Output, Stage
from dayfly.core.wire import link
from tests.control.fakes import proves_everything
from tests.control.world import HELLO, folders, order, run, world

OTHER = {"hello.py": "def handler(event, context):\n    return 2\n"}
NEEDY = HELLO | {"requirements.txt": "idna==3.10\n"}


def deployed(events: list[Event]) -> Deployed:
    assert isinstance(events[-1], Deployed), events[-1]
    return events[-1]


def failed(events: list[Event]) -> dict[str, Any]:
    assert isinstance(events[-1], Failed), events[-1]
    return events[-1].error


def stages(events: list[Event]) -> list[str]:
    return [event.stage for event in events if isinstance(event, Stage)]


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize(("concurrency", "is_async", "warned"), [(10, False, True), (10, True, False), (1, False, False)])
def test_concurrency_that_a_plain_handler_makes_nothing_of_is_warned_about(concurrency: int, is_async: bool, warned: bool) -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                w.gateway.judge = lambda prove: link.Proved(prove.request, True, is_async=is_async)
                done = deployed(await w.deploy(concurrency=concurrency))
                assert w.live() == ((1, 1.0),), "it works all the same"
                assert len(done.warnings) == warned
                assert not warned or "concurrency is 10, but the handler is not `async def`" in done.warnings[0]

    run(main())


def test_a_first_deploy_is_proved_and_then_known_to_gateways_as_live() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                events = await w.deploy(memory_mb=256)
                done = deployed(events)
                assert (done.version, done.unchanged, done.url, done.missing) == (1, False, "/function/hello", ("cgroup",))
                assert stages(events) == ["unpack", "prove", "activate"] == list(done.seconds)
                prove = await w.gateway.wait_told(link.Prove)
                assert prove.number == prove.function.versions[-1].number == 1 and prove.function.aliases == ()
                await w.gateway.wait_told(link.FunctionChanged)
                assert w.live() == ((1, 1.0),)
                version = w.gateway.functions[("default", "hello")].versions[0]
                assert (version.config.memory_mb, version.config.handler) == (256, "hello.handler")
                assert names(layout.code) == [version.code_digest]
                assert names(layout.builds) == [], "the upload is gone"

    run(main())


def test_the_same_bundle_again_does_nothing_and_says_so() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                await w.deploy()
                events = await w.deploy()
                assert deployed(events).unchanged and deployed(events).version == 1
                assert stages(events) == ["unpack"]
                assert deployed(await w.deploy(memory_mb=64)).version == 2, "another setting is another version"
                assert deployed(await w.deploy()).version == 3
                assert len(names(layout.code)) == 1

    run(main())


def test_a_failing_init_leaves_the_old_version_serving_and_shows_the_users_traceback() -> None:
    def judge(prove: link.Prove) -> link.Proved:
        if prove.number == 2:
            error: dict[str, object] = {"errorType": "ValueError", "errorMessage": "no", "stackTrace": ["line 1"], "code": "forged"}
            return link.Proved(prove.request, False, error=error, log="printed")
        return proves_everything(prove)

    async def main() -> None:
        with folders() as layout:
            async with world(layout, judge) as w:
                await w.deploy()
                error = failed(await w.deploy(OTHER))
                assert (error["code"], error["stackTrace"], error["log"]) == ("init_failed", ["line 1"], "printed")
                assert "ValueError: no" in error["message"]
                assert w.live() == ((1, 1.0),)
                described = await w.control.functions.describe("default", "hello")
                assert [version.number for version in described.versions] == [1]
                assert deployed(await w.deploy(OTHER)).version == 3, "a number that was tried is not given again"

    run(main())


def test_a_version_that_cannot_be_started_here_is_the_platforms_fault() -> None:
    def judge(prove: link.Prove) -> link.Proved:
        return link.Proved(prove.request, False, error={"errorType": "Sandbox.Failure", "errorMessage": "no walls"})

    async def main() -> None:
        with folders() as layout:
            async with world(layout, judge) as w:
                assert failed(await w.deploy())["code"] == "start_failed"
                assert await w.control.functions.list(("default",)) == []

    run(main())


@pytest.mark.parametrize(
    ("files", "overrides", "code", "said"),
    [
        ({"dayfly.toml": "memory_mb = 1", **HELLO}, {}, "bad_config", "from 32 to 10240"),
        ({"dayfly.toml": "memory_mb = ", **HELLO}, {}, "bad_config", "no valid TOML"),
        ({"dayfly.toml": "a = " + "[" * 5000, **HELLO}, {}, "bad_config", "no valid TOML"),
        ({"dayfly.toml": "memory_mb = " + "9" * 5000, **HELLO}, {}, "bad_config", ""),
        ({"dayfly.toml": "# " + "x" * 300_000, **HELLO}, {}, "bad_config", "is over"),
        (HELLO, {"runtime": "python3.99"}, "bad_config", "found: python3.11"),
        (HELLO, {"secrets": ["db"]}, "bad_config", "dayfly secret set db"),
        (HELLO, {"namespace": "nowhere"}, "not_found", "no namespace"),
        ({"a.py": "", "b.py": ""}, {}, "bad_config", "handler"),
        ({"requirements.txt": "-r /etc/passwd", **HELLO}, {}, "bad_config", "requirements.txt:1"),
        ({"requirements.txt": "-i http://10.0.0.1/\nidna", **HELLO}, {}, "bad_config", "the platform's administrator"),
        ({"pyproject.toml": '[project]\ndependencies = ["a @ http://10.0.0.1/a"]', **HELLO}, {}, "bad_config", "administrator"),
        ({"pyproject.toml": "[project]\ndependencies = 5", **HELLO}, {}, "bad_config", "list"),
        ({}, {}, "bad_bundle", "no file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_started_and_nothing_is_left(
    files: dict[str, str], overrides: dict[str, Any], code: str, said: str
) -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                error = failed(await w.deploy(files, **overrides))
                assert error["code"] == code and said in error["message"]
                assert names(layout.code) == names(layout.builds) == names(layout.layers) == []
                assert not [it for it in w.gateway.told if isinstance(it, link.Prove)]

    run(main())


def test_dependencies_are_built_once_for_the_same_pins_and_their_output_is_shown() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                events = await w.deploy(NEEDY)
                assert [event.text for event in events if isinstance(event, Output)] == ["Resolved 1 package", "Installed 1 package"]
                assert stages(events) == ["unpack", "build", "prove", "activate"]
                again = await w.deploy(NEEDY | OTHER | {"requirements.txt": "# pinned\nidna==3.10"})
                assert deployed(again).version == 2 and len(w.node.built) == 1
                layer = w.gateway.functions[("default", "hello")].versions[0].layer_digest
                assert names(layout.layers) == [layer] == w.node.built
                file = Path(layout.layers, layer, "package", "__init__.py")
                assert file.read_text() == "VALUE = 1\n" and file.stat().st_mode & 0o777 == 0o444
                assert names(layout.builds) == []

    run(main())


def test_a_failed_build_shows_the_installers_words_and_keeps_the_old_version() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                await w.deploy()
                w.node.ok, w.node.output = False, "error: no such package\n"
                error = failed(await w.deploy(NEEDY))
                assert (error["code"], error["output"]) == ("build_failed", ["error: no such package"])
                assert w.live() == ((1, 1.0),) and names(layout.layers) == names(layout.builds) == []
                w.node.ok = True
                assert deployed(await w.deploy(NEEDY)).version == 2

    run(main())


def test_concurrent_deploys_of_one_layer_build_it_once_and_all_see_the_output() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                gate = asyncio.Event()
                w.node.hold = gate.wait()
                deploys = [asyncio.create_task(w.deploy(NEEDY, name=f"f{n}")) for n in range(4)]
                async with asyncio.timeout(10):
                    while not w.node.built or len(w.control.builder._running[w.node.built[0]].listeners) < 4:
                        await asyncio.sleep(0)
                gate.set()
                for events in await asyncio.gather(*deploys):
                    assert deployed(events).version == 1
                assert len(w.node.built) == 1 == len(names(layout.layers))

    run(main())


def test_concurrent_deploys_of_one_name_follow_each_other() -> None:
    running, most = set[int](), [0]

    def judge(prove: link.Prove) -> link.Proved:
        running.add(prove.number)
        most[0] = max(most[0], len(running))
        running.discard(prove.number)
        return proves_everything(prove)

    async def main() -> None:
        with folders() as layout:
            async with world(layout, judge) as w:
                sources = [{"hello.py": f"# {n}\ndef handler(e, c): return {n}\n"} for n in range(6)]
                results = await asyncio.gather(*(w.deploy(source) for source in sources))
                assert sorted(deployed(events).version for events in results) == [1, 2, 3, 4, 5, 6]
                assert w.live() == ((6, 1.0),) and most == [1]
                assert w.control.deployer._locks == {}, "no lock is left behind"

    run(main())


def test_a_deploy_goes_on_when_its_client_leaves() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                async for _ in w.control.deploy(order(layout)):
                    break
                await w.gateway.wait_told(link.FunctionChanged)
                assert w.live() == ((1, 1.0),)

    run(main())


def test_a_gateway_that_is_lost_or_silent_while_it_proves_fails_the_deploy_and_nothing_else() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout, lambda prove: None, init_timeout_seconds=0.1) as w:
                events = asyncio.create_task(w.deploy())
                await w.gateway.wait_told(link.Prove)
                w.gateway.writer.transport.abort()
                assert failed(await events)["code"] == "start_failed"
                assert await w.control.functions.list(("default",)) == []

    run(main())


def test_old_versions_are_forgotten_but_for_those_an_alias_names() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout, versions_kept=2) as w:
                for n in range(5):
                    await w.deploy({"hello.py": f"x = {n}"})
                    if n == 0:
                        await w.control.functions.put_alias("default", "hello", "first", {1: 1.0})
                described = await w.control.functions.describe("default", "hello")
                assert [version.number for version in described.versions] == [1, 4, 5]
                assert len(names(layout.code)) == 5, "folders stay for calls that run"
                now, steady = time.time(), time.monotonic()
                assert await w.control.folders.sweep(now, steady) == []
                assert len(await w.control.folders.sweep(now + 10_000, steady + 10_000)) == 2
                assert names(layout.code) == sorted(version.code_digest for version in described.versions)

    run(main())


def test_a_clock_that_is_put_forward_or_back_takes_no_code_from_calls_that_run() -> None:
    """Grace is time that has passed. After a jump it begins anew, by whichever clock the marks were made."""

    async def main() -> None:
        with folders() as layout:
            async with world(layout, versions_kept=1) as w:
                for n in range(2):
                    await w.deploy({"hello.py": f"x = {n}"})
                sweep, now, steady = w.control.folders.sweep, time.time(), time.monotonic()
                assert await sweep(now, steady) == []
                assert await sweep(now + 1e6, steady + 1) == [], "forward"
                assert await sweep(now - 1e6, steady + 2) == [], "back"
                assert await sweep(now - 1e6 + 500, steady + 502) == []
                assert len(await sweep(now - 1e6 + 1000, steady + 1002)) == 1, "and the time is up all the same"

    run(main())


def test_a_folder_that_a_deploy_needs_is_never_swept() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        with folders() as layout:
            async with world(layout) as w:
                w.node.hold = gate.wait()
                deploy = asyncio.create_task(w.deploy(NEEDY))
                async with asyncio.timeout(10):
                    while not w.node.built:
                        await asyncio.sleep(0)
                now, steady = time.time(), time.monotonic()
                await w.control.folders.sweep(now, steady)
                assert await w.control.folders.sweep(now + 1e9, steady + 1e9) == [] and len(names(layout.code)) == 1
                gate.set()
                assert deployed(await deploy).version == 1

    run(main())


def test_rollback_aliases_and_removal_reach_the_gateways() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                for n in (1, 2, 3):
                    await w.deploy({"hello.py": f"x = {n}"})
                assert (await w.control.functions.rollback("default", "hello", None)).weights == ((2, 1.0),)
                assert (await w.control.functions.rollback("default", "hello", None)).weights == ((1, 1.0),)
                await w.control.functions.rollback("default", "hello", 3)
                await w.control.functions.put_alias("default", "hello", "live", {3: 0.9, 2: 0.1})
                await w.gateway.wait_told(link.FunctionChanged, 7)
                assert w.live() == ((2, 0.1), (3, 0.9))
                assert [version.number for version in w.gateway.functions[("default", "hello")].versions] == [1, 2, 3]
                await w.control.functions.remove("default", "hello")
                await w.gateway.wait_told(link.FunctionRemoved)
                assert w.gateway.functions == {}
                assert deployed(await w.deploy()).version == 4, "numbers go on after a removal"

    run(main())


def test_a_changed_secret_is_streamed_with_every_function_that_uses_it_and_never_stored_plain() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                await w.control.access.put_secret("default", "db", b"plain-value-1")
                await w.deploy(secrets=["db"])
                await w.deploy(name="other")
                assert (await w.gateway.wait_told(link.Prove)).function.secrets == {"db": b"plain-value-1"}
                await w.control.access.put_secret("default", "db", b"plain-value-2")
                changed = await w.gateway.wait_told(link.FunctionChanged, 3)
                assert (changed.function.name, changed.function.secrets) == ("hello", {"db": b"plain-value-2"})
                assert "plain-value" not in repr(changed) + repr(w.control)
                assert deployed(await w.deploy(secrets=["db"])).unchanged
            on_disk = b"".join(path.read_bytes() for path in Path(layout.control).rglob("*") if path.is_file())
            assert b"plain-value" not in on_disk
            assert Path(layout.secret_key).stat().st_mode & 0o777 == 0o600

    run(main())


def test_everything_is_there_again_after_a_restart() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout) as w:
                await w.control.access.put_secret("default", "db", b"value")
                await w.deploy(secrets=["db"])
                before, tokens = w.gateway.functions, w.gateway.tokens
                identity = w.control.installation_id
            async with world(layout) as w:
                assert w.gateway.functions == before and w.gateway.tokens == tokens and len(tokens) == 1
                assert w.control.installation_id == identity
                assert deployed(await w.deploy(secrets=["db"])).unchanged

    run(main())


def test_what_a_crash_left_is_tidied_up_at_the_next_start() -> None:
    async def main() -> None:
        with folders() as layout:
            for folder in (layout.code, layout.layers):
                Path(folder, ".tmp-half").mkdir()
                Path(folder, ".tmp-half", "x").write_text("x")
                Path(folder, ".tmp-half").chmod(0o555)
            Path(layout.builds, "a" * 64).mkdir()
            Path(layout.builds, "upload-x.zip").write_text("x")
            async with world(layout):
                assert names(layout.code) == names(layout.layers) == names(layout.builds) == []

    run(main())


def test_a_ninth_deploy_at_once_is_told_to_come_back() -> None:
    async def main() -> None:
        with folders() as layout:
            async with world(layout, lambda prove: None) as w:
                waiting = [asyncio.create_task(w.deploy(name=f"f{n}")) for n in range(8)]
                await w.gateway.wait_told(link.Prove, 8)
                with pytest.raises(Exception, match="8 deploys") as refusal:
                    w.control.deploy(order(layout))
                assert refusal.value.kind.code == "overloaded"  # type: ignore[attr-defined]
                await w.control.close()
                for events in await asyncio.gather(*waiting):
                    assert failed(events)["code"] == "shutting_down"
                assert names(layout.builds) == []

    run(main())
