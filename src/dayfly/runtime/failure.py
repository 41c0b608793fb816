"""Exceptions as the caller and the log see them: Lambda's error object, and Python's traceback without our own frames.

Must never raise, whatever the exception does (a broken __str__, a hostile class, a million frames), and loads no traceback module:
the first error of an instance costs what the hundredth does. Used by agent.py and the two serving loops.
"""

import io
import sys
from contextlib import suppress

from dayfly.runtime.frames import META_BYTES_MAX, RESULT_BYTES_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

MESSAGE_CHARS_MAX = 32 * 1024
FRAMES_FIRST, FRAMES_LAST = 20, 80  # of a deep stack; the middle is counted
CHAIN_MAX = 8  # causes shown in the log
SOURCE_BYTES_MAX = 4 * 1024 * 1024  # a larger file's lines are not looked up
LINES_MAX = 256  # source lines remembered
_OURS = __file__.rpartition("/")[0] + "/"
_lines: dict[tuple[str, int], str] = {}
_open = io.open


class Fault(Exception):
    """A failure that has a name in Lambda's contract: `error_type` such as Runtime.MarshalError. Its traceback is not the user's."""

    def __init__(self, error_type: str, message: str, stack: list[str] | None = None) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.stack = stack or []


def type_name(error: BaseException) -> str:
    """The exception's class name, or the name its Fault carries."""
    if isinstance(error, Fault):
        return error.error_type
    name = type.__dict__["__name__"].__get__(type(error))
    return str(name)


def message_of(error: BaseException) -> str:
    """str(error), bounded; says so when the exception cannot tell."""
    try:
        text = str(error)[:MESSAGE_CHARS_MAX]
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    except BaseException:
        return f"<unprintable {type_name(error)} object>"


def stack_of(error: BaseException) -> list[str]:
    """Lambda's stackTrace: one text per frame, outermost first, as traceback.format_list writes them."""
    if isinstance(error, Fault):
        return error.stack
    first: list[str] = []
    last: list[str] = []
    left_out = 0
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if not code.co_filename.startswith(_OURS) and not code.co_filename.startswith("<frozen importlib"):
            line = _frame_text(code.co_filename, traceback.tb_lineno, code.co_name)
            if len(first) < FRAMES_FIRST:
                first.append(line)
            else:
                last.append(line)
                if len(last) > FRAMES_LAST:
                    del last[0]
                    left_out += 1
        traceback = traceback.tb_next
    if left_out:
        first.append(f"  … {left_out} frames left out\n")
    return first + last


def _frame_text(filename: str, number: int | None, name: str) -> str:
    text = f'  File "{filename}", line {number}, in {name}\n'
    source = _source(filename, number or 0)
    return f"{text}    {source}\n" if source else text


def _source(filename: str, number: int) -> str:
    key = (filename, number)
    line = _lines.get(key)
    if line is None:
        try:
            with _open(filename, "rb") as file:
                text = file.read(SOURCE_BYTES_MAX).split(b"\n", number)
            line = text[number - 1].decode("utf-8", "replace").strip()[:1000] if 0 < number <= len(text) else ""
        except Exception:  # no such file (code made by exec), no descriptors left: the frame is shown without its line
            line = ""
        if len(_lines) >= LINES_MAX:
            _lines.clear()
        _lines[key] = line
    return line


def describe(error: BaseException, call_id: str) -> dict[str, object]:
    """The error object of Lambda's contract."""
    return {"errorMessage": message_of(error), "errorType": type_name(error), "requestId": call_id, "stackTrace": stack_of(error)}


def log_text(error: BaseException) -> str:
    """What the function's log shows: Lambda's first line, then the traceback with its causes."""
    parts = [f"[ERROR] {type_name(error)}: {message_of(error)}"]
    parts += _traceback(error)
    seen = {id(error)}
    for _ in range(CHAIN_MAX):
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if cause is None or id(cause) in seen or isinstance(error, Fault):
            break
        seen.add(id(cause))
        parts.append(f"{'Caused by' if error.__cause__ else 'While handling'} {type_name(cause)}: {message_of(cause)}")
        parts += _traceback(cause)
        error = cause
    return "\n".join(parts)


def _traceback(error: BaseException) -> list[str]:
    stack = stack_of(error)
    return ["Traceback (most recent call last):", "".join(stack).rstrip("\n")] if stack else []


def exit_fault(error: SystemExit, call_id: str) -> tuple[Fault, int]:
    """What sys.exit means to a caller, and the status this process ends with. A text goes to stderr, as Python does."""
    code = error.code
    if code is None:
        status = 0
    elif isinstance(code, int):
        status = code & 0xFF
    else:
        status = 1
        with suppress(Exception):  # the text's __str__ or stderr is broken: there is nobody to tell
            print(code, file=sys.stderr)  # noqa: T201 - this is what sys.exit("text") does
    reason = f"Runtime exited with error: exit status {status}" if status else "Runtime exited without providing a reason"
    prefix = f"RequestId: {call_id} " if call_id else ""
    return Fault("Runtime.ExitError", f"{prefix}Error: {reason}"), status


def too_large() -> Fault:
    """Lambda's words for an answer over the limit."""
    return Fault(
        "Function.ResponseSizeTooLarge", f"Response payload size exceeded maximum allowed payload size ({RESULT_BYTES_MAX} bytes)."
    )


def fitting(error: dict[str, object]) -> dict[str, object]:
    """The same error object, its stack cut so that it fits a frame's meta (FAILED)."""
    budget = META_BYTES_MAX // 8 - len(str(error["errorMessage"])[:4096])
    error["errorMessage"] = str(error["errorMessage"])[:4096]
    kept = []
    stack = error["stackTrace"]
    assert isinstance(stack, list)
    for line in reversed(stack):
        budget -= len(line)
        if budget < 0:
            break
        kept.append(line)
    error["stackTrace"] = kept[::-1]
    return error
