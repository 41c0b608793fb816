"""`dayfly schedules`: what calls functions by the clock. One request a command; times are shown in this machine's time zone."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from dayfly.cli import output
from dayfly.cli.failure import Failure
from dayfly.cli.functions import confirm, done
from dayfly.cli.options import Session, command

schedules_app = click.Group("schedules", help="Schedules: functions called by the clock.")
PREVIEW = "/api/v1/schedule-times"


def register(app: click.Group) -> None:
    """Add the group."""
    app.add_command(schedules_app)
    for name, function in (
        ("ls", schedules_ls),
        ("show", schedules_show),
        ("put", schedules_put),
        ("rm", schedules_rm),
        ("pause", schedules_pause),
        ("resume", schedules_resume),
        ("next", schedules_next),
        ("run", schedules_run),
    ):
        command(schedules_app, name)(function)


def when(function: Any) -> Any:
    """The flags that say when."""
    for name, metavar, about in (
        ("--timezone", "ZONE", "Time zone of the expression, as in Europe/Berlin; default: UTC."),
        ("--at", "MOMENT", "Once, as in 2026-12-24T18:00:00."),
        ("--rate", "RATE", "Again and again, as in '5 minutes'."),
        ("--cron", "FIELDS", "[second] minute hour day month weekday, as in '0 8 * * mon-fri'."),
    ):
        function = click.option(name, metavar=metavar, help=about)(function)
    return function


@click.argument("function", metavar="[FUNCTION]", required=False)
def schedules_ls(session: Session, function: str | None) -> None:
    """List schedules, or those of one function."""
    answer = session.client.json("GET", "/api/v1/schedules", query=session.query(function=function))
    if session.json:
        output.document(answer)
        return
    rows = [(it["name"], it["function"], it["expression"], _state(it), output.moment(it["next_at"])) for it in answer["schedules"]]
    output.show_table(("name", "function", "when", "state", "next"), rows, empty="no schedules")


@click.argument("name", metavar="NAME")
def schedules_show(session: Session, name: str) -> None:
    """Show one schedule: what it says, when it fires next, what became of it so far."""
    answer = session.client.json("GET", _path(name), query=session.query())
    if session.json:
        output.document(answer)
        return
    counts = answer["counts"]
    rows = [
        ("function", answer["function"]),
        ("when", f"{answer['expression']} {answer['timezone']}"),
        ("state", _state(answer)),
        ("declared by", "its function's dayfly.toml" if answer["declared"] else "the API"),
        ("overlap", answer["overlap"]),
        ("missed", answer["missed"]),
        ("jitter", f"{answer['offset_seconds']:g} of {answer['jitter_seconds']:g} s"),
        ("payload", json.dumps(answer["payload"]) if "payload" in answer else "the event of the firing"),
        ("next", output.moment(answer["next_at"])),
        ("last", f"{output.moment(answer['last_due'])} {answer['last_call']}".strip()),
        ("so far", f"{counts['fired']} fired, {counts['skipped']} skipped, {counts['missed']} missed"),
    ]
    output.show_table((name, ""), rows, empty="")


@click.argument("name", metavar="NAME")
@click.argument("function", metavar="FUNCTION")
@when
@click.option("--jitter-seconds", type=float, metavar="SECONDS", help="Each firing is late by the same part of this.")
@click.option("--overlap", metavar="skip|queue|parallel", help="While the firing before still waits or runs; default: skip.")
@click.option("--missed", metavar="none|last|all", help="Due times while nobody could fire; default: last.")
@click.option("--payload", metavar="JSON|@FILE", help="What the function gets instead of the event of the firing.")
@click.option("--off", is_flag=True, help="Put it, but do not fire.")
def schedules_put(session: Session, name: str, function: str, payload: str | None, off: bool, **said: Any) -> None:
    """Make or replace a schedule that calls FUNCTION."""
    body: dict[str, Any] = {"function": function, "enabled": not off} | {key: value for key, value in said.items() if value is not None}
    if payload is not None:
        body["payload"] = _payload(payload)
    answer = session.client.json("PUT", _path(name), query=session.query(), body=body)
    done(session, answer, f"schedule {name} is set: {answer['expression']}, next {output.moment(answer['next_at'])}")


@click.argument("name", metavar="NAME")
@click.option("--yes", "-y", "yes", is_flag=True, help="Do not ask.")
def schedules_rm(session: Session, name: str, yes: bool) -> None:
    """Remove a schedule. Calls that it made stay."""
    confirm(f"Remove the schedule {name}?", yes or session.json)
    session.client.json("DELETE", _path(name), query=session.query())
    done(session, {"removed": name}, f"schedule {name} is removed")


@click.argument("name", metavar="NAME")
def schedules_pause(session: Session, name: str) -> None:
    """Pause a schedule: what is due meanwhile is not fired, and not made up for."""
    answer = session.client.json("POST", _path(name, "pause"), query=session.query())
    done(session, answer, f"schedule {name} is paused")


@click.argument("name", metavar="NAME")
def schedules_resume(session: Session, name: str) -> None:
    """Let a paused schedule go on."""
    answer = session.client.json("POST", _path(name, "resume"), query=session.query())
    done(session, answer, f"schedule {name} goes on: next {output.moment(answer['next_at'])}")


@click.argument("name", metavar="[NAME]", required=False)
@when
@click.option("--count", type=int, default=10, show_default=True, metavar="NUMBER", help="How many.")
def schedules_next(session: Session, name: str | None, count: int, **said: str | None) -> None:
    """Show when a schedule fires next, or when an expression would (--cron, --rate, --at)."""
    flags = {key: value for key, value in said.items() if value}
    if bool(name) == bool(flags):
        raise Failure("Name a schedule, or say --cron, --rate or --at.", "As in: dayfly schedules next --cron '0 8 * * mon-fri'.")
    if name:
        answer = session.client.json("GET", _path(name, "next"), query=session.query(count=count))
    else:
        answer = session.client.json("GET", PREVIEW, query={**flags, "count": count})
    if session.json:
        output.document(answer)
        return
    if not answer["times"]:
        output.message("never")
    for moment in answer["times"]:
        output.result(output.moment(moment))


@click.argument("name", metavar="NAME")
def schedules_run(session: Session, name: str) -> None:
    """Call a schedule's function now, as it would be called by the clock; prints the call's id."""
    answer = session.client.json("POST", _path(name, "run"), query=session.query())
    if session.json:
        output.document(answer)
    else:
        output.result(answer["call_id"])


def _path(name: str, *rest: str) -> str:
    return "/".join(["/api/v1/schedules", quote(name, safe=""), *rest])


def _state(answer: dict[str, Any]) -> str:
    if answer["paused"]:
        return "paused"
    if not answer["enabled"]:
        return "off"
    return "on" if answer["next_at"] is not None else "over"


def _payload(said: str) -> Any:
    try:
        return json.loads(Path(said[1:]).read_bytes() if said.startswith("@") else said)
    except OSError as error:
        raise Failure(f"{said[1:]} cannot be read: {error.strerror}.", "Name a file after the @.") from None
    except ValueError as error:
        raise Failure(f"The payload is no JSON: {error}.", "Quote it for the shell, or name a file: --payload @FILE.") from None
