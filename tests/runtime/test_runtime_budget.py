"""What an instance carries: the modules that importing the agent loads, and the memory an idle instance has of its own."""

import subprocess
from pathlib import Path

import pytest

from dayfly.runtime import frames
from tests.runtime.conftest import Start
from tests.runtime.driver import SOURCE, interpreters

# json's own (re, enum, collections …), what a socket, a page and a struct need, and small C modules. A name added here is paid
# for by every zygote; asyncio, typing, logging, traceback, inspect, random and datetime must never be.
ALLOWED = {
    *("__future__", "_collections", "_collections_abc", "_functools", "_json", "_operator", "_socket", "_sre", "_stat", "_struct"),
    *("atexit", "binascii", "collections", "contextlib", "copyreg", "enum", "faulthandler", "functools", "gc", "genericpath"),
    *("itertools", "json", "json.decoder", "json.encoder", "json.scanner", "keyword", "mmap", "operator", "os", "os.path"),
    *("posixpath", "re", "re._casefix", "re._compiler", "re._constants", "re._parser", "reprlib", "select", "signal", "stat"),
    *("struct", "types", "linecache", "_signal"),
}
PROGRAM = """
import sys
before = set(sys.modules)
sys.path.insert(0, {source!r})
import dayfly.runtime.agent
print(*(set(sys.modules) - before))
"""


@pytest.mark.parametrize("python", interpreters())
def test_importing_the_agent_loads_these_modules_and_no_other(python: str) -> None:
    program = PROGRAM.format(source=str(SOURCE))
    done = subprocess.run([python, "-I", "-S", "-c", program], capture_output=True, text=True, timeout=30, check=True)
    loaded = {name for name in done.stdout.split() if not name.startswith("dayfly")}
    assert loaded <= ALLOWED, f"new: {sorted(loaded - ALLOWED)}"


def test_asyncio_is_loaded_for_async_handlers_only(every: Start) -> None:
    for keyword, expected in (("def", False), ("async def", True)):
        instance = every(f"import sys\n{keyword} handler(event, context):\n    return 'asyncio' in sys.modules\n")
        instance.boot()
        assert instance.invoke().json() is expected


def test_a_rehearsal_leaves_no_trace_that_an_instance_could_notice(python: str) -> None:
    """No descriptor, no thread, no random state, no import path; the environment gains what all instances share."""
    program = (
        "import os, sys, random\nsys.path.insert(0, {source!r})\nfrom dayfly.runtime import agent, boot\nos.environ.clear()\n"
        "def state(): return [os.listdir('/proc/self/fd'), os.listdir('/proc/self/task'), random.getstate(), list(sys.path), sys.stdout]\n"
        "before = state()\nagent.rehearse()\nassert state() == before\nassert dict(os.environ) == boot.SHARED\nprint('same')\n"
    )
    done = subprocess.run([python, "-I", "-S", "-c", program.format(source=str(SOURCE))], capture_output=True, text=True, timeout=30)
    assert done.stdout == "same\n", done.stderr


def test_an_instance_of_a_zygote_that_did_not_rehearse_is_the_same(start: Start) -> None:
    """Only slower and larger: environment, import path and hidden modules are as after a rehearsal."""
    code = "import os, sys\ndef handler(e, c): return [dict(os.environ), sys.path, [n for n in sys.modules if 'dayfly' in n]]\n"
    seen = []
    for rehearsed in (True, False):
        instance = start(code, rehearsed=rehearsed)
        instance.boot()
        text = instance.invoke().body.decode()
        seen.append(text.replace(instance.task, "TASK").replace(instance.layer, "LAYER"))
    assert seen[0] == seen[1]


def test_large_bodies_do_not_stay_in_memory(start: Start) -> None:
    """Neither in the receive buffer nor in the heap: after a hundred calls an instance is as small as after the first."""
    instance = start("def handler(event, context):\n    return len(event)\n")
    instance.boot()

    def resident() -> int:
        return int(Path(f"/proc/{instance.process.pid}/statm").read_text().split()[1]) * 4096

    instance.invoke("x" * 5_000_000, fd=True)
    before = resident()
    for _ in range(100):
        instance.invoke("x" * 5_000_000, fd=True)
        instance.invoke("x" * (frames.INLINE_BYTES_MAX - 10))
    assert resident() < before + 4_000_000


def test_an_instance_has_no_shared_memory_but_its_progress_page(start: Start) -> None:
    """Pages of a shared mapping stay with its file, whatever madvise says, and the file is a kernel's object more for each instance."""
    instance = start("def handler(event, context):\n    return [line for line in open('/proc/self/maps') if line.split()[1][3] == 's']\n")
    instance.boot()
    shared = instance.invoke("x" * (frames.INLINE_BYTES_MAX - 10)).json()
    assert [line for line in shared if "gconv" not in line and "progress" not in line] == []
