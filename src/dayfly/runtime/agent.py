"""The first and only process of ours in a sandbox: boot, import the user's module, say READY, serve calls, leave.

`serve` is called by the node in a child that it forked from a zygote, after all walls stand. Everything of runtime/ is imported by
then, because the sandbox does not show our files. Must never return to its caller and never be alive without being able to answer.
"""

import os
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, socket
from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap
from time import monotonic_ns

from dayfly.runtime import concurrent, handler, logs, sequential
from dayfly.runtime.answers import Answers, frame
from dayfly.runtime.boot import Boot, enter
from dayfly.runtime.failure import describe, exit_fault, fitting, log_text
from dayfly.runtime.frames import FAILED, PROGRESS_BYTES, READY, STDERR
from dayfly.runtime.inbox import Inbox
from dayfly.runtime.instance import Instance
from dayfly.runtime.jsontext import dumps
from dayfly.runtime.output import ERROR_LEVEL, Output, Scope, replace_streams, send_text
from dayfly.runtime.rehearsal import prefault, rehearse, rehearse_import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

TASK_ROOT = "/var/task"
LAYER_ROOT = "/opt/python"
EXIT_INIT_FAILED = 1

SEAT_FD = 7  # above the four descriptors that arrive at 3 to 6
GIVEN = 4  # requests, answers, progress, output

__all__ = ["rehearse", "rehearse_import", "serve", "wait_and_serve"]  # what a zygote calls: rehearse once, the others in each child


def wait_and_serve(seat_fd: int) -> "NoReturn":
    """Stand ready in a sandbox that belongs to nobody yet: say so on the seat, and when the four descriptors of an instance come, its
    files being in place by then, be that instance. Ends the process with 0 when the node lets go of the seat."""
    os.dup2(seat_fd, SEAT_FD, inheritable=False)
    os.close(seat_fd)
    seat = socket(fileno=SEAT_FD)
    prefault()
    seat.send(b"stands")
    data, rights, _, _ = seat.recvmsg(1, CMSG_SPACE(4 * GIVEN), MSG_CMSG_CLOEXEC)
    if not data or len(rights) != 1 or len(rights[0][2]) != 4 * GIVEN:
        os._exit(0)
    seat.close()
    os.dup2(6, 1)
    os.dup2(6, 2)
    os.close(6)
    os.chdir(TASK_ROOT)
    serve(3, 4, 5)


def serve(requests_fd: int, answers_fd: int, progress_fd: int, *, task_root: str = TASK_ROOT, layer_root: str = LAYER_ROOT) -> "NoReturn":
    """Become the instance that the BOOT frame on `answers_fd` describes, and serve calls from `requests_fd` until told to leave.

    The descriptors are taken over. Expects: working directory `task_root`, 0/1/2 open, no other threads. Ends the process with 0 after
    RETIRED, 1 after FAILED, the user's status after sys.exit, 70 to 72 when the instance could not go on (answers.py, inbox.py,
    instance.py say when).
    """
    answers = Answers(answers_fd)
    inbox = Inbox(requests_fd)
    slots = memoryview(mmap(progress_fd, PROGRESS_BYTES, MAP_SHARED, PROT_READ | PROT_WRITE)).cast("Q")
    os.close(progress_fd)
    boot = Boot(answers.read_boot())
    scope = Scope()
    outputs = replace_streams(answers, scope)

    def forget() -> None:
        for part in (answers, inbox, *outputs):
            part.forget()

    os.register_at_fork(after_in_child=forget)
    began = monotonic_ns()
    try:
        enter(boot, task_root, layer_root)
        logs.watch(answers, scope)
        function = handler.load(boot.handler, task_root)
    except BaseException as error:
        _fail(answers, outputs, error)
    instance = Instance(boot, answers, slots, scope, outputs)
    instance.finish_lines()
    is_async = handler.is_async(function)
    _ready(answers, began, is_async)
    loop: Callable[..., Any] = concurrent.serve if is_async else sequential.serve
    loop(instance, inbox, function)
    os._exit(0)


def _ready(answers: Answers, began: int, is_async: bool) -> None:
    answers.write(frame(READY, 0, meta=dumps({"init_us": (monotonic_ns() - began) // 1000, "async": is_async})))


def _fail(answers: Answers, outputs: tuple[Output, Output], error: BaseException) -> "NoReturn":
    """Init did not succeed: the log gets the traceback, the gateway FAILED."""
    if isinstance(error, SystemExit):
        error, _ = exit_fault(error, "")
    for output in outputs:
        output.finish_lines()
    send_text(answers, log_text(error).encode("utf-8", "replace"), 0, flags=STDERR, level=ERROR_LEVEL)
    answers.write(frame(FAILED, 0, meta=dumps(fitting(describe(error, "")))))
    os._exit(EXIT_INIT_FAILED)
