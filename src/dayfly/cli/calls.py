"""`dayfly calls`: asynchronous calls, looked at and changed; and how `dayfly invoke --async` waits for one."""

import json
from typing import Any
from urllib.parse import quote

import click

from dayfly.cli import output
from dayfly.cli.failure import EXIT_FUNCTION, Failure
from dayfly.cli.functions import confirm, done
from dayfly.cli.options import Session, command

STATES = ("waiting", "leased", "done", "dead")
WAIT_SECONDS = 30.0  # of one question; asked again until the call is settled
IDS_MAX = 1_000

calls_app = click.Group("calls", help="Asynchronous calls: what waits, runs, is done or dead.")


def register(app: click.Group) -> None:
    """Add the group."""
    app.add_command(calls_app)
    for name, function in (("ls", ls), ("show", show), ("wait", wait), ("cancel", cancel), ("redrive", redrive), ("purge", purge)):
        command(calls_app, name)(function)


@click.argument("name", metavar="[NAME]", required=False, default="")
@click.option("--state", "state", type=click.Choice(STATES), help="Only those in this state.")
@click.option("--tag", "tag", default="", metavar="TAG", help="Only those with this tag.")
@click.option("--limit", "limit", type=click.IntRange(min=1, max=100_000), default=50, metavar="N", help="At most so many.")
@click.option("--counts", "counts", is_flag=True, help="How many calls are in which state, by function, and no list.")
def ls(session: Session, name: str, state: str | None, tag: str, limit: int, counts: bool) -> None:
    """List calls, newest first: all that the token may see in the namespace, or one function's."""
    if counts:
        _counts(session, name)
        return
    found: list[dict[str, Any]] = []
    before = ""
    while len(found) < limit:
        more = {"function": name, "state": state or "", "tag": tag, "before": before, "limit": min(500, limit - len(found))}
        page = session.client.json("GET", "/api/v1/calls", query=session.query(**{key: it for key, it in more.items() if it}))
        found += page["calls"]
        before = page["next"]
        if not before:
            break
    if session.json:
        output.document({"calls": found})
        return
    rows = [
        (it["id"], it["function"], it["state"] + (f" ({it['reason']})" if it["reason"] else ""), it["attempts"],
         output.moment(it["accepted_at"]), output.moment(it["settled_at"] or it["due"]))
        for it in found
    ]  # fmt: skip
    output.show_table(("call", "function", "state", ">attempts", "accepted", "settled or due"), rows, empty="no calls")


def _counts(session: Session, name: str) -> None:
    queues = [it for it in session.client.json("GET", "/api/v1/queues", query=session.query())["queues"] if name in ("", it["function"])]
    if session.json:
        output.document({"queues": queues})
        return
    rows = [(it["function"], it["namespace"], *(it[state] for state in STATES)) for it in queues]
    output.show_table(("function", "namespace", *(f">{state}" for state in STATES)), rows, empty="no calls")


@click.argument("call_id", metavar="ID")
def show(session: Session, call_id: str) -> None:
    """Show a call: its attempts, its result, and what it cost."""
    call = session.client.json("GET", _path(call_id))
    if session.json:
        output.document(call)
    else:
        _print(call)


@click.argument("call_id", metavar="ID")
@click.option("--timeout", "timeout", type=click.FloatRange(min=0), default=None, metavar="SECONDS", help="Give up waiting then.")
def wait(session: Session, call_id: str, timeout: float | None) -> None:
    """Wait until a call is done or dead; its result goes to standard output. Exit code 1 when it is dead."""
    finish(session, waited(session, call_id, timeout))


@click.argument("ids", metavar="ID…", nargs=-1, required=True)
def cancel(session: Session, ids: tuple[str, ...]) -> None:
    """Cancel calls: those that wait never run, those that run are ended where that is possible."""
    _report(session, session.client.json("POST", "/api/v1/calls/cancel", body={"ids": list(ids)})["calls"])


@click.argument("ids", metavar="[ID…]", nargs=-1)
@click.option("--function", "function", default="", metavar="NAME", help="All dead calls of this function.")
def redrive(session: Session, ids: tuple[str, ...], function: str) -> None:
    """Let dead calls run again, with all their attempts before them."""
    _report(session, _ordered(session, "redrive", ids, function))


@click.argument("ids", metavar="[ID…]", nargs=-1)
@click.option("--function", "function", default="", metavar="NAME", help="All dead calls of this function.")
@click.option("--yes", "-y", "yes", is_flag=True, help="Do not ask.")
def purge(session: Session, ids: tuple[str, ...], function: str, yes: bool) -> None:
    """Delete calls that do not run, with their results."""
    what = f"all dead calls of {function}" if function else f"{len(ids)} calls"
    confirm(f"Delete {what}, with their results?", yes)
    _report(session, _ordered(session, "purge", ids, function))


def _ordered(session: Session, verb: str, ids: tuple[str, ...], function: str) -> dict[str, str]:
    """Do it for all of them, in as many orders as that takes."""
    if bool(ids) == bool(function):
        raise Failure("Which calls?", "Name their ids, or a function with --function NAME.")
    path, found = f"/api/v1/calls/{verb}", dict[str, str]()
    if function:
        while True:
            answer = session.client.json("POST", path, query=session.query(), body={"function": function})
            fresh = {id_: word for id_, word in answer["calls"].items() if id_ not in found}
            found |= fresh
            if not answer["more"] or not fresh:
                return found
    for at in range(0, len(ids), IDS_MAX):
        found |= session.client.json("POST", path, body={"ids": list(ids[at : at + IDS_MAX])})["calls"]
    return found


def _report(session: Session, calls: dict[str, str]) -> None:
    if session.json:
        output.document({"calls": calls})
        return
    for call_id, word in calls.items():
        output.result(f"{call_id}  {word}")
    if not calls:
        output.message("no calls")


def waited(session: Session, call_id: str, timeout: float | None = None) -> dict[str, Any]:
    """The call once it is settled. Raises Failure when that takes longer than `timeout`."""
    import time

    until = None if timeout is None else time.monotonic() + timeout
    session.client.timeout_seconds = WAIT_SECONDS + 30
    while True:
        left = WAIT_SECONDS if until is None else min(WAIT_SECONDS, until - time.monotonic())
        call: dict[str, Any] = session.client.json("GET", _path(call_id), query={"wait": f"{max(0.0, left):.3f}s"})
        if call["state"] in ("done", "dead"):
            return call
        if until is not None and time.monotonic() >= until:
            raise Failure(f"The call is still {call['state']}.", f"`dayfly calls wait {call_id}` goes on waiting.", code="not_settled")


def finish(session: Session, call: dict[str, Any]) -> None:
    """Print a settled call's result; a dead one ends with exit code 1."""
    if session.json:
        output.document(call)
    elif call["state"] == "done":
        answer = session.client.send("GET", _path(call["id"]) + "/result")
        answer.check()
        output.result(answer.body.decode("utf-8", "replace").rstrip("\n"))
    else:
        _print(call)
    if call["state"] == "dead":
        raise click.exceptions.Exit(EXIT_FUNCTION)


def _print(call: dict[str, Any]) -> None:
    reason = f" ({call['reason']})" if call["reason"] else ""
    output.result(f"call      {call['id']}")
    output.result(f"function  {call['function']}.{call['namespace']}:{call['qualifier']}")
    output.result(f"state     {call['state']}{reason}")
    output.result(f"accepted  {output.moment(call['accepted_at'])} by way of {call['source']}")
    if call["state"] == "waiting":
        output.result(f"due       {output.moment(call['due'])}, at most until {output.moment(call['expires'])}")
    for it in call["tries"]:
        again = f"; again at {output.moment(it['again_at'])}" if it["again_at"] else ""
        status = f" {it['status']}" if it["status"] else ""
        detail = f": {it['detail']}" if it["detail"] else ""
        output.result(
            f"attempt   {output.moment(it['leased_at'])}  {it['outcome']}{status}  {output.milliseconds(it['exec_ms'])}{detail}{again}"
        )
    result = call["result"]
    if result is not None:
        shown = result["body_base64"] or (json.dumps(result["body"], ensure_ascii=False) if not result["truncated"] else "")
        output.result(f"result    {result['status'] or ''} {result['bytes']} bytes {shown}".rstrip())
    output.result(f"cost      {call['cost']:.8f}")


def accepted(session: Session, call_id: str, *, duplicate: bool) -> None:
    """Say that a call is durable."""
    more = " (its key was known: this is the first call)" if duplicate else ""
    done(session, {"call_id": call_id, "duplicate": duplicate}, f"accepted as {call_id}{more}; `dayfly calls wait {call_id}`")


def _path(call_id: str) -> str:
    return f"/api/v1/calls/{quote(call_id, safe='')}"
