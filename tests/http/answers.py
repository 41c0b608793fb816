"""Answers of an HTTP/1.1 server taken apart strictly: a client that trusts nobody. Used by the corpus, the fuzzer and the comparison."""

from dataclasses import dataclass, field


class Broken(Exception):
    """The bytes are no sequence of whole answers."""


@dataclass(frozen=True)
class Answer:
    """One answer; interim ones (1xx) are answers, too."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def split(raw: bytes, heads: tuple[int, ...] = ()) -> list[Answer]:
    """Everything a server sent until it closed. `heads` says which final answers are to HEAD. Raises Broken."""
    answers: list[Answer] = []
    final = 0
    while raw:
        answer, raw = _one(raw, final in heads)
        answers.append(answer)
        final += answer.status >= 200
    return answers


def _one(raw: bytes, to_head: bool) -> tuple[Answer, bytes]:
    head, end, rest = raw.partition(b"\r\n\r\n")
    if not end or not head.startswith(b"HTTP/1."):
        raise Broken(f"no head: {raw[:80]!r}")
    lines = head.decode("latin-1").split("\r\n")
    try:
        status = int(lines[0].split(" ")[1])
    except (ValueError, IndexError):
        raise Broken(f"no status: {lines[0]!r}") from None
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if to_head or status < 200 or status in (204, 304):
        return Answer(status, headers), rest
    if headers.get("transfer-encoding") == "chunked":
        body, rest = _chunks(rest)
    elif "content-length" in headers:
        length = int(headers["content-length"])
        if len(rest) < length:
            raise Broken(f"{length} bytes were promised, {len(rest)} came")
        body, rest = rest[:length], rest[length:]
    else:
        body, rest = rest, b""
    return Answer(status, headers, body), rest


def _chunks(rest: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, end, rest = rest.partition(b"\r\n")
        if not end:
            raise Broken("a stream was cut")
        length = int(size, 16)
        body += rest[:length]
        if rest[length : length + 2] != b"\r\n":
            raise Broken("a chunk has no end")
        rest = rest[length + 2 :]
        if length == 0:
            return body, rest
