"""Telling other processes that something was put (PostgreSQL's NOTIFY), seldom, and hearing of it.

A hint may be missed: it saves waiting, no more. With SQLite there is one process, whose own writer knows what it put.
"""

import time
from typing import Any

import psycopg

from dayfly.store.durable_postgres import Tx, connect
from dayfly.store.server import Server

CHANNEL = "dayfly_queue"
HINT_SECONDS = 0.02  # at most one NOTIFY in so long: each one makes all commits of the database stand in line
ECHO_SECONDS = 0.03  # a listener looks once more so long after a hint: what was put meanwhile was not announced


class Announcer:
    """Says that something was put, with the transaction that puts it, if the last time is long enough ago."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def announce(self, tx: Tx) -> None:
        now = time.monotonic()
        if now - self._last >= HINT_SECONDS:
            self._last = now
            tx.execute(f"NOTIFY {CHANNEL}")


class PostgresHints:
    """Tells a thread of another process when something was put, on a connection of its own. A hint may be missed (the server
    restarted, a slow commit): whoever waits looks again after its own time, at the latest."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection: psycopg.Connection[Any] | None = None
        self._echo = 0.0  # when to look once more, on the monotonic clock; 0: not

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for a hint; True: look now. After a hint the next wait ends ECHO_SECONDS later by itself. Raises Refusal data_unusable."""
        try:
            connection = self._open()
            pause = min(timeout_seconds, max(0.0, self._echo - time.monotonic())) if self._echo else timeout_seconds
            heard = any(True for _ in connection.notifies(timeout=pause, stop_after=1))
        except psycopg.Error as error:
            self.close()
            raise self._server.refusal(error) or error from error
        if heard:
            self._echo = time.monotonic() + ECHO_SECONDS
            return True
        echoed = bool(self._echo) and time.monotonic() >= self._echo
        if echoed:
            self._echo = 0.0
        return echoed

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            self._connection = connect(self._server)
            self._connection.execute(f"LISTEN {CHANNEL}")
            self._echo = time.monotonic()  # what was put before we listened
        return self._connection
