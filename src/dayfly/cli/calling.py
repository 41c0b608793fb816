"""`dayfly invoke` and `dayfly logs`: the two commands that show what a function says."""

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from dayfly.cli import output
from dayfly.cli.failure import EXIT_FUNCTION, Failure, traceback_text
from dayfly.cli.options import PATH, Session, command

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
TIMING = re.compile(r"([a-z_]+);dur=([0-9.]+)")
LEVELS = {10: "DEBUG", 20: "INFO", 30: "WARNING", 40: "ERROR", 50: "CRITICAL"}
INVOKE_SECONDS_MAX = 960.0  # the longest timeout a function may have, and a little


def register(app: click.Group) -> None:
    """Add both commands."""
    command(app)(invoke)
    command(app)(logs)


@click.argument("name", metavar="NAME")
@click.argument("source", metavar="[-]", required=False, default="")
@click.option("--data", "-d", "data", metavar="JSON", help="The event.")
@click.option("--file", "-f", "file", type=PATH, metavar="FILE", help="Read the event from a file.")
@click.option("--tail", "tail", is_flag=True, help="Show the call's last log lines and timings on standard error.")
@click.option("--qualifier", "-q", "qualifier", default="", metavar="Q", help="Alias or version; default: live.")
@click.option("--async", "later", is_flag=True, help="Return once the call is durable; print its id.")
@click.option("--wait", "wait", is_flag=True, help="With --async: wait for its result.")
@click.option("--delay", "delay", type=click.FloatRange(min=0), default=None, metavar="SECONDS", help="With --async: not before that.")
@click.option("--key", "key", default="", metavar="KEY", help="With --async: idempotency key; the same key is one call.")
def invoke(session: Session, name: str, source: str, data: str | None, file: Path | None, tail: bool, qualifier: str, **how: Any) -> None:
    """Call a function with a JSON event; its result goes to standard output. Exit code 1 when the function failed."""
    from dayfly.cli.client import function_path

    body = _event(source, data, file)
    if how["later"]:
        _invoke_later(session, function_path(name, "invoke"), body, session.query(qualifier=qualifier, mode="async"), how)
        return
    if how["wait"] or how["delay"] is not None or how["key"]:
        raise Failure("--wait, --delay and --key are for asynchronous calls.", "Add --async.")
    headers = {"Content-Type": "application/json"} | ({"X-Amz-Log-Type": "Tail"} if tail else {})
    client = session.client
    client.timeout_seconds = INVOKE_SECONDS_MAX
    answer = client.send("POST", function_path(name, "invoke"), query=session.query(qualifier=qualifier), body=body, headers=headers)
    failed = "x-amz-function-error" in answer.headers
    if not failed:
        answer.check()
    if session.json:
        output.document(_document(answer.headers, answer.body, failed))
    else:
        sys.stdout.flush()
        _write_result(answer.body)
    if tail:
        output.message(base64.b64decode(answer.headers.get("x-amz-log-result", "")).decode("utf-8", "replace").rstrip("\n"))
        output.message(_summary(answer.headers), output.DIM)
    if failed:
        error = _value(answer.body)
        if isinstance(error, dict):
            output.message(traceback_text(error), output.RED)
        raise click.exceptions.Exit(EXIT_FUNCTION)


def _invoke_later(session: Session, path: str, body: bytes, query: dict[str, Any], how: dict[str, Any]) -> None:
    from dayfly.cli import calls

    headers = {"Content-Type": "application/json"}
    if how["delay"] is not None:
        headers["X-Dayfly-Delay"] = f"{how['delay']:.3f}"
    if how["key"]:
        headers["Idempotency-Key"] = how["key"]
    answer = session.client.send("POST", path, query=query, body=body, headers=headers)
    answer.check()
    call_id = answer.headers.get("x-call-id", "")
    if how["wait"]:
        calls.finish(session, calls.waited(session, call_id))
    else:
        calls.accepted(session, call_id, duplicate="x-dayfly-duplicate" in answer.headers)


def _event(source: str, data: str | None, file: Path | None) -> bytes:
    """The event's bytes from exactly one place; `{}` when none was named."""
    if sum((bool(source), data is not None, file is not None)) > 1:
        raise Failure("The event was given twice.", "Use one of --data, --file and `-`.")
    if source not in ("", "-"):
        raise Failure(f"{source!r} is not understood here.", "Give the event with --data JSON, --file FILE, or `-` for standard input.")
    try:
        if source == "-" or str(file) == "-":
            raw = sys.stdin.buffer.read()
        else:
            raw = file.read_bytes() if file is not None else (data if data is not None else "{}").encode()
    except OSError as error:
        raise Failure(f"{file}: {error.strerror}.", "Name a readable file.") from error
    try:
        json.loads(raw)
    except ValueError as error:
        raise Failure(f"The event is no JSON: {error}.", "Texts need their quotes: --data '\"hello\"'.") from error
    return raw


def _value(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _write_result(body: bytes) -> None:
    """The result as it came; on a terminal without control characters."""
    if sys.stdout.isatty():
        output.result(body.decode("utf-8", "replace").rstrip("\n"))
        return
    sys.stdout.buffer.write(body if body.endswith(b"\n") else body + b"\n")
    sys.stdout.buffer.flush()


def _document(headers: dict[str, str], body: bytes, failed: bool) -> dict[str, Any]:
    return {
        "error" if failed else "result": _value(body),
        "call_id": headers.get("x-call-id"),
        "version": headers.get("x-amz-executed-version", headers.get("x-dayfly-version")),
        "start": headers.get("x-dayfly-start"),
        "instance": headers.get("x-dayfly-instance"),
        "timings_ms": {phase: float(ms) for phase, ms in TIMING.findall(headers.get("server-timing", ""))},
    }


def _summary(headers: dict[str, str]) -> str:
    timings = "  ".join(f"{phase} {output.milliseconds(float(ms))}" for phase, ms in TIMING.findall(headers.get("server-timing", "")))
    version, start = headers.get("x-dayfly-version", "-"), headers.get("x-dayfly-start", "")
    return f"call {headers.get('x-call-id', '-')}  version {version}  {start}  {timings}"


@click.argument("name", metavar="NAME")
@click.option("--follow", "-f", "follow", is_flag=True, help="Go on with what comes.")
@click.option("--call", "call", default="", metavar="ID", help="Only this call.")
@click.option("--since", "since", default="", metavar="AGE", help="Not older than 30s, 10m, 2h, 7d.")
@click.option("--limit", "limit", type=click.IntRange(min=1, max=100000), default=100, metavar="N", help="At most so many records.")
def logs(session: Session, name: str, follow: bool, call: str, since: str, limit: int) -> None:
    """Show a function's output and log lines, oldest first; NDJSON with --json."""
    import time

    query = session.query(function=name, call=call, limit=limit)
    if since:
        query["since"] = f"{time.time() - age_seconds(since):.3f}"
    if follow:
        query["follow"] = "true"
    for record in session.client.lines("GET", "/api/v1/logs", query=query):
        if session.json:
            output.line(record)
        else:
            show_record(record)


def show_record(record: dict[str, Any]) -> None:
    """One log record as a line: time, call, stream or level, text."""
    import time

    at = record.get("at")
    clock = time.strftime("%H:%M:%S", time.localtime(at)) + f".{int(at * 1000) % 1000:03d}" if isinstance(at, int | float) else "-"
    stream = str(record.get("stream", ""))
    level = record.get("level")
    label = LEVELS.get(level, str(level)) if stream in ("logging", "platform") and isinstance(level, int) else stream
    head = f"{clock} {str(record.get('call_id', ''))[:12]:<12} {label:<8} "
    text = output.visible(str(record.get("text", "")).rstrip("\n")).replace("\n", "\n" + " " * len(head))
    bad = label in ("ERROR", "CRITICAL", "stderr")
    sys.stdout.write(output.colour(head, output.DIM, sys.stdout) + (output.colour(text, output.RED, sys.stdout) if bad else text) + "\n")
    sys.stdout.flush()


def age_seconds(text: str) -> float:
    """'90', '30s', '10m', '2h', '7d' → seconds; raises Failure."""
    number, unit = (text[:-1], text[-1:]) if text[-1:] in UNITS else (text, "s")
    try:
        value = float(number) * UNITS[unit]
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e10:
        raise Failure(f"{text!r} is no age.", "Write for example 30s, 10m, 2h or 7d.")
    return value
