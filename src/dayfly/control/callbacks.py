"""HTTP callbacks: who asked to be told how a call ended is told, once it is written down that he shall be.

A URL is a stranger's: the name is resolved here, every address must be one that anybody on the Internet may reach (or a range that the
administrator allows), and the connection goes to the address that was looked at and to no other. Redirects are not followed, the answer
is read to a bound and thrown away, and everything has a time. What is sent is signed (HMAC-SHA256 of timestamp and body, with a key of the
namespace's own), so that the receiver can tell who says it. Whether a failed one is tried again is core/decide/retry.py's decision.
HTTP is httpcore's, which is installed with litestar; called by control/leasing.py.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import msgspec

from dayfly import __version__
from dayfly.control.settling import Callback, Hand
from dayfly.control.vault import Vault
from dayfly.core.decide.callback import allowed_ranges, may_call
from dayfly.core.model.durable import Ran, split_lane
from dayfly.core.model.settings import Settings
from dayfly.core.wire.durable import retry_after

ANSWER_BYTES_MAX = 64 * 1024
ADDRESSES_MAX = 8
IDLE_SECONDS = 5.0
SIGNATURE = "v1"
_decode = msgspec.msgpack.Decoder(Callback).decode
_OURS = frozenset(("host", "content-length", "transfer-encoding", "connection", "content-type", "user-agent", "te", "trailer", "upgrade"))


class NotAllowed(Exception):
    """The URL leads where callbacks may not go."""


class Pinned(httpcore.AsyncNetworkBackend):
    """Connects only to addresses that were looked at: the name is resolved once, here."""

    def __init__(self, ranges: tuple[Any, ...]) -> None:
        self._ranges = ranges
        self._below = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  (httpcore's signature)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))[:ADDRESSES_MAX]
        good = [address for address in addresses if may_call(ipaddress.ip_address(address.partition("%")[0]), self._ranges)]
        if len(good) < len(addresses) or not good:
            raise NotAllowed(f"{host} leads to an address that callbacks may not reach (callback_allow).")
        last: Exception | None = None
        for address in good:
            try:
                return await self._below.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        assert last is not None
        raise last

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Callbacks:
    """Makes callbacks; one connection pool for all of them."""

    def __init__(self, settings: Settings, vault: Vault) -> None:
        self._settings, self._vault = settings, vault
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._turn = asyncio.Semaphore(settings.callback_concurrency)

    def key(self, namespace: str) -> str:
        """What a namespace's callbacks are signed with, as text."""
        return self._vault.derived(f"callback/{namespace}").hex()

    async def run(self, hand: Hand, body: bytes) -> Ran:
        """One attempt."""
        order = _decode(hand.stored.meta)
        async with self._turn:  # its time begins when it is its turn
            began = time.time()
            outcome, code, detail, status, after = await self._attempt(split_lane(hand.lane)[0], order, body)
        return Ran(
            id=hand.id,
            epoch=hand.epoch,
            outcome=outcome,  # type: ignore[arg-type]
            code=code,
            detail=detail,
            status=status,
            retry_after_seconds=after,
            began_at=began,
            ended_at=time.time(),
        )

    async def _attempt(self, namespace: str, order: Callback, body: bytes) -> tuple[str, str, str, int, float]:
        """(outcome, code, detail, status, retry after)."""
        try:
            async with asyncio.timeout(self._settings.callback_timeout_seconds):
                status, after = await self._send(namespace, order, body)
        except NotAllowed as error:
            return "gone", "callback_not_allowed", str(error), 0, 0.0
        except TimeoutError:
            return "error", "callback_failed", "No answer within callback_timeout_seconds.", 0, 0.0
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.UnsupportedProtocol) as error:
            return "error", "callback_failed", f"{type(error).__name__}: {error}"[:500], 0, 0.0
        except (ValueError, UnicodeError) as error:
            return "gone", "callback_failed", f"The URL cannot be called: {error}"[:500], 0, 0.0
        except Exception as error:  # whatever else a library raises must not keep the lease
            return "error", "callback_failed", f"{type(error).__name__}: {error}"[:500], 0, 0.0
        if 200 <= status < 300:
            return "ok", "", "", status, 0.0
        if 300 <= status < 400:
            return "error", "callback_failed", f"It answered {status}; redirects are not followed.", status, 0.0
        return "error", "callback_failed", f"It answered {status}.", status, after

    async def _send(self, namespace: str, order: Callback, body: bytes) -> tuple[int, float]:
        stamp = str(int(time.time()))
        signature = hmac.new(bytes.fromhex(self.key(namespace)), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
        headers = [(name, value) for name, value in order.headers if name.lower() not in _OURS]
        headers += [
            ("Content-Type", order.content_type),
            ("Content-Length", str(len(body))),
            ("User-Agent", f"dayfly/{__version__}"),
            ("X-Dayfly-Call-Id", order.call_id),
            ("X-Dayfly-Timestamp", stamp),
            ("X-Dayfly-Signature", f"{SIGNATURE}={signature}"),
        ]
        url = httpcore.URL(order.url)
        head = [(b"Host", _host(url)), *((name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers)]
        async with self._connections().stream("POST", url, headers=head, content=body) as response:
            size = 0
            async for chunk in response.aiter_stream():
                size += len(chunk)
                if size > ANSWER_BYTES_MAX:
                    break  # nobody reads it; the connection is closed with the rest unread
            return response.status, retry_after(response.headers) if response.status in (429, 503) else 0.0

    def _connections(self) -> httpcore.AsyncConnectionPool:
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=ssl.create_default_context(),
                max_connections=self._settings.callback_concurrency,
                max_keepalive_connections=0,  # each is resolved and looked at anew
                keepalive_expiry=IDLE_SECONDS,
                network_backend=Pinned(allowed_ranges(self._settings.callback_allow)),
            )
        return self._pool

    async def close(self) -> None:
        """No more."""
        if self._pool is not None:
            await self._pool.aclose()


def _host(url: httpcore.URL) -> bytes:
    default = {b"http": 80, b"https": 443}.get(url.scheme)
    host = b"[%b]" % url.host if b":" in url.host else url.host
    return host if url.port in (None, default) else b"%b:%d" % (host, url.port)
