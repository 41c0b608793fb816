"""The pieces of the figures: each has its place in the documents, and each subject does on a real platform what its figure counts on."""

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import mixed, overload, registry, stream, warm
from bench.contenders import BODIES, SUBJECTS, Dayfly
from bench.figures import BENCHMARKS
from bench.processes import reset_peak, status_number
from bench.stream import Peer, status_of, whole
from bench.variants import Variant
from tests.e2e.harness import Platform

PERFORMANCE = Path(__file__).parent.parent.parent / "docs" / "performance.md"


def test_every_figure_has_a_name_of_its_own_a_floor_and_its_row_on_the_page() -> None:
    names = [one.name for one in BENCHMARKS]
    assert len(names) == len(set(names))
    lines = PERFORMANCE.read_text().splitlines()
    rows = [line.split("`")[1] for line in lines if line.startswith("| `") and not line.startswith("| `bench/")]
    assert sorted(rows) == sorted(names), "docs/performance.md says of each figure what it means"
    for one in BENCHMARKS:
        assert one.floor and one.about
        assert any(line.startswith(f"| `{one.name}` |") and line.endswith(f"| {one.unit} | {one.floor} |") for line in lines), one.name


@pytest.mark.parametrize("variant", [warm.STRICT, warm.ALONE, *mixed.VARIANTS.values()])
def test_what_a_figure_sets_is_a_setting_of_this_dayfly(variant: Variant) -> None:
    assert not variant.notes()


def test_ten_kilobytes_are_ten_kilobytes() -> None:
    assert len(BODIES["big"]) == pytest.approx(10_240, rel=0.02)


def test_an_answer_is_whole_when_its_length_or_its_last_chunk_is_there() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"
    assert [whole(head + body) for body in (b"", b"ab", b"abc")] == [False, False, True]
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    assert [whole(chunked), whole(chunked + b"0\r\n\r\n")] == [False, True]
    assert [status_of(b""), status_of(b"HTTP/1.1 413 No\r\n")] == [0, 413]


def test_a_server_that_refuses_a_body_before_it_has_come_is_heard() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(b"HTTP/1.1 413 No\r\ncontent-length: 0\r\n\r\n")
                client.recv(4096)

        thread = threading.Thread(target=refuse)
        thread.start()
        address: tuple[str, int] = listener.getsockname()
        status, _ = Peer(address, "/", {}, [], 0).up(50_000_000)
        thread.join(10)
    assert status == 413


def test_the_peak_of_a_process_of_ours_can_be_counted_anew() -> None:
    before = reset_peak(os.getpid())
    held = b"x" * 50_000_000
    assert before > 0
    assert status_number(os.getpid(), "VmHWM") * 1024 - before > len(held) * 0.9
    assert reset_peak(1 << 30) == 0, "a process that is not there has none"


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    with Platform() as running:
        yield running


@pytest.mark.parametrize("kind", ["direct", "proxy", "big"])
def test_each_kind_of_warm_call_is_answered_by_its_handler(platform: Platform, kind: str) -> None:
    platform.put(kind, (SUBJECTS / f"{kind}.py").read_text())
    reply = Dayfly(platform, kind, kind).check()
    assert kind != "big" or len(reply.body) > 10_000


def test_a_mixed_call_waits_as_long_as_it_is_told(platform: Platform) -> None:
    platform.put("mixed", (SUBJECTS / "mixed.py").read_text())
    plan = mixed._plan(platform, 1.0)
    assert [call.label for call in plan.calls] == ["short", "long"]
    answer = platform.invoke("mixed", {"name": "Ada", "seconds": mixed.LONG_SECONDS})
    assert answer.json() == {"greeting": "Hello, Ada!"}
    assert float(answer.headers["server-timing"].split("exec;dur=")[1].split(",")[0]) >= mixed.LONG_SECONDS * 1000


def test_the_subject_of_overload_fails_only_over_its_limit(platform: Platform) -> None:
    source = (SUBJECTS / "counted.py").read_text()
    platform.put("counted", source, concurrency=overload.CONCURRENCY)
    assert f"CONCURRENCY = {overload.CONCURRENCY} " in source
    Dayfly(platform, "counted", "direct").check()
    platform.wait_for("the statistics know of its instance", lambda: overload._instances(platform) >= 1)


def test_a_stream_brings_all_its_bytes_and_a_body_up_is_counted_by_its_handler(platform: Platform) -> None:
    platform.put("streamed", (SUBJECTS / "streamed.py").read_text())
    bearer = {"Authorization": f"Bearer {platform.token}"}
    peer = Peer(platform.address, "/function/streamed", bearer, [platform.pid], platform.roles()["gateway"])
    assert peer.down(1_000_001)[0] == 200
    assert peer.up(1_000_001)[0] == 200
    body = platform.request("POST", "/function/streamed", b"\xff" * 1000, {"Content-Type": "application/octet-stream"}).body
    assert body == b"1000"
    run = stream._run(peer, peer.down, (1_000_000, 2), ("dayfly", notes := {}))
    assert run.errors == 0
    assert list(notes) == ["gateway's memory above before, at most, MB, down"]


def test_a_registered_function_answers_by_its_name_and_by_its_route(platform: Platform) -> None:
    registry._register(platform, 0, 3)
    for request in (registry._by_name(platform, 3), registry._by_route(platform, 3)):
        assert platform.request(request.method, request.path, headers=request.headers).json()["greeting"] == "Hello, Ada!"
