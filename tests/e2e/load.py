"""Light load with a strict accountant: threads with keep-alive connections that count what became of every single request.

A request is either answered once, whole, or its connection failed cleanly (reset, closed before an answer began). What a function
returns holds the call's id, so that an answer to somebody else's request, or a second answer, is found. Used by tests of deploys
under load and of bad days.
"""

import http.client
import itertools
import json
import threading
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.e2e.harness import Platform

# Answers with the id it was called with and its own version.
ECHO = """
import os
VERSION = {version}
def handler(event, context):
    return {{"id": context.aws_request_id, "version": VERSION, "sent": event["sent"]}}
"""

_serials = itertools.count(1)  # call ids never repeat within a session


@dataclass
class Load:
    """`with Load(platform, "echo") as load:` calls until the body ends. Afterwards `statuses`, `versions`, `broken`, `wrong` tell."""

    platform: Platform
    name: str
    threads: int = 4
    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[Any] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)  # connections that failed, by exception
    wrong: list[str] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self._serial = next(_serials)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._running = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(self.threads)]

    def __enter__(self) -> Self:
        for thread in self._running:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        for thread in self._running:
            thread.join(90)
            assert not thread.is_alive(), "a request neither was answered nor did its connection fail"

    @property
    def answered(self) -> int:
        """Good answers so far."""
        return self.statuses[200]

    @property
    def accounted(self) -> int:
        return sum(self.statuses.values()) + sum(self.broken.values())

    def wait_answers(self, more: int = 20) -> None:
        """Until so many more good answers have come."""
        goal = self.answered + more
        self.platform.wait_for(f"{more} more good answers; so far {self}", lambda: self.answered >= goal, seconds=40)

    def _run(self, number: int) -> None:
        connection, count = http.client.HTTPConnection(*self.platform.address, timeout=60), 0
        while not self._over.is_set():
            count += 1
            identity = f"load-{self._serial}-{number}-{count}"
            try:
                self._call(connection, identity)
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                with self._lock:
                    self.broken[type(error).__name__] += 1
                self._over.wait(0.005)  # the port may be without anybody for a moment
        connection.close()

    def _call(self, connection: http.client.HTTPConnection, identity: str) -> None:
        headers = {"Authorization": f"Bearer {self.platform.token}", "X-Call-Id": identity, "Content-Type": "application/json"}
        with self._lock:
            self.sent += 1
        connection.request("POST", f"/api/v1/functions/{self.name}/invoke", json.dumps({"sent": identity}), headers)
        answer = connection.getresponse()
        body = answer.read()
        with self._lock:
            self._note(answer, body, identity)

    def _note(self, answer: http.client.HTTPResponse, body: bytes, identity: str) -> None:
        if answer.status != 200 or answer.getheader("x-amz-function-error"):
            self.statuses[answer.status if answer.status != 200 else -200] += 1
            document = json.loads(body)
            self.codes[document["error"]["code"] if "error" in document else document["errorType"]] += 1
            return
        self.statuses[200] += 1
        document = json.loads(body)
        if not isinstance(document, dict):
            self.wrong.append(f"asked as {identity}, answered {document!r}")
            return
        self.versions[document["version"]] += 1
        if not document["id"] == document["sent"] == answer.getheader("x-call-id") == identity:
            self.wrong.append(f"asked as {identity}, answered {document} with X-Call-Id {answer.getheader('x-call-id')}")

    def __repr__(self) -> str:
        return f"<Load sent={self.sent} {dict(self.statuses)} {dict(self.codes)} broken={dict(self.broken)} wrong={self.wrong[:3]}>"
