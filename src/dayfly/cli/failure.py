"""How a command says that it did not work: three lines (what, whose fault, what to do) and an exit code.

Every command raises `Failure`; only main.py prints it. docs/cli.md lists the exit codes.
"""

EXIT_OK = 0
EXIT_FUNCTION = 1  # the user's function failed (its code ran, or could not be imported)
EXIT_USAGE = 2  # the command line, a local file or a setting is wrong
EXIT_UNREACHABLE = 3  # no platform answers there, or it is not running
EXIT_REFUSED = 4  # the platform answered with an error
EXIT_PLATFORM = 5  # the platform could not start or stop, or something here broke
EXIT_INTERRUPTED = 130

WHOSE = {
    "caller": "the request (yours to change)",
    "function": "the function's code",
    "capacity": "nobody's: the platform is busy",
    "platform": "Dayfly or this machine",
}

TRACEBACK_KEYS = frozenset(("errorType", "errorMessage", "stackTrace"))
KNOWN_KEYS = frozenset(("code", "fault", "message", "hint", "retryable", "call_id"))


class Failure(Exception):
    """What happened, whose fault it is (a key of WHOSE) and what to do about it. `extra` is shown below (a traceback)."""

    def __init__(
        self, what: str, hint: str, *, fault: str = "caller", exit_code: int = EXIT_USAGE, code: str = "", extra: str = ""
    ) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.fault = fault
        self.exit_code = exit_code
        self.code = code
        self.extra = extra

    def body(self) -> dict[str, object]:
        """What `--json` prints: the same shape as an error of the API."""
        error = {"code": self.code or "cli_error", "fault": self.fault, "message": self.what, "hint": self.hint}
        return {"error": error | ({"extra": self.extra} if self.extra else {})}


def unreachable(url: str, why: str) -> Failure:
    """Nothing answers at `url`."""
    return Failure(
        f"No platform answers at {url} ({why}).",
        "Start one with `dayfly up -d`, or name another with --url or DAYFLY_URL.",
        fault="platform",
        exit_code=EXIT_UNREACHABLE,
        code="unreachable",
    )


def refused(error: dict[str, object], status: int) -> Failure:
    """An error of the API as a Failure. `error` is the object below "error"; whatever is missing is said generally."""
    fault = str(error.get("fault", "caller" if status < 500 else "platform"))
    shown = {key: value for key, value in error.items() if key not in KNOWN_KEYS and value not in (None, "", [], {})}
    trace = traceback_text(shown) if "errorType" in shown else ""
    message = str(error.get("message", ""))
    rest = [_shown(_beyond(value, message)) for key, value in shown.items() if key not in TRACEBACK_KEYS]
    if trace and not any(str(shown["errorMessage"]) in text for text in rest if shown.get("errorMessage")):
        rest.append(trace)  # unless the log already ends with it
    extra = "\n".join(text for text in rest if text)
    call = f" Call {error['call_id']}." if error.get("call_id") else ""
    return Failure(
        str(error.get("message") or f"The platform answered with status {status}.") + call,
        str(error.get("hint") or "Look at the platform's log: `dayfly status` names the file."),
        fault=fault if fault in WHOSE else "platform",
        exit_code=EXIT_FUNCTION if fault == "function" else EXIT_REFUSED,
        code=str(error.get("code", "")),
        extra=extra,
    )


def _beyond(value: object, message: str) -> object:
    """A list without the items that the message says already: it begins with the first problems."""
    return [item for item in value if str(item) not in message] if isinstance(value, list) else value


def _shown(value: object) -> str:
    """What an error carries beside its fixed fields: a traceback, an installer's output, a list of problems."""
    if isinstance(value, list):
        return "\n".join(str(item).rstrip("\n") for item in value)
    if isinstance(value, dict) and "errorType" in value:
        return traceback_text(value)
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_shown(item)}" for key, item in value.items())
    return str(value).rstrip("\n")


def traceback_text(error: dict[str, object]) -> str:
    """Lambda's error shape {"errorType", "errorMessage", "stackTrace"} as Python prints a traceback."""
    trace = error.get("stackTrace")
    lines = [str(item).rstrip("\n") for item in trace] if isinstance(trace, list) else []
    head = ["Traceback (most recent call last):"] if lines and not lines[0].startswith("Traceback") else []
    return "\n".join([*head, *lines, f"{error.get('errorType', 'Error')}: {error.get('errorMessage', '')}"])
