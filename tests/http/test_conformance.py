"""Every case of the corpus against a whole gateway: what is answered, whether the connection is kept, what the function saw."""

import asyncio
from pathlib import Path

import pytest
import uvloop

from dayfly.testing.provider import TakenCall
from tests.gateway.rig import Rig, function, gateway
from tests.http.answers import Answer, split
from tests.http.case import PROBE, Case
from tests.http.corpus import CASES


async def send(port: int, raw: bytes, *, half_close: bool = False) -> bytes:
    """Send everything at once, read until the server closes. A server that resets has closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(raw)
        if half_close:
            writer.write_eof()
        received = b""
        while chunk := await asyncio.wait_for(reader.read(1 << 20), 10):
            received += chunk
        return received
    finally:
        writer.close()


def check_answers(case: Case, answers: list[Answer]) -> None:
    """Statuses in order, the probe's last when the connection is kept; refusals in the platform's form, and announced as the last."""
    expected = (*case.answers, 200) if case.kept and case.whole else case.answers
    assert tuple(answer.status for answer in answers) == expected, answers
    for answer in answers:
        assert answer.status < 200 or "date" in answer.headers
        if answer.status >= 400:
            assert answer.body.startswith(b'{"error"') and answer.headers["content-type"] == "application/json"
        assert answer.status != 405 or "GET" in answer.headers["allow"]
    if answers and not case.kept and case.whole:
        assert answers[-1].headers["connection"] == "close"


def check_calls(case: Case, calls: list[TakenCall]) -> None:
    """What the functions saw is what was sent, and nothing of what was refused."""
    calls = [call for call in calls if b"\nprobe\n" not in call.meta]
    if not case.ours:
        assert len(calls) == case.answers.count(200)
    if case.bodies is not None:
        assert tuple(call.body for call in calls) == case.bodies
    if case.lines or case.without:
        lines = calls[0].meta.split(b"\n")
        assert not [line for line in case.lines if line not in lines], lines
        names = {line.partition(b":")[0] for line in lines[5:]}
        assert not names & set(case.without), lines


def calls_of(rig: Rig) -> list[TakenCall]:
    """Every call so far, in the order in which instances took them."""
    return sorted((call for instance in rig.behaviour.instances for call in instance.calls), key=lambda call: call.seq)


@pytest.mark.parametrize("name", CASES)
def test_the_corpus_is_answered_as_the_rfcs_say(name: str) -> None:
    case = CASES[name]

    async def main() -> None:
        async with gateway(half_closed_seconds=20) as rig:  # a busy machine starts even a fake instance slowly
            rig.serve(function())
            raw = await send(rig.port, case.raw + PROBE if case.whole else case.raw, half_close=not case.whole)
            check_answers(case, split(raw, case.heads))
            check_calls(case, calls_of(rig))

    uvloop.run(asyncio.wait_for(main(), 30))


def test_the_page_of_differences_is_of_this_corpus(repository: Path) -> None:
    """Who adds a case takes the table again: scripts/http-compare. A case served here alone has its reason there."""
    text = (repository / "docs/http.md").read_text(encoding="utf-8")
    assert f"\nOf {len(CASES)} cases " in text
    lax = text.partition("#### Served here")[2].partition("####")[0].splitlines()
    rows = [line.split(" | ") for line in lax if line.startswith("| ") and "§" in line]
    assert rows and all(len(row[-1].strip(" |")) > 10 for row in rows)


def test_the_corpus_has_what_it_promises() -> None:
    assert len(CASES) >= 150
    assert all(case.section.startswith(("§", "9110 §", "6265 §", "7239 §")) for case in CASES.values())
