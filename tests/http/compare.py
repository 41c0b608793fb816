"""The corpus against other servers: the table in docs/http.md. `scripts/http-compare` brings them and calls this; no test needs it.

A row is a case that somebody answers otherwise than Dayfly: served where we refuse, refused where we serve, another number of answers.
Where we serve what another refuses there must be a reason below (REASONS); without one this ends with an error.
"""

import asyncio
import contextlib
import datetime
import sys
from collections.abc import Iterable
from pathlib import Path

import httptools

from dayfly.testing.provider import Behaviour, FakeAnswer, TakenCall
from tests.gateway.rig import function, gateway
from tests.http import others
from tests.http.answers import Answer, Broken, split
from tests.http.case import PROBE, Case
from tests.http.corpus import ALL

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "http.md"
BEGIN, END = "<!-- written by scripts/http-compare: begin -->\n", "<!-- written by scripts/http-compare: end -->\n"
SILENCE_SECONDS = 2.5  # all of them have said by then that a request is too slow

BEHIND = "the request is whole and the last; aiohttp holds against it what comes behind"
LINES = "§2.2 asks servers to skip empty lines; h11 does not"
REASONS: dict[str, str] = {  # why Dayfly serves what another refuses
    "absolute-form wins over Host": "§3.2.2: the Host beside it is ignored, so the two need not agree; functions see one host",
    "HTTP/1.0 closes": BEHIND,
    "HTTP/1.0 needs no Host": BEHIND,
    "HTTP/1.0 with a body": BEHIND,
    "close among other words": BEHIND,
    "closed when asked to": BEHIND,
    "nothing behind close is answered": BEHIND,
    "100-continue in HTTP/1.0 is ignored": BEHIND,
    "an empty line before a request": LINES,
    "empty lines between requests": LINES,
    "two spaces are one": "§3 lets a recipient split at white space; a target with a space in it is refused either way",
    "an empty Host is allowed": "§3.2: a client without an authority to name sends it empty",
    "an upgrade nobody speaks is ignored": "9110 §7.8; HAProxy wants a websocket's key",
    "a length and white space": "§5.1: white space around a value is space or tab; nginx strips spaces alone",
    "trailers make nobody somebody": "they are read away, not merged; aiohttp counts a Host among them as a second one",
    "a client that sends no more is answered": "docs/decisions/0015-half-closed.md",
    "a client that sends no more is answered everything": "docs/decisions/0015-half-closed.md",
}


async def echo(call: TakenCall) -> FakeAnswer:
    """The target that the function saw."""
    _, path, query = call.meta.split(b"\n", 3)[:3]
    return FakeAnswer(path + b"?" + query)


async def ask(port: int, case: Case) -> str:
    """What a server makes of a case, in a word or two: statuses; '×' is closed without an answer, '…' neither answered nor closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent, end = b"", ""
    try:
        writer.write(case.raw + PROBE if case.whole else case.raw)
        if not case.whole:
            writer.write_eof()
        while chunk := await asyncio.wait_for(reader.read(1 << 20), SILENCE_SECONDS):
            sent += chunk
    except TimeoutError:
        end = " …"
    except ConnectionError:
        end = ""
    finally:
        writer.close()
        with contextlib.suppress(Exception):
            await writer.wait_closed()
    try:
        answers = split(sent, case.heads)
    except Broken:
        return "400" if sent.lstrip().lower().startswith(b"<html") else "?"  # nginx answers some garbage without a head, as HTTP/0.9
    return (said(answers) or "×" * (not end)) + end


def said(answers: list[Answer]) -> str:
    """Statuses of what the case itself made; the probe's answer is nobody's concern."""
    return " ".join(str(a.status) for a in answers if a.status >= 200 and b"probe" not in a.body)


def serves(word: str) -> bool:
    """Whether everything of it was answered as if nothing were wrong."""
    return bool(word) and all(part in ("200", "404") for part in word.split())


def mode(word: str) -> object:
    return len(word.split()) if serves(word) else False


async def collect(servers: list[others.Server]) -> dict[str, list[str]]:
    """Case → what each server makes of it, ours first."""
    found: dict[str, list[str]] = {}
    async with gateway(Behaviour(echo), header_timeout_seconds=1, body_timeout_seconds=1, idle_timeout_seconds=1) as rig:
        rig.serve(function())
        for case in ALL:
            if case.ours:
                continue
            words = await asyncio.gather(*(ask(port, case) for port in (rig.port, *(server.port for server in servers))))
            found[case.name] = list(words)
    return found


def rows(found: dict[str, list[str]]) -> Iterable[tuple[Case, list[str]]]:
    """The cases on which somebody disagrees with us."""
    for case in ALL:
        words = found.get(case.name)
        if words and len({mode(word) for word in words}) > 1:
            yield case, words


def laxer(words: list[str]) -> bool:
    return serves(words[0]) and not all(serves(word) for word in words[1:])


def page_part(servers: list[others.Server], found: dict[str, list[str]]) -> str:
    """Counts and table, as docs/http.md has them."""
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    different = list(rows(found))
    names = ", ".join(server.name for server in servers)
    lax, strict = [r for r in different if laxer(r[1])], [r for r in different if not laxer(r[1])]
    heads = " | ".join(server.name.split(" ")[0] for server in servers)
    out = [
        f"{day}, httptools {httptools.__version__}, beside {names}.",
        f"Of {len(ALL)} cases {len(found)} are no matter of our own limits; on {len(found) - len(different)} of these all five agree.",
        "",
        f"#### Served here, refused elsewhere ({len(lax)})",
        "",
        f"| case | RFC | Dayfly | {heads} | why |",
        "|---|---|---|" + "---|" * (len(servers) + 1),
        *(f"| {cell(case.name)} | {case.section} | {' | '.join(words)} | {REASONS.get(case.name, '')} |" for case, words in lax),
        "",
        f"#### Refused here, served elsewhere, or answered another number of times ({len(strict)})",
        "",
        f"| case | RFC | Dayfly | {heads} |",
        "|---|---|---|" + "---|" * len(servers),
        *(f"| {cell(case.name)} | {case.section} | {' | '.join(words)} |" for case, words in strict),
        "",
    ]
    return "\n".join(out)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace("`", "'")


async def main(folder: Path, python: str, root: Path) -> int:
    """Ask everybody, write the page. 1 when something that only we serve has no reason."""
    server = await asyncio.start_server(others.origin, "127.0.0.1", 0)
    with others.running(folder, python, root, server.sockets[0].getsockname()[1]) as servers:
        found = await collect(servers)
    server.close()
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + page_part(servers, found) + END + rest.partition(END)[2], encoding="utf-8")
    unexplained = [case.name for case, words in rows(found) if laxer(words) and case.name not in REASONS]
    for name in unexplained:
        print(f"no reason in tests/http/compare.py for serving: {name}: {found[name]}", file=sys.stderr)
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))))
