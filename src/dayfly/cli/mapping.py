"""`dayfly map`: a function called with each line of a file, its results and its reducer's; and `dayfly maps`, to look after them.

The map runs in the platform: this sends the items and shows what comes. Whatever breaks off (this command, the connection, control), the
same command with --resume goes on where it was; while control is away for a moment, this waits for it.
"""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from dayfly.cli import output
from dayfly.cli.bar import Bar
from dayfly.cli.failure import EXIT_FUNCTION, EXIT_INTERRUPTED, EXIT_PLATFORM, Failure
from dayfly.cli.functions import confirm, done
from dayfly.cli.items import Chunk, Out, chunks, count, opened
from dayfly.cli.options import PATH, Session, command

T = TypeVar("T")
ENDED = ("done", "failed", "cancelled")
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 120.0  # how long nothing may move while control is away or full
AGAIN_SECONDS = 0.5
FOR_A_MOMENT = frozenset(
    ("unreachable", "control_unavailable", "shutting_down", "overloaded", "async_queue_full", "storage_full", "acceptance_unknown")
)
_LINE = re.compile(r"Line ([0-9]+) ")

maps_app = click.Group("maps", help="Maps: a function over many items; what runs, is done or has failed.")


def register(app: click.Group) -> None:
    """Add the command and the group."""
    command(app, "map")(map_)
    app.add_command(maps_app)
    for name, function in (("ls", ls), ("show", show), ("cancel", cancel), ("redrive", redrive), ("rm", remove)):
        command(maps_app, name)(function)


@click.argument("names", metavar="[NAME] [ITEMS]", nargs=-1)
@click.option("--concurrency", "-c", "concurrency", type=click.IntRange(min=1), default=None, metavar="N", help="So many at once, at most.")
@click.option("--reduce", "reduce", default="", metavar="NAME", help="A function that is given all results; its answer is the map's.")
@click.option("--ordered", "ordered", is_flag=True, help="Results in the order of the items, not as they are there.")
@click.option("--out", "-o", "out", type=PATH, metavar="FILE", help="Write results to this file.")
@click.option("--id", "map_id", default="", metavar="ID", help="The map's name: the same command again is the same map.")
@click.option("--resume", "resume", default="", metavar="ID", help="Go on with a map: sending, if that is not done, and its results.")
@click.option("--fail-fast", "fail_fast", is_flag=True, help="End the map when the first item has failed for good.")
@click.option("--qualifier", "-q", "qualifier", default="", metavar="Q", help="Alias or version; default: live.")
def map_(session: Session, names: tuple[str, ...], out: Path | None, ordered: bool, resume: str, **how: Any) -> None:
    """Call a function with every line of ITEMS (JSON; - is standard input). Results are lines of JSON. Exit code 1 when an item failed."""
    if len(names) > 2 or (len(names) < 2 and not resume):
        raise Failure("Which function over which items?", "Write `dayfly map NAME items.jsonl`, or --resume ID.")
    if resume and (how["map_id"] or how["concurrency"] or how["reduce"] or how["fail_fast"] or how["qualifier"]):
        raise Failure("--resume goes on with a map as it is.", "Leave out --id, --concurrency, --reduce, --fail-fast and --qualifier.")
    items = names[-1] if names else ""
    total = count(items) if items else 0
    it, kept = _found(session, resume, names) if resume else _made(session, names[0], how)
    run = _Run(session, it, Out(out, kept=kept, ordered=ordered), to_file=out is not None, ordered=ordered)
    try:
        with Bar(quiet=session.json or (run.to_terminal and sys.stdout.isatty())) as bar:
            run.bar = bar
            if it["total"] < 0 and it["state"] == "filling":
                run.send(items, total)
            run.follow()
    except KeyboardInterrupt:
        _say_how_to_resume(run, items, out)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    finally:
        run.out.close()
    run.finish()


def _made(session: Session, name: str, how: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The map, and whether it was there before."""
    order = {"function": name, "concurrency": how["concurrency"] or 0, "reduce": how["reduce"], "fail_fast": how["fail_fast"]}
    order |= ({"id": how["map_id"]} if how["map_id"] else {}) | ({"qualifier": how["qualifier"]} if how["qualifier"] else {})
    it: dict[str, Any] = session.client.json("POST", "/api/v1/maps", query=session.query(), body=order)
    kept = it["accepted"] > 0 or it["state"] != "filling"
    if not session.json:
        output.message(f"map {it['id']}" + (" goes on" if kept else ""), output.DIM)
    return it, kept


def _found(session: Session, map_id: str, names: tuple[str, ...]) -> tuple[dict[str, Any], bool]:
    it: dict[str, Any] = session.client.json("GET", _path(map_id), query=session.query())
    if len(names) == 2 and names[0] != it["function"]:
        raise Failure(f"Map {map_id} is over {it['function']}, not {names[0]}.", "Leave the function's name out.")
    if it["state"] == "filling" and not names:
        raise Failure(f"Map {map_id} is not whole: {it['accepted']} items were sent.", "Name the file of items again, to send the rest.")
    return it, True


def _say_how_to_resume(run: "_Run", items: str, out: Path | None) -> None:
    rest = f" {items}" if run.it["total"] < 0 and items else ""
    more = f" --out {out}" if out is not None else ""
    output.message(f"map {run.id} runs on; `dayfly map --resume {run.id}{rest}{more}` goes on here, `dayfly maps cancel {run.id}` ends it")


class _Run:
    """One map as this command sees it."""

    def __init__(self, session: Session, it: dict[str, Any], out: Out, *, to_file: bool, ordered: bool) -> None:
        self.session, self.it, self.out = session, it, out
        self.id: str = it["id"]
        self.ordered = ordered
        self.bar = Bar(quiet=True)
        self.begun = time.monotonic()
        self._shows_items = to_file or not (it["reduce"] or session.json)
        self.to_terminal = self._shows_items and not to_file  # if standard output is one: a bar would stand between the lines

    # ---- there -----------------------------------------------------------------------------------------------------------------

    def send(self, source: str, total: int) -> None:
        """The items that are not there yet."""
        with opened(source) as file:
            for chunk in chunks(file, source, self.it["accepted"]):
                self.it = self._patiently(lambda: self._send(chunk))  # noqa: B023 (called here)
                self.bar.sent(self.it["accepted"], total)

    def _send(self, chunk: Chunk) -> dict[str, Any]:
        query = self.session.query(first=chunk.first, last="true" if chunk.last else "")
        headers = {"Content-Type": "application/x-ndjson"}
        answer = self.session.client.send("POST", _path(self.id) + "/items", query=query, body=b"\n".join(chunk.lines), headers=headers)
        try:
            answer.check()
        except Failure as failure:
            if (found := _LINE.match(failure.what)) is not None and int(found[1]) <= len(chunk.numbers):
                failure.what = failure.what.replace(found[0], f"Line {chunk.numbers[int(found[1]) - 1]} ", 1)
                failure.extra = ""
            raise
        import json

        found_map: dict[str, Any] = json.loads(answer.body)
        return found_map

    # ---- and back --------------------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Until the map has ended and all that it brought is here."""
        after = str(max(self.out.seen)) if self.ordered and self.out.seen else ""
        moved = time.monotonic()
        while self._shows_items:
            before = len(self.out.seen)
            after, broken = self._stream(after)
            if len(self.out.seen) > before:
                moved = time.monotonic()
            if broken is not None:
                if time.monotonic() - moved > PATIENCE_SECONDS:
                    raise broken
                continue
            if self.it["state"] in ENDED:
                if len(self.out.seen) >= self.it["accepted"]:
                    return
                if len(self.out.seen) == before:
                    what = f"Only {before} results of {self.it['accepted']} items came."
                    raise Failure(what, f"`dayfly map --resume {self.id}` asks once more.", fault="platform", exit_code=EXIT_PLATFORM)
        while True:
            self.it = self._patiently(self._look)
            self.bar.show(self.it)
            if self.it["state"] in ENDED:
                return
            time.sleep(LOOK_SECONDS)

    def _stream(self, after: str) -> tuple[str, Failure | None]:
        """Results as they come; where to go on when the stream ends, or breaks off, and then why."""
        broken = None
        query = self.session.query(order="input" if self.ordered else "completed", after=after, wait="10m", progress="true")
        try:
            for line in self.session.client.lines("GET", _path(self.id) + "/results", query=query):
                if "progress" in line:
                    self.it = line["progress"]
                    self.bar.show(self.it)
                    self.out.flush()
                else:
                    self.out.write(line)
                    after = line["after"]
        except Failure as failure:
            if failure.code not in FOR_A_MOMENT:
                raise
            broken = failure
            time.sleep(AGAIN_SECONDS)
        self.it = self._patiently(self._look)
        return after, broken

    def _look(self) -> dict[str, Any]:
        found: dict[str, Any] = self.session.client.json("GET", _path(self.id), query=self.session.query())
        return found

    def _patiently(self, work: Callable[[], T]) -> T:
        """Once more while control is away, or has no room, for a while."""
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return work()
            except Failure as failure:
                if failure.code not in FOR_A_MOMENT or time.monotonic() >= until:
                    raise
            time.sleep(AGAIN_SECONDS)

    # ---- at the end ------------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Say how it ended; exit code 1 when not all is well."""
        it = self.it
        result = None
        if it["result_call"]:
            answer = self.session.client.send("GET", _path(self.id) + "/result", query=self.session.query())
            answer.check()
            result = answer.body.decode("utf-8", "replace").rstrip("\n")
        if self.session.json:
            import json

            output.document({"map": it} | ({"result": json.loads(result)} if result is not None else {}))
        else:
            if result is not None:
                output.result(result)
            failed = f", {it['failed']} failed" if it["failed"] else ""
            reason = f" ({it['reason']})" if it["reason"] else ""
            seconds = output.duration(time.monotonic() - self.begun)
            output.message(f"map {it['id']} {it['state']}{reason}: {it['done']} of {it['accepted']} done{failed}, {seconds}", output.DIM)
            if it["failed"]:
                output.message(f"`dayfly maps redrive {it['id']}` lets those that failed run again", output.DIM)
        if it["failed"] or it["state"] != "done":
            raise click.exceptions.Exit(EXIT_FUNCTION)


# ---- dayfly maps -----------------------------------------------------------------------------------------------------------------------


def ls(session: Session) -> None:
    """List maps, newest first."""
    found = session.client.json("GET", "/api/v1/maps", query=session.query())["maps"]
    if session.json:
        output.document({"maps": found})
        return
    rows = [
        (it["id"], it["function"], it["state"] + (f" ({it['reason']})" if it["reason"] else ""), it["accepted"], it["done"], it["failed"],
         output.moment(it["created_at"]))
        for it in found
    ]  # fmt: skip
    output.show_table(("map", "function", "state", ">items", ">done", ">failed", "made"), rows, empty="no maps")


@click.argument("map_id", metavar="ID")
def show(session: Session, map_id: str) -> None:
    """Show a map: its state, and how far it is."""
    it = session.client.json("GET", _path(map_id), query=session.query())
    if session.json:
        output.document(it)
        return
    output.result(f"map       {it['id']}")
    output.result(
        f"function  {it['function']}.{it['namespace']}:{it['qualifier']}" + (f", reduced by {it['reduce']}" if it["reduce"] else "")
    )
    output.result(f"state     {it['state']}" + (f" ({it['reason']})" if it["reason"] else ""))
    output.result(f"items     {it['accepted']}" + (" so far" if it["total"] < 0 else ""))
    output.result(f"done      {it['done']}, {it['failed']} failed, {it['running']} running" + (f", {it['rate']:g}/s" if it["rate"] else ""))
    output.result(f"made      {output.moment(it['created_at'])}, ended {output.moment(it['ended_at'])}")
    if it["result_call"]:
        output.result(f"result    `dayfly calls wait {it['result_call']}`")


@click.argument("map_id", metavar="ID")
def cancel(session: Session, map_id: str) -> None:
    """End a map: what waits never runs, what runs is ended where that is possible."""
    it = session.client.json("POST", _path(map_id) + "/cancel", query=session.query())
    done(session, it, f"map {map_id} is {it['state']}")


@click.argument("map_id", metavar="ID")
def redrive(session: Session, map_id: str) -> None:
    """Let the items that failed run again, and then the reducer."""
    it = session.client.json("POST", _path(map_id) + "/redrive", query=session.query())
    done(session, it, f"map {map_id} is {it['state']}; `dayfly map --resume {map_id}` shows how it goes on")


@click.argument("map_id", metavar="ID")
@click.option("--yes", "-y", "yes", is_flag=True, help="Do not ask.")
def remove(session: Session, map_id: str, yes: bool) -> None:
    """Delete a map that has ended, with all its results."""
    confirm(f"Delete map {map_id}, with its results?", yes)
    done(session, session.client.json("DELETE", _path(map_id), query=session.query()), f"map {map_id} is deleted")


def _path(map_id: str) -> str:
    return f"/api/v1/maps/{quote(map_id, safe='')}"
