"""The HTTP contract: API Gateway payload format 2.0 in, its answer rules out (facts: lambda.md 3.3, the function URL rows).

The event is built here from the raw head lines (runtime/frames.py), because only this function sees what it remembers of them:
identical heads are parsed once (bounded). Must never let a header through that could split an answer.
Used by instance.py for calls of kind HTTP; contracts/direct.py has the same shape.
"""

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64, unhexlify
from time import gmtime, time

from dayfly.runtime import jsontext
from dayfly.runtime.contracts.headers import block, content_type_of
from dayfly.runtime.failure import Fault, too_large
from dayfly.runtime.frames import META_BYTES_MAX, RESULT_BYTES_MAX
from dayfly.runtime.inbox import Call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from dayfly.runtime.boot import Boot

HEADS_MAX = 16  # remembered
HEAD_BYTES_MAX = 4096  # longer ones are parsed each time
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
JSON_HEAD = b"content-type: application/json\r\n"
TEXT_HEAD = b"content-type: text/plain; charset=utf-8\r\n"
BYTES_HEAD = b"content-type: application/octet-stream\r\n"
TEXT_TYPES = frozenset(
    ("application/json", "application/xml", "application/javascript", "application/x-javascript", "application/x-www-form-urlencoded")
)
STREAM_KEYS = ("statusCode", "headers", "cookies", "multiValueHeaders")
ROUTE = ":route"  # as in frames.ROUTE_LINE
DEFAULT_ROUTE = "$default"
_dumps = jsontext.dumps


def bad_answer(message: str) -> Fault:
    """The handler returned something that is no HTTP answer."""
    return Fault("Runtime.BadAnswer", message)


def unquote(text: str) -> str:
    """Percent-decoding of a query's name or value, '+' being a space; what is no valid escape stays as it is."""
    return unescape(text.replace("+", " "))


def unescape(text: str) -> str:
    """Percent-decoding alone."""
    if "%" not in text:
        return text
    first, *rest = text.encode().split(b"%")
    parts = [first]
    for piece in rest:
        try:
            parts.append(unhexlify(piece[:2]) + piece[2:] if len(piece) >= 2 else b"%" + piece)
        except Base64Error:
            parts.append(b"%" + piece)
    return b"".join(parts).decode("utf-8", "replace")


def query_parameters(raw: str) -> dict[str, str]:
    """`a=1&a=2&b` → {"a": "1,2", "b": ""}."""
    found: dict[str, str] = {}
    for pair in raw.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            name, value = unquote(name), unquote(value)
            found[name] = f"{found[name]},{value}" if name in found else value
    return found


def path_parameters(route_key: str, path: str) -> dict[str, str]:
    """`GET /users/{id}/{rest+}` and `/users/7/a%20b/c` → {"id": "7", "rest": "a b/c"}. The gateway has matched the two."""
    found: dict[str, str] = {}
    given = path.split("/")
    for at, segment in enumerate(route_key.partition(" ")[2].split("/")):
        if segment.startswith("{"):
            name = segment[1:-1]
            if name.endswith("+"):
                found[name[:-1]] = unescape("/".join(given[at:]))
            else:
                found[name] = unescape(given[at])
    return found


def port_of(host: str, scheme: str) -> str:
    """The port that the client used: of a Host header, or the scheme's."""
    port = host.rpartition(":")[2]
    return port if port != host and port.isdigit() else "443" if scheme == "https" else "80"


def is_text(content_type: str, content_encoding: str) -> bool:
    """Whether a request's body reaches the handler as text; others as base64."""
    kind = content_type.partition(";")[0].strip().lower()
    if content_encoding and content_encoding != "identity":
        return False
    return kind.startswith("text/") or kind in TEXT_TYPES or kind.endswith(("+json", "+xml"))


class Head:
    """The parts of an event that are the same for every request with this head. What user code may change is copied per call."""

    __slots__ = ("cookies", "domain", "domain_prefix", "headers", "http", "parameters", "path", "query", "query_string", "route", "text")

    def __init__(self, meta: bytes) -> None:
        try:
            text = meta.decode()
        except UnicodeDecodeError:
            text = meta.decode("latin-1")
        method, self.path, self.query_string, peer, scheme, *lines = text.split("\n")
        headers: dict[str, str] = {}
        cookies: list[str] = []
        for line in lines:
            name, _, value = line.partition(": ")
            if name == "cookie":
                cookies += [part for cookie in value.split(";") if (part := cookie.strip())]
            else:
                headers[name] = f"{headers[name]},{value}" if name in headers else value
        self.route = route = headers.pop(ROUTE, DEFAULT_ROUTE)
        self.parameters = path_parameters(route, self.path) if "{" in route else None
        get = headers.get
        self.domain = get("x-forwarded-host") or get("host", "")
        headers.setdefault("x-forwarded-for", peer)
        headers.setdefault("x-forwarded-proto", scheme)
        headers.setdefault("x-forwarded-host", self.domain)
        headers.setdefault("x-forwarded-port", port_of(self.domain, scheme))
        self.headers = headers
        self.cookies = cookies
        self.query = query_parameters(self.query_string) if self.query_string else None
        self.text = is_text(get("content-type", ""), get("content-encoding", ""))
        self.domain_prefix = self.domain.partition(".")[0].partition(":")[0]
        self.http = {
            "method": method,
            "path": self.path,
            "protocol": "HTTP/1.1",
            "sourceIp": peer,
            "userAgent": get("user-agent", ""),
        }


class HttpContract:
    """How an HTTP call's event and answer look."""

    error_status = 502

    def __init__(self, boot: "Boot") -> None:
        self._function = boot.function
        self._heads: dict[bytes, Head] = {}
        self._second = -1
        self._time_text = ""

    def _head(self, meta: bytes) -> Head:
        head = self._heads.get(meta)
        if head is None:
            head = Head(meta)
            if len(meta) <= HEAD_BYTES_MAX:
                if len(self._heads) >= HEADS_MAX:
                    self._heads.clear()
                self._heads[meta] = head
        return head

    def _time(self, second: int) -> str:
        if second != self._second:
            t = gmtime(second)
            month = MONTHS[t.tm_mon - 1]
            self._time_text = f"{t.tm_mday:02}/{month}/{t.tm_year}:{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} +0000"
            self._second = second
        return self._time_text

    def event(self, call: Call) -> "dict[str, Any]":
        """The handler's first argument. `cookies`, `queryStringParameters`, `pathParameters` and `body` are absent when there
        are none, as from AWS."""
        head = self._head(call.meta)
        now = time()
        event: dict[str, Any] = {
            "version": "2.0",
            "routeKey": head.route,
            "rawPath": head.path,
            "rawQueryString": head.query_string,
        }
        if head.cookies:
            event["cookies"] = head.cookies.copy()
        event["headers"] = head.headers.copy()
        if head.query:
            event["queryStringParameters"] = head.query.copy()
        event["requestContext"] = {
            "accountId": "anonymous",
            "apiId": self._function,
            "domainName": head.domain,
            "domainPrefix": head.domain_prefix,
            "http": head.http.copy(),
            "requestId": call.id,
            "routeKey": head.route,
            "stage": "$default",
            "time": self._time(int(now)),
            "timeEpoch": int(now * 1000),
        }
        if head.parameters:
            event["pathParameters"] = head.parameters.copy()
        is_base64 = False
        body = call.body
        if body:
            event["body"], is_base64 = body_text(body, head.text)
        event["isBase64Encoded"] = is_base64
        return event

    def client_context(self, call: Call) -> bytes:
        """There is none over HTTP."""
        return b""

    def answer(self, result: object) -> tuple[int, bytes, bytes]:
        """(status, header block, body). Raises Fault Runtime.BadAnswer, Runtime.MarshalError, Function.ResponseSizeTooLarge."""
        status, head = 200, JSON_HEAD
        if isinstance(result, dict):
            if "statusCode" in result:
                status, head, body = _from_dict(result)
            else:
                body = _dumps(result)
        elif isinstance(result, str):
            body = _encoded(result)
        elif isinstance(result, bytes | bytearray):
            head, body = BYTES_HEAD, bytes(result)
        else:
            body = _dumps(result)
        if len(body) > RESULT_BYTES_MAX:
            raise too_large()
        return status, head, body

    def head(self, first: object) -> tuple[int, bytes, bytes]:
        """A stream begins: a prelude dict (statusCode, headers, cookies; no body), or its first chunk. Raises Fault Runtime.BadAnswer."""
        if not isinstance(first, dict):
            return 200, TEXT_HEAD if isinstance(first, str) else BYTES_HEAD, self.chunk(first)
        if not first or any(key not in STREAM_KEYS for key in first):
            raise bad_answer(f"A stream's first item may have {', '.join(STREAM_KEYS)} and nothing else.")
        status = _status(first.get("statusCode", 200))
        return status, _head_block(first, TEXT_HEAD), b""

    def chunk(self, item: object) -> bytes:
        """One yielded item as bytes. Raises Fault Runtime.BadAnswer."""
        if isinstance(item, str):
            return _encoded(item)
        if isinstance(item, bytes | bytearray | memoryview):
            return bytes(item)
        raise bad_answer(f"A streamed chunk must be str or bytes, not {type(item).__name__}.")


def body_text(body: bytes, text: bool) -> tuple[str, bool]:
    """A body as an event has it, and whether that is base64."""
    if text:
        try:
            return str(body, "utf-8"), False
        except UnicodeDecodeError:
            pass  # another charset, or not the type it says: bytes must arrive whole
    return b2a_base64(body, newline=False).decode("ascii"), True


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _status(value: object) -> int:
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 200 <= value <= 599:
        raise bad_answer(f"statusCode must be a number from 200 to 599, not {str(value)[:40]!r}.")
    return value


def _head_block(answer: "dict[str, Any]", default_type: bytes) -> bytes:
    headers, multi, cookies = answer.get("headers"), answer.get("multiValueHeaders"), answer.get("cookies")
    if not headers and not multi and not cookies:
        return default_type
    try:
        lines = block(headers or {}, multi or {}, cookies or ())
    except ValueError as error:
        raise bad_answer(str(error)) from None
    if not content_type_of(headers, multi):
        lines = default_type + lines
    if len(lines) > META_BYTES_MAX:
        raise bad_answer(f"The answer's headers are over {META_BYTES_MAX} bytes.")
    return lines


def _from_dict(answer: "dict[str, Any]") -> tuple[int, bytes, bytes]:
    status = _status(answer["statusCode"])
    head = _head_block(answer, JSON_HEAD)
    body = answer.get("body")
    if body is None:
        return status, head, b""
    if isinstance(body, bytes | bytearray):
        return status, head, bytes(body)
    if not isinstance(body, str):
        return status, head, _dumps(body)
    if not answer.get("isBase64Encoded"):
        return status, head, _encoded(body)
    try:
        return status, head, a2b_base64("".join(body.split()), strict_mode=True)
    except ValueError as error:
        raise bad_answer(f"body is not valid base64: {error}") from None
