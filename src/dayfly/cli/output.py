"""Where a command's words go: results to standard output, messages to standard error, JSON on demand.

Nothing a user or a function wrote is ever read as markup or as terminal control: rich gets `Text`, never markup, and control
characters other than newline and tab are shown escaped on a terminal. Rich is imported only when a table is really drawn.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from dayfly.cli.failure import Failure

RED, YELLOW, GREEN, DIM, BOLD = "31", "33", "32", "2", "1"


def visible(text: str) -> str:
    """`text` with terminal control characters escaped, newlines and tabs kept."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def colour(text: str, code: str, stream: TextIO) -> str:
    """`text` in colour when `stream` is a terminal that wants it (NO_COLOR is respected)."""
    import os

    if not stream.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def result(text: str) -> None:
    """A line of the command's result."""
    sys.stdout.write(visible(text) + "\n")


def document(value: object) -> None:
    """The one JSON document of a command with --json, indented on a terminal, one line otherwise."""
    sys.stdout.write(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def line(value: object) -> None:
    """One line of NDJSON."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def message(text: str, code: str = "") -> None:
    """Something for the person, not for a pipe."""
    shown = visible(text)
    sys.stderr.write((colour(shown, code, sys.stderr) if code else shown) + "\n")
    sys.stderr.flush()


def warn(text: str) -> None:
    """Something that does not stop the command but that its user should know, on standard error."""
    message(f"warning: {text}", YELLOW)


def failure(problem: "Failure") -> None:
    """Three lines: what, whose fault, what to do. What goes with it (a traceback, an installer's output) stands above."""
    from dayfly.cli.failure import WHOSE

    if problem.extra:
        message(problem.extra, DIM)
    code = f" [{problem.code}]" if problem.code else ""
    message(f"error: {problem.what}{code}", RED)
    message(f"fault: {WHOSE.get(problem.fault, problem.fault)}")
    message(f"do:    {problem.hint}")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> "Table":
    """A rich table of plain texts; a column whose name starts with '>' is right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    texts = [[visible(str(cell)) for cell in row] for row in rows]
    width = sum(max(map(len, column)) for column in zip([name.lstrip(">") for name in columns], *texts, strict=True))
    roomy = width + 3 * len(columns) <= console().width  # else the columns stand closer
    drawn = Table(box=box.SIMPLE_HEAD, title=Text(title) if title else None, pad_edge=False, padding=(0, int(roomy)), show_edge=roomy)
    for number, name in enumerate(columns):  # only the first column, a name, may be folded: a heading never is
        justify: Literal["left", "right"] = "right" if name.startswith(">") else "left"
        drawn.add_column(Text(name.lstrip(">")), justify=justify, overflow="fold", no_wrap=number > 0)
    for row in texts:
        drawn.add_row(*map(Text, row))
    return drawn


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str, title: str = "") -> None:
    """A table on standard output: drawn for a terminal, tab-separated below a line of headings for a pipe (machines use --json)."""
    if not rows:
        message(empty)
    elif sys.stdout.isatty():
        console().print(table(columns, rows, title=title))
    else:
        result("\t".join(name.lstrip(">") for name in columns))
        for row in rows:
            result("\t".join(str(cell).replace("\t", " ").replace("\n", " ") for cell in row))


def console(*, stderr: bool = False) -> "Console":
    """Rich's console on standard output or error, with everything off that would read a user's text as markup."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


# ---- numbers for people


def milliseconds(value: Any) -> str:
    """1234.5 → '1.23 s', 3.2 → '3.2 ms', None → '-'."""
    if not isinstance(value, int | float):
        return "-"
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def size(value: Any) -> str:
    """Bytes with a binary unit."""
    if not isinstance(value, int | float):
        return "-"
    number = float(value)
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def duration(value: Any) -> str:
    """Seconds as '3 d 4 h', '2 h 5 min', '40 s'."""
    if not isinstance(value, int | float):
        return "-"
    seconds = int(value)
    for unit, length, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{seconds // length} {unit} {seconds % length // smaller} {below}"
    return f"{seconds} s"


def moment(value: Any) -> str:
    """Epoch seconds in local time, or '-'."""
    import time

    if not isinstance(value, int | float) or not value:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
