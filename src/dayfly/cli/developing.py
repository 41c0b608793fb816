"""`dayfly dev`: watch, deploy at every save, stream logs. An error is shown and the next save tries again.

watchfiles waits in Rust and wakes within DEBOUNCE_MS of the last write; the connection and every import are warm by the second
deploy, so what is left of the time from save to served is the platform's.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dayfly.cli import output
from dayfly.cli.bundle import ignored, pack
from dayfly.cli.calling import show_record
from dayfly.cli.client import Client
from dayfly.cli.deploying import deploy
from dayfly.cli.failure import EXIT_UNREACHABLE, Failure
from dayfly.cli.options import Session
from dayfly.cli.progress import Progress

DEBOUNCE_MS = 40
STEP_MS = 10  # how long it must be quiet within the debounce before a save counts as finished
RECONNECT_SECONDS = 1.0


class Developing:
    """One `dayfly dev`. `overrides` are the flags' settings."""

    def __init__(self, session: Session, path: Path, name: str, overrides: dict[str, Any]) -> None:
        self.session = session
        self.path = path.resolve()
        self.name = name
        self.overrides = overrides
        self.deployed_name = name
        self.stopped = threading.Event()

    def run(self, *, logs: bool) -> None:
        """Until interrupted. Raises Failure only when the platform cannot be reached at the start."""
        self._deploy(first=True)
        if logs:
            threading.Thread(target=self._follow, name="logs", daemon=True).start()
        output.message(f"watching {self.path} (Ctrl-C ends it)", output.DIM)
        try:
            for _ in self._saves():
                self._deploy()
        finally:
            self.stopped.set()

    def _saves(self) -> Iterator[None]:
        from watchfiles import watch

        folder = self.path if self.path.is_dir() else self.path.parent

        def wanted(_change: object, changed: str) -> bool:
            path = Path(changed)
            if folder != self.path:
                return path == self.path
            try:
                parts = path.relative_to(folder).parts
            except ValueError:
                return False
            return not any(ignored(part, []) for part in parts)

        for _ in watch(folder, watch_filter=wanted, debounce=DEBOUNCE_MS, step=STEP_MS, rust_timeout=1000, yield_on_timeout=False):
            yield

    def _deploy(self, *, first: bool = False) -> None:
        """One deploy; whatever is wrong is shown."""
        saved = time.perf_counter()
        try:
            bundle = pack(self.path)
            try:
                with Progress(quiet=True) as progress:
                    namespace = self.session.namespace_for(bundle.namespace)
                    done = deploy(
                        self.session.client, self.name or bundle.name, bundle, self.overrides, progress.event, namespace=namespace
                    )
            finally:
                bundle.close()
        except Failure as problem:
            if first and problem.exit_code == EXIT_UNREACHABLE:
                raise
            if self.session.json:
                output.line(problem.body())
            output.failure(problem)
            return
        self.deployed_name = done.name
        answer = done.as_json(self.session.profile.url)
        if self.session.json:
            output.line(answer)
        else:
            what = "unchanged" if answer.get("unchanged") else f"version {answer.get('version')}"
            took = output.milliseconds((time.perf_counter() - saved) * 1000)
            output.message(f"{time.strftime('%H:%M:%S')} {what} serves at {answer['url']} after {took}", output.GREEN)
            for text in answer.get("warnings") or []:
                output.warn(text)
            for wall in answer.get("missing") or [] if first else []:
                output.warn(f"this machine cannot give the function the wall {wall!r}")

    def _follow(self) -> None:
        """Stream the function's log in a thread of its own, with its own connection; begin again when it breaks."""
        since = time.time()
        client = Client(self.session.profile)
        while not self.stopped.is_set():
            try:
                query = self.session.query(function=self.deployed_name, since=f"{since:.3f}", follow="true")
                for record in client.lines("GET", "/api/v1/logs", query=query):
                    since = max(since, float(record.get("at", since)))
                    if self.session.json:
                        output.line(record)
                    else:
                        show_record(record)
            except (Failure, ValueError):
                pass  # not deployed yet, or the platform restarts: the next attempt says more
            self.stopped.wait(RECONNECT_SECONDS)
