"""The command line's HTTP client: one connection, JSON and NDJSON, errors of the API as `Failure`.

http.client, because importing it costs a quarter of what httpx costs (measured: 19 against 76 ms), and a command that feels
instant is worth thirty lines here. It must never follow a redirect (a token would go with it) and never print a token.
"""

import http.client
import json
import socket
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from dayfly import __version__
from dayfly.cli.failure import EXIT_PLATFORM, Failure, refused, unreachable
from dayfly.cli.profile import Profile

TIMEOUT_SECONDS = 30.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024
LINE_BYTES_MAX = 8 * 1024 * 1024  # a result of a function may have 6 MB


class Answer:
    """Status, lower-case headers and body of one answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def check(self) -> None:
        """Raise the API's error as a Failure unless this is a 2xx answer."""
        if self.status >= 300:
            raise refused(error_of(self.body), self.status)


class Client:
    """Talks to one platform. Not shared between threads. Closed by `close`, reopened when needed."""

    def __init__(self, profile: Profile, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self.profile = profile
        self.timeout_seconds = timeout_seconds
        self._connection: http.client.HTTPConnection | None = None

    def json(self, method: str, path: str, *, query: dict[str, Any] | None = None, body: object = None) -> Any:
        """Send JSON, get JSON. Raises Failure for anything but a 2xx answer."""
        raw = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if raw is not None else {}
        answer = self.send(method, path, query=query, body=raw, headers=headers)
        answer.check()
        if not answer.body:
            return {}
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise _strange(self.profile.url) from error

    def send(
        self, method: str, path: str, *, query: dict[str, Any] | None = None, body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        """One request, the whole answer. Raises Failure when nobody answers."""
        response = self._request(method, path, query, body, headers or {})
        try:
            data = response.read(ANSWER_BYTES_MAX + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise unreachable(self.profile.url, f"the answer broke off: {_why(error)}") from error
        if len(data) > ANSWER_BYTES_MAX:
            self.close()
            raise Failure(f"The answer is over {ANSWER_BYTES_MAX} bytes.", "Ask for less.", exit_code=EXIT_PLATFORM)
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, data)

    def lines(
        self, method: str, path: str, *, query: dict[str, Any] | None = None, body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """NDJSON, object by object, as it arrives. Waits without limit between lines: a quiet log is no error."""
        response = self._request(method, path, query, body, headers or {})
        if response.status >= 300:
            raise refused(error_of(response.read(LINE_BYTES_MAX)), response.status)
        if self._connection is not None and self._connection.sock is not None:
            self._connection.sock.settimeout(None)
        try:
            while raw := response.readline(LINE_BYTES_MAX):
                if raw.strip():
                    value = json.loads(raw)
                    if isinstance(value, dict):
                        yield value
        except ValueError as error:
            raise _strange(self.profile.url) from error
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self.profile.url, f"the stream broke off: {_why(error)}") from error
        finally:
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _request(
        self, method: str, path: str, query: dict[str, Any] | None, body: bytes | Iterable[bytes] | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        target = path + ("?" + urlencode(present) if (present := {k: v for k, v in (query or {}).items() if v not in (None, "")}) else "")
        head = {"User-Agent": f"dayfly/{__version__}", "Accept": "application/json, application/x-ndjson"} | headers
        if self.profile.token:
            head["Authorization"] = f"Bearer {self.profile.token}"
        connection = self._connection or self._open()
        self._connection = connection
        try:
            connection.request(method, target, body=body, headers=head)
            return connection.getresponse()
        except (BrokenPipeError, ConnectionResetError) as error:
            # A server that refuses an upload may answer and close before it has read everything: that answer says why.
            early = self._early_answer(connection)
            self.close()
            if early is not None:
                raise refused(error_of(early.body), early.status) from error
            raise unreachable(self.profile.url, _why(error)) from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise unreachable(self.profile.url, _why(error)) from error
        except ValueError as error:  # a control character in a token or an address
            self.close()
            raise Failure(f"The request cannot be sent: {error}.", "Look for stray characters in --token, --url and names.") from error

    def _early_answer(self, connection: http.client.HTTPConnection) -> Answer | None:
        if connection.sock is None:
            return None
        try:
            response = http.client.HTTPResponse(connection.sock)
            response.begin()
            return Answer(response.status, {}, response.read(LINE_BYTES_MAX))
        except (OSError, http.client.HTTPException):
            return None

    def _open(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.profile.url)
        host = parts.hostname or ""
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(host, parts.port, timeout=self.timeout_seconds)
        try:
            connection.connect()
        except OSError as error:
            raise unreachable(self.profile.url, _why(error)) from error
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def function_path(name: str, *rest: str) -> str:
    """`/api/v1/functions/NAME[/…]` with every part quoted."""
    return "/".join(["/api/v1/functions", quote(name, safe=""), *(quote(part, safe="") for part in rest)])


def error_of(body: bytes) -> dict[str, object]:
    """The object below "error", or {} when the body is something else (a proxy's page)."""
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    error = value.get("error") if isinstance(value, dict) else None
    return error if isinstance(error, dict) else {}


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _strange(url: str) -> Failure:
    return Failure(
        f"{url} answered with something that is not Dayfly's.", "Check --url: is another program listening there?", exit_code=EXIT_PLATFORM
    )
