"""How an instance ends: retired, at end of file, by sys.exit, when the gateway goes; and what it does not end for."""

import json
import select
import shutil

import pytest

from dayfly.runtime import frames
from tests.runtime.conftest import Start

PLAIN = "def handler(event, context):\n    return 1\n"
ASYNC = "async def handler(event, context):\n    return 1\n"


@pytest.mark.parametrize("code", [PLAIN, ASYNC])
def test_a_retire_message_ends_the_one_that_takes_it(every: Start, code: str) -> None:
    """After the calls before it; what is behind it stays in the socket for others."""
    instance = every(code)
    instance.boot()
    before = instance.send(frames.DIRECT)
    instance.retire()
    behind = instance.send(frames.DIRECT)
    assert instance.answer(before).json() == 1
    instance.wait_for(lambda frame: frame.kind == frames.RETIRED)
    assert instance.wait_exit() == 0
    assert behind not in {frame.seq for frame in instance.seen} and not instance.frames


@pytest.mark.parametrize("code", [PLAIN, ASYNC])
@pytest.mark.parametrize("fd", [False, True])
def test_whoever_takes_a_last_call_leaves_after_it_and_takes_no_other(every: Start, code: str, fd: bool) -> None:
    instance = every(code)
    instance.boot()
    before = instance.send(frames.DIRECT)
    last = instance.send(frames.DIRECT, b"1", fd=fd, last=True)
    behind = instance.send(frames.DIRECT)
    assert [instance.answer(seq).json() for seq in (before, last)] == [1, 1]
    instance.wait_for(lambda frame: frame.kind == frames.RETIRED)
    assert instance.wait_exit() == 0
    assert behind not in {frame.seq for frame in instance.seen} and not instance.frames


@pytest.mark.parametrize("code", [PLAIN, ASYNC])
def test_end_of_file_means_finish_and_leave(every: Start, code: str) -> None:
    instance = every(code)
    instance.boot()
    seqs = [instance.send(frames.DIRECT) for _ in range(20)]
    instance.requests.close()
    assert [instance.answer(seq).json() for seq in seqs] == [1] * 20
    instance.wait_for(lambda frame: frame.kind == frames.RETIRED)
    assert instance.wait_exit() == 0


@pytest.mark.parametrize("code", [PLAIN, ASYNC])
def test_a_gateway_that_is_gone_ends_the_instance(start: Start, code: str) -> None:
    instance = start(code)
    instance.boot()
    instance.invoke()
    instance.receiver.close()
    instance.requests.close()
    instance.answers.close()
    assert instance.wait_exit() in (0, 70)


def test_a_gateway_that_leaves_before_boot_ends_the_instance(start: Start) -> None:
    instance = start(PLAIN)
    instance.answers.close()
    instance.requests.close()
    assert instance.wait_exit() in (0, 1)


def test_a_gateway_that_goes_during_a_stream_ends_the_instance(start: Start) -> None:
    instance = start("def handler(event, context):\n    while True: yield 'x'\n")
    instance.boot()
    instance.send(frames.DIRECT)
    instance.wait_for(lambda frame: frame.kind == frames.HEAD)
    instance.answers.close()
    assert instance.wait_exit() in (0, 70)


@pytest.mark.parametrize(
    ("call", "status", "reason"),
    [
        ("sys.exit(3)", 3, "Runtime exited with error: exit status 3"),
        ("sys.exit(0)", 0, "Runtime exited without providing a reason"),
        ("sys.exit()", 0, "Runtime exited without providing a reason"),
        ("sys.exit('text')", 1, "Runtime exited with error: exit status 1"),
        ("sys.exit(-1)", 255, "Runtime exited with error: exit status 255"),
        ("exit_of_user()", 9, "Runtime exited with error: exit status 9"),
    ],
)
@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_sys_exit_answers_and_ends(every: Start, keyword: str, call: str, status: int, reason: str) -> None:
    instance = every(
        f"import sys\ndef exit_of_user(): raise type('E', (SystemExit,), {{}})(9)\n{keyword} handler(event, context):\n    {call}\n"
    )
    instance.boot()
    answer = instance.invoke(call_id="id")
    assert answer.flags == frames.ERROR | frames.EXITING
    assert answer.json() == {
        "errorMessage": f"RequestId: id Error: {reason}",
        "errorType": "Runtime.ExitError",
        "requestId": "id",
        "stackTrace": [],
    }
    if "text" in call:
        assert "text" in answer.text
    assert instance.wait_exit() == status


def test_exit_hooks_run_and_their_output_and_errors_are_logged(every: Start) -> None:
    code = "import atexit\natexit.register(lambda: print('hook'))\natexit.register(lambda: 1 / 0)\n" + PLAIN
    instance = every(code)
    instance.boot()
    instance.retire()
    instance.wait_for(lambda frame: frame.kind == frames.RETIRED)
    text = "\n".join(frame.body.decode() for frame in instance.seen if frame.kind == frames.LOG)
    assert "hook" in text and "ZeroDivisionError" in text
    assert instance.wait_exit() == 0


def test_an_exit_hook_that_never_ends_is_left_behind(start: Start) -> None:
    instance = start("import atexit, time\natexit.register(time.sleep, 3600)\n" + PLAIN)
    instance.boot()
    instance.retire()
    instance.wait_for(lambda frame: frame.kind == frames.RETIRED)
    assert instance.wait_exit() == 0


def test_os_exit_ends_at_once_and_the_page_says_which_call_ran(start: Start) -> None:
    instance = start("import os\ndef handler(event, context):\n    os._exit(7)\n")
    instance.boot()
    seq = instance.send(frames.DIRECT)
    assert instance.wait_exit() == 7
    assert instance.slots() == [seq]


def test_a_fork_that_comes_back_from_the_handler_does_not_answer(every: Start) -> None:
    """Only the instance itself answers, once; its child ends when it tries to go on."""
    code = (
        "import os\ndef handler(event, context):\n"
        "    pid = os.fork()\n    if pid: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
    )
    instance = every(code)
    instance.boot()
    for _ in range(2):
        assert instance.invoke().json() != 0
    assert len([frame for frame in instance.seen if frame.kind == frames.RESULT]) == 2


@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_a_signal_handler_that_raises_between_calls_is_reported_and_survived(every: Start, keyword: str) -> None:
    code = (
        "import signal\ndef bell(*_): raise TimeoutError('ring')\nsignal.signal(signal.SIGALRM, bell)\n"
        f"{keyword} handler(event, context):\n    signal.setitimer(signal.ITIMER_REAL, event)\n    return event\n"
    )
    instance = every(code)
    instance.boot()
    for _ in range(2):
        instance.invoke(0.05)
        said = instance.wait_for(lambda frame: frame.kind == frames.LOG)
        assert b"TimeoutError" in said.body
    assert instance.invoke(0).json() == 0


def test_a_signal_handler_works_inside_a_call(every: Start) -> None:
    code = (
        "import signal, time\ndef bell(*_): raise TimeoutError('ring')\nsignal.signal(signal.SIGALRM, bell)\n"
        "def handler(event, context):\n    signal.setitimer(signal.ITIMER_REAL, 0.02)\n    time.sleep(30)\n"
    )
    instance = every(code)
    instance.boot()
    assert instance.invoke().json()["errorType"] == "TimeoutError"


def test_signals_that_print_during_answers_break_no_frame(start: Start) -> None:
    """A timer prints from a signal handler hundreds of times a second, while large answers are sent."""
    code = (
        "import signal\nsignal.signal(signal.SIGALRM, lambda *_: print('tick'))\nsignal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)\n"
        "def handler(event, context):\n    return 'x' * 1_000_000\n"
    )
    instance = start(code)
    instance.boot()
    for _ in range(30):
        select.select([], [], [], 0.005)
        assert len(instance.invoke().json()) == 1_000_000
    ticks = b"".join(frame.body for frame in instance.seen if frame.kind == frames.LOG)
    assert ticks and not ticks.replace(b"tick", b"")  # a tick may interrupt the printing of another: lines may join, text is whole


def test_sigterm_ends_an_instance_although_the_zygote_had_a_handler(start: Start) -> None:
    instance = start(PLAIN)
    instance.boot()
    instance.process.terminate()
    assert instance.wait_exit() == -15


@pytest.mark.root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) makes the pid namespace")
@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_an_instance_retires_when_too_many_dead_processes_gather(start: Start, keyword: str) -> None:
    """As pid 1 it adopts what user code leaves behind. It does not reap them, because a status may be wanted later: `first` is
    waited for many calls after it ended, and has its own status."""
    code = (
        "import os, subprocess\nfirst = subprocess.Popen(['/bin/sh', '-c', 'exit 42'])\n"
        f"{keyword} handler(event, context):\n"
        "    if event == 'wait': return first.wait()\n"
        "    subprocess.run(['/bin/sh', '-c', 'true & true & exit 0'], check=True)\n    return os.getpid()\n"
    )
    instance = start(code, as_init=True)
    instance.boot()
    assert instance.invoke().json() == 1
    assert instance.invoke("wait").json() == 42
    for _ in range(1000):
        instance.send(frames.DIRECT, json.dumps(None).encode())
        frame = instance.wait_for(lambda frame: frame.kind in (frames.RESULT, frames.RETIRED))
        if frame.kind == frames.RETIRED:
            break
        select.select([instance.answers], [], [], 0.02)
    assert frame.kind == frames.RETIRED
    assert instance.wait_exit() == 0


def test_subprocesses_inherit_none_of_the_platforms_descriptors(every: Start) -> None:
    code = (
        "import os, subprocess\n"
        "def handler(event, context):\n"
        "    return subprocess.run(['/bin/ls', '/proc/self/fd'], close_fds=False, capture_output=True, text=True).stdout.split()\n"
    )
    instance = every(code)
    instance.boot()
    assert instance.invoke().json() == ["0", "1", "2", "3"]  # 3 is the folder that ls reads


def test_subprocess_statuses_are_the_users(every: Start) -> None:
    code = (
        "import subprocess\nrunning = subprocess.Popen(['/bin/sh', '-c', 'exit 7'])\n"
        "def handler(event, context):\n    return running.wait()\n"
    )
    instance = every(code)
    instance.boot()
    assert instance.invoke().json() == 7
