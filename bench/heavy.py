"""cold-template, cold-ahead, cold-import: functions that import numpy, Flask and pandas, called when no instance of them is left.

The libraries come from PyPI through each function's requirements.txt, as a user's would. The same handler in a bare Python process,
started, importing and answering once, is the baseline beside each.
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bench.cold import PAUSE_SECONDS, RUNS, invoke, start_cold, wait_nothing_runs
from bench.contenders import EVENT, SUBJECTS, Bare, baselines_python, cpu_us_per_call
from bench.load import Client, Reply
from bench.origin import Tally
from bench.outcome import Outcome, Run, alternate, of_latencies
from bench.processes import cpu_seconds
from bench.variants import AHEAD, FORK, TEMPLATE, Variant
from tests.e2e.harness import Platform

LIBRARIES = ("numpy", "flask", "pandas")
TEMPLATE_SECONDS_MAX = 10.0
GONE_SECONDS_MAX = 5.0
MEMORY_MB = 256  # pandas alone takes half of the default


class HeavyBare(Bare):
    """The bare handler process with a library to import."""

    def __init__(self, library: str) -> None:
        super().__init__("direct")
        self.library = library
        self.name = f"bare process, {library}"

    def command(self, port: int) -> list[str]:
        return [baselines_python(), "bare.py", f"with_{self.library}.py", "direct", str(port)]


def template(quick: bool) -> Outcome:
    """Forked on demand from the version's template."""
    return _measure(quick, TEMPLATE)


def ahead(quick: bool) -> Outcome:
    """From a child of the template that stood ready: an instance made ahead."""
    return _measure(quick, AHEAD)


def fresh_import(quick: bool) -> Outcome:
    """Without a template: the libraries are imported in every new instance."""
    return _measure(quick, FORK)


def _measure(quick: bool, variant: Variant) -> Outcome:
    calls, starts = (8, 1) if quick else (40, 2)
    tallies = {library: Tally(variant.origin) for library in LIBRARIES}
    others = [HeavyBare(library) for library in LIBRARIES] if baselines_python() else []
    with Platform(settings=variant.platform_settings()) as platform:
        states = {library: _deploy(platform, library, variant) for library in LIBRARIES}
        measures: dict[str, Callable[[int], Run]] = {
            library: lambda _, library=library: _call(platform, library, calls, tallies[library])  # type: ignore[misc]
            for library in LIBRARIES
        }
        measures |= {other.name: lambda _, other=other: start_cold(other, starts) for other in others}  # type: ignore[misc]
        series = alternate(measures, RUNS)
    method = (
        f"first row numpy; each function calls its handler once in a before_snapshot hook; "
        f"{calls} calls a run of each function, no instance of it alive and {PAUSE_SECONDS * 1000:g} ms idle before each, "
        f"one connection; baselines: {starts} process starts a run, from the start to the first answer"
    )
    more = {
        "origins": {library: tally.document() for library, tally in tallies.items()},
        "notes": variant.notes() | {"templates before the calls": ", ".join(f"{library}: {state}" for library, state in states.items())},
    }
    return Outcome(series, method, more, LIBRARIES[1:], {other.name: other.library for other in others})


def _deploy(platform: Platform, library: str, variant: Variant) -> str:
    """Deploy it, let it answer once, and wait for what the variant needs. Returns the state of its template, for the report."""
    files = {"handler.py": (SUBJECTS / f"with_{library}.py").read_text(), "requirements.txt": f"{library}\n"}
    wanted = {"keep_alive_seconds": 0, "memory_mb": MEMORY_MB} | variant.function_settings()
    platform.put(library, files, namespace="default", **wanted)
    answer = platform.invoke(library, EVENT)
    if answer.status != 200 or b"Hello, Ada!" not in answer.body:
        raise RuntimeError(f"{library} answers {answer.status} {answer.body[:500]!r}")
    wait_nothing_runs(platform)
    return _wait_template(platform, library) if variant.origin in ("template", "ahead") else "not wanted"


def _wait_template(platform: Platform, name: str) -> str:
    """Until the function's template is `ready`, or is `off: why`; `unknown` where the platform says nothing of templates."""
    deadline = time.monotonic() + TEMPLATE_SECONDS_MAX
    while True:
        functions = platform.request("GET", "/api/v1/statistics").json()["functions"]
        state = next((str(one["template"]) for one in functions if one["name"] == name and "template" in one), "unknown")
        if state.partition(":")[0] in ("ready", "off", "unknown") or time.monotonic() > deadline:
            return state or "none"
        time.sleep(0.05)  # the statistics come once a second


def _call(platform: Platform, name: str, calls: int, tally: Tally) -> Run:
    client, raw, replies, errors = Client(platform.address), invoke(platform, name), [], 0
    try:
        before = cpu_seconds([platform.pid])
        for _ in range(calls):
            time.sleep(PAUSE_SECONDS)  # the thing that is measured: a call that comes after silence
            reply = client.call(raw)
            errors += not reply.good
            replies += [reply] if reply.good else []
            _wait_gone(reply)
    finally:
        client.close()
    cold, warm = tally.take(replies)
    return of_latencies(cold, errors + warm, cpu_us_per_call([platform.pid], before, calls))


def _wait_gone(reply: Reply) -> None:
    """Until the instance that answered has ended: no process of its user is left. Where instances have no user of their own, the pause
    alone must do."""
    uid = json.loads(reply.body).get("uid", 0) if reply.good else 0
    deadline = time.monotonic() + GONE_SECONDS_MAX
    while uid > 1000 and any(_uid_of(entry) == uid for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"an instance (uid {uid}) outlives its call by {GONE_SECONDS_MAX} s")
        time.sleep(0.002)  # nobody tells a stranger of a process' end


def _uid_of(entry: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        return int((entry / "status").read_text().partition("\nUid:")[2].split(None, 1)[0])
    return -1
