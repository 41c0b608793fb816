"""The first and only process of ours in a sandbox: boot, import the user's module, say READY, serve calls, leave.

`serve` is called by the node in a child that it forked from a zygote, after all walls stand. Everything of runtime/ is imported by
then, because the sandbox does not show our files. Must never return to its caller and never be alive without being able to answer.
"""

import os
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, socket
from mmap import MAP_SHARED, PROT_READ, PROT_WRITE, mmap
from sys import byteorder

from dayfly.runtime import asgi, concurrent, handler, logs, packages, sequential, template, wsgi
from dayfly.runtime.answers import Answers, frame
from dayfly.runtime.boot import Boot, enter, enter_again, enter_from_packages, enter_packages, enter_template, reseed
from dayfly.runtime.failure import describe, exit_fault, fitting, log_text
from dayfly.runtime.frames import FAILED, PROGRESS_BYTES, STDERR
from dayfly.runtime.inbox import Inbox
from dayfly.runtime.instance import Instance
from dayfly.runtime.jsontext import dumps
from dayfly.runtime.output import ERROR_LEVEL, Output, Scope, place_streams, replace_streams, send_text
from dayfly.runtime.ready import LAYER_ROOT, clocks, say_ready
from dayfly.runtime.rehearsal import prefault, rehearse, rehearse_import
from dayfly.runtime.template import SEAT_FD
from dayfly.runtime.touched import Touched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from dayfly.runtime.template import Offspring

TASK_ROOT = "/var/task"
EXIT_INIT_FAILED = 1

GIVEN = 4  # requests, answers, progress, output
processors: list[int] = []  # all that this machine's instances may use; the zygote fills it

# What a zygote calls: the first four before it forks, the others are for its children.
__all__ = ["place_streams", "prefault", "rehearse", "rehearse_import", "serve", "serve_template", "wait_and_serve"]


def wait_and_serve(seat_fd: int) -> "NoReturn":
    """Stand ready in a sandbox that belongs to nobody yet: say so on the seat, and when the four descriptors of an instance come, be that
    instance; its files are there when the seat says so. Ends the process with 0 when the node lets go of the seat."""
    os.dup2(seat_fd, SEAT_FD, inheritable=False)
    os.close(seat_fd)
    prefault()
    seat, origin = _wait_for_owner()
    serve(3, 4, 5, origin=origin, seat=seat)


def _wait_for_owner() -> tuple[socket, str]:
    """Say on the seat that this sandbox stands, and take the instance's descriptors: 3, 4 and 5, output at 1 and 2. Returns the seat, and
    how the node calls this way of starting."""
    seat = socket(fileno=SEAT_FD)
    seat.send(b"stands")
    data, rights, _, _ = seat.recvmsg(16, CMSG_SPACE(4 * GIVEN), MSG_CMSG_CLOEXEC)
    if not data or len(rights) != 1 or len(rights[0][2]) != 4 * GIVEN:
        os._exit(0)
    raw = rights[0][2]
    *own, output = (int.from_bytes(raw[at : at + 4], byteorder) for at in range(0, len(raw), 4))
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    for place, fd in enumerate(own, 3):
        if fd != place:  # a template's child: these numbers are taken by what the template had there
            os.dup2(fd, place, inheritable=False)
            os.close(fd)
    return seat, data.decode()


def _wait_for_files(seat: socket) -> None:
    """What needs no file of the function's was done while the node attached them."""
    if not seat.recv(1):
        os._exit(0)
    seat.close()
    os.chdir(TASK_ROOT)


def serve(
    requests_fd: int,
    answers_fd: int,
    progress_fd: int,
    *,
    task_root: str = TASK_ROOT,
    layer_root: str = LAYER_ROOT,
    origin: str = "fork",
    seat: socket | None = None,
) -> "NoReturn":
    """Become the instance that the BOOT frame on `answers_fd` describes, and serve calls from `requests_fd` until told to leave.

    The descriptors are taken over. Expects: working directory `task_root`, 0/1/2 open, no other threads. Ends the process with 0 after
    RETIRED, 1 after FAILED, the user's status after sys.exit, 70 to 72 when the instance could not go on (answers.py, inbox.py,
    instance.py say when).
    """
    answers = Answers(answers_fd)
    inbox = Inbox(requests_fd)
    slots = _mapped(progress_fd)
    boot = Boot(answers.read_boot())
    scope = Scope()
    outputs = replace_streams(answers, scope)
    os.register_at_fork(after_in_child=lambda: _forget(answers, inbox, *outputs))
    if seat is not None:
        _wait_for_files(seat)
    began = clocks()
    try:
        enter(boot, task_root, layer_root)
        logs.watch(answers, scope)
        use_all_processors()
        function = handler.load(boot.handler, task_root)
    except BaseException as error:
        _fail(answers, outputs, error)
    _run(Instance(boot, answers, slots, scope, outputs), inbox, function, began, origin)


def serve_template(seat_fd: int, offspring: "Offspring") -> "NoReturn":
    """Be the template that the BOOT frame describes: run init (or import packages, when it names some), say READY (with what forbids a
    snapshot, and then end), and fork. Each child becomes an instance like any other, with a BOOT frame of its own. Descriptors as for
    `serve`, at 3, 4 and 5."""
    os.dup2(seat_fd, SEAT_FD, inheritable=False)
    os.close(seat_fd)
    answers, scope = Answers(4), Scope()
    boot = Boot(answers.read_boot())
    outputs = replace_streams(answers, scope)

    def forget() -> None:
        if not template.forking:
            _forget(answers, *outputs)

    os.register_at_fork(after_in_child=forget)
    began = clocks()
    try:
        use_all_processors()
        function = _prepare(boot, answers, scope)
        template.run_hooks("before_snapshot")
        for output in outputs:
            output.finish_lines()
        found = template.problems()
    except BaseException as error:
        _fail(answers, outputs, error)
    generators = template.shared_generators()  # before they are frozen out of sight
    template.settle()
    offspring.settle()
    if not found:
        template.announce()  # the node knows first
    say_ready(answers, began, handler.is_async(function), "template", problems=found)
    if found:
        os._exit(0)
    touched = Touched(offspring.populate)

    def freshen() -> None:
        template.refresh(generators)
        reseed()
        touched.own()

    if template.stand(offspring, touched.fileno(), touched.learn, freshen) and not touched.is_known:
        prefault()
    _serve_copy(answers, scope, outputs, function, touched)


def _prepare(boot: Boot, answers: Answers, scope: Scope) -> "Callable[..., Any] | None":
    """What a template does once for all of its children. Returns the handler; None: there is none yet, only packages."""
    if boot.imports is None:
        enter_template(boot, TASK_ROOT, LAYER_ROOT)
        logs.watch(answers, scope)
        return handler.load(boot.handler, TASK_ROOT)
    enter_packages(boot, TASK_ROOT, LAYER_ROOT)
    logs.watch(answers, scope)
    packages.import_all(boot.imports, LAYER_ROOT)
    return None


def _serve_copy(
    answers: Answers, scope: Scope, outputs: tuple[Output, Output], function: "Callable[..., Any] | None", touched: Touched
) -> "NoReturn":
    """In a template's child: wait to be given away, and go on from where the template stands. That of packages has no handler yet."""
    seat, origin = _wait_for_owner()
    seat.close()
    began = clocks()
    boot = Boot(answers.read_boot())
    inbox, slots = Inbox(3), _mapped(5)
    os.register_at_fork(after_in_child=lambda: _forget(inbox))
    try:
        if function is None:
            os.chdir(TASK_ROOT)  # its files are there now
            enter_from_packages(boot, TASK_ROOT, LAYER_ROOT)
        else:
            enter_again(boot)
        use_all_processors()
        template.run_hooks("after_restore")
        if function is None:
            function = handler.load(boot.handler, TASK_ROOT)
    except BaseException as error:
        _fail(answers, outputs, error)
    instance = Instance(boot, answers, slots, scope, outputs)
    instance.after_first_call = touched.report if touched.is_learning else None
    _run(instance, inbox, function, began, origin)


def use_all_processors() -> None:
    """The last thing before user code: who forked this process may have been kept to some of them (node/apart.py)."""
    try:
        os.sched_setaffinity(0, processors)
    except OSError:  # none of them is this group's: it stays where it is
        return


def _mapped(progress_fd: int) -> memoryview:
    slots = memoryview(mmap(progress_fd, PROGRESS_BYTES, MAP_SHARED, PROT_READ | PROT_WRITE)).cast("Q")
    os.close(progress_fd)
    return slots


def _forget(*parts: "Answers | Inbox | Output") -> None:
    """In a process that user code forked: what belongs to the instance."""
    for part in parts:
        part.forget()


def _run(instance: Instance, inbox: Inbox, function: "Callable[..., Any]", began: tuple[int, int], origin: str) -> "NoReturn":
    is_async = handler.is_async(function)
    if instance.is_application:
        try:
            function = _started(instance, function, is_async)
        except BaseException as error:
            _fail(instance.answers, instance.outputs, error)
    instance.finish_lines()
    say_ready(instance.answers, began, is_async, origin, may_record=origin in ("fork", "prepared"))
    loop: Callable[..., Any] = concurrent.serve if is_async else sequential.serve
    loop(instance, inbox, function)
    os._exit(0)


def _started(instance: Instance, function: "Callable[..., Any]", is_async: bool) -> "Callable[..., Any]":
    """The web application that `function` is, ready for requests: ASGI when it is async, else WSGI."""
    if not is_async:
        instance.become(serving := wsgi.Application(function))
        return serving
    application = asgi.Application(function)
    instance.become(application)
    application.start()
    return function


def _fail(answers: Answers, outputs: tuple[Output, Output], error: BaseException) -> "NoReturn":
    """Init did not succeed: the log gets the traceback, the gateway FAILED."""
    if isinstance(error, SystemExit):
        error, _ = exit_fault(error, "")
    for output in outputs:
        output.finish_lines()
    send_text(answers, log_text(error).encode("utf-8", "replace"), 0, flags=STDERR, level=ERROR_LEVEL)
    answers.write(frame(FAILED, 0, meta=dumps(fitting(describe(error, "")))))
    os._exit(EXIT_INIT_FAILED)
