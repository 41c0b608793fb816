"""What both serving loops share: one call's contract and context, its failure, and how this instance leaves.

Must never run user code but the exit hooks it registered. Used by agent.py, sequential.py and concurrent.py.

Processes that user code leaves behind are adopted by this one (it is pid 1 of its namespace). They are not reaped, because an exit
status may still be wanted by whoever started the process, and nothing tells those from adopted ones. Instead an instance that has
gathered more than ZOMBIES_MAX dead children retires between two calls: a new one costs milliseconds, and the kernel clears away the rest.
"""

import atexit
import os
from _thread import start_new_thread
from time import monotonic_ns, sleep

from dayfly.runtime.answers import Answers, frame
from dayfly.runtime.context import context_class
from dayfly.runtime.contracts.direct import DirectContract
from dayfly.runtime.contracts.http import HttpContract
from dayfly.runtime.contracts.socket import SocketContract
from dayfly.runtime.failure import describe, exit_fault, log_text
from dayfly.runtime.frames import ERROR, EXITING, HTTP, RESULT, RETIRED, SOCKET, STDERR
from dayfly.runtime.inbox import Call
from dayfly.runtime.jsontext import dumps
from dayfly.runtime.output import ERROR_LEVEL, Output, Scope, send_text
from dayfly.runtime.wsgi import WsgiContract

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from dayfly.runtime.boot import Boot

    Contract = DirectContract | HttpContract | WsgiContract

EXIT_HOOKS_SECONDS = 2.0  # atexit functions of user code, as long as Lambda's shutdown phase
EXIT_INTERRUPTED = 72  # a signal handler raised between a call's code and its answer, or the interpreter is damaged
LOOK_NS = 100_000_000  # time between two looks for zombies
ZOMBIES_MAX = 16


class Instance:
    """The parts of a running instance. `slots`: the progress page as 64-bit words, two per slot (runtime/frames.py)."""

    def __init__(self, boot: "Boot", answers: Answers, slots: memoryview, scope: Scope, outputs: tuple[Output, Output]) -> None:
        self.concurrency = boot.concurrency
        self.is_application = boot.is_application
        self.answers = answers
        self.slots = slots
        self.scope = scope
        self.outputs = outputs
        self.context = context_class(boot)
        self.exit_status: int | None = None  # set by sys.exit in user code
        self.after_first_call: Callable[[], None] | None = None
        self._direct: Contract = DirectContract()
        self._http: Contract = HttpContract(boot)
        self._socket: Contract = SocketContract(boot)
        self.application: object = None  # asgi.Application or wsgi.Application, when this instance serves one
        self._next_look = 0
        self._is_init = os.getpid() == 1

    def contract(self, call: Call) -> "Contract":
        """How this call's event and answer look."""
        if call.kind == HTTP:
            return self._http
        return self._socket if call.kind == SOCKET else self._direct

    def become(self, application: object) -> None:
        """Serve a web application: every call is a request to it."""
        self.application = application
        self._direct = self._http = self._socket = WsgiContract()

    def failed(self, call: Call, error: BaseException) -> tuple[int, bytes]:
        """(answer flags, error JSON) of a call whose code raised; the log gets the traceback. sys.exit sets `exit_status`."""
        flags = ERROR
        try:
            if isinstance(error, SystemExit):
                error, self.exit_status = exit_fault(error, call.id)
                flags |= EXITING
            send_text(self.answers, log_text(error).encode("utf-8", "replace"), call.seq, flags=STDERR, level=ERROR_LEVEL)
            return flags, dumps(describe(error, call.id))
        except Exception:  # no memory, or a hostile exception class: the caller must still be answered
            return flags, b'{"errorMessage":"","errorType":"Exception","requestId":"","stackTrace":[]}'

    def error_frame(self, call: Call, error: BaseException) -> bytes:
        """The whole answer to a call that failed."""
        flags, body = self.failed(call, error)
        self.finish_lines(call.seq)
        elapsed = (monotonic_ns() - call.began) // 1000
        return frame(RESULT, call.seq, body, flags=flags, status=self.contract(call).error_status, exec_us=elapsed)

    def finish_lines(self, seq: int | None = None) -> None:
        """Send unfinished lines of a call's output (or all there are), so that they stand before its answer."""
        for output in self.outputs:
            if output.partials:
                output.finish_lines(seq)

    def is_worn_out(self, now: int) -> bool:
        """Whether so many dead children have gathered that this instance should retire. Looks at most every LOOK_NS."""
        if now < self._next_look or not self._is_init:
            return False
        self._next_look = now + LOOK_NS
        if self.after_first_call is not None:
            self.after_first_call()
            self.after_first_call = None
        try:
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return False
        except ChildProcessError:
            return False
        return count_zombies() > ZOMBIES_MAX

    def leave(self, status: int = 0, *, said: bool = False) -> "NoReturn":
        """Run the exit hooks of user code (bounded), send what is left and RETIRED, and end. `said`: the gateway knows already."""
        if self.answers.forgotten:
            os._exit(1)  # a process that user code forked came back from the handler: it is not the instance
        if atexit._ncallbacks():
            start_new_thread(self._leave_late, (status, said))
            try:
                atexit._run_exitfuncs()
            except BaseException as error:
                send_text(self.answers, log_text(error).encode("utf-8", "replace"), 0, flags=STDERR, level=ERROR_LEVEL)
        self._end(status, said)

    def _leave_late(self, status: int, said: bool) -> None:
        sleep(EXIT_HOOKS_SECONDS)
        self._end(status, said)

    def _end(self, status: int, said: bool) -> "NoReturn":
        self.finish_lines()
        if not said:
            self.answers.write(frame(RETIRED, 0))
        os._exit(status)


def count_zombies() -> int:
    """Dead children that nobody has waited for, by /proc; 0 where there is none."""
    found = 0
    try:
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        found += file.read().rpartition(b")")[2].split()[0] == b"Z"
                except OSError:
                    continue  # gone in between
    except OSError:
        pass
    return found
