"""Commands that look at a running platform over time: top, cost, dev."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from dayfly.cli import output
from dayfly.cli.failure import Failure
from dayfly.cli.options import PATH, Session, command

MS_PER_HOUR = 3_600_000


def register(app: click.Group) -> None:
    """Add the commands."""
    command(app)(top)
    command(app)(cost)
    command(app)(dev)


@click.option("--once", "once", is_flag=True, help="One look, then end.")
@click.option("--interval", "interval", type=click.FloatRange(min=0.2, max=3600), default=1.0, metavar="SECONDS", help="Between two looks.")
def top(session: Session, once: bool, interval: float) -> None:
    """Live table: calls/s, in flight, waiting, instances, cold share, p50/p99, memory, cost per hour."""
    from dayfly.cli.rates import Rates

    rates = Rates()

    def look() -> list[dict[str, Any]]:
        answer = session.client.json("GET", "/api/v1/statistics", query=session.query())
        return rates.rows(answer, time.monotonic())

    if once or session.json:
        first = look()
        if not once:
            _stream_json(first, look, interval)
            return
        if session.json:
            output.document({"functions": first})
        else:
            output.show_table(rates.COLUMNS, [rates.cells(row) for row in first], empty="no calls yet")
        return
    _live(rates.COLUMNS, rates.cells, look, interval)


def _stream_json(first: list[dict[str, Any]], look: Callable[[], list[dict[str, Any]]], interval: float) -> None:
    """NDJSON: one object a look, until interrupted."""
    output.line({"functions": first})
    while True:
        time.sleep(interval)
        output.line({"functions": look()})


def _live(
    columns: tuple[str, ...], cells: Callable[[dict[str, Any]], tuple[str, ...]], look: Callable[[], list[dict[str, Any]]], interval: float
) -> None:
    from rich.live import Live

    with Live(console=output.console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(
                output.table(columns, [cells(row) for row in look()], title=f"dayfly top · {time.strftime('%H:%M:%S')}"), refresh=True
            )
            time.sleep(interval)


@click.option("--from", "start", default="", metavar="DATE", help="First day, YYYY-MM-DD.")
@click.option("--to", "end", default="", metavar="DATE", help="Last day, YYYY-MM-DD.")
@click.option("--function", "function", default="", metavar="NAME", help="Only this function.")
def cost(session: Session, start: str, end: str, function: str) -> None:
    """What was used and what it costs, per function and day."""
    answer = session.client.json(
        "GET", "/api/v1/usage", query=session.query(**{"from": _day(start), "to": _day(end), "function": function})
    )
    if session.json:
        output.document(answer)
        return
    currency = answer.get("currency", "")
    rows = [
        (u["day"], u["function"], u["calls"], u["errors"], u["cold"], f"{u['gb_seconds']:.3f}", f"{u['cost']:.8f}")
        for u in answer.get("usage", [])
    ]
    columns = ("day (UTC)", "function", ">calls", ">errors", ">cold", ">GB-s", f">cost {currency}".rstrip())
    output.show_table(columns, rows, empty="nothing was used in that time")
    if rows:
        output.message(f"total {answer.get('cost', 0):.8f} {currency}".rstrip())


def _day(text: str) -> str:
    if text:
        import datetime

        try:
            datetime.date.fromisoformat(text)
        except ValueError:
            raise Failure(f"{text!r} is no day.", "Write it like 2026-01-31.") from None
    return text


@click.argument("path", metavar="PATH", type=PATH)
@click.option("--name", "name", default="", help="Function's name; default as in `deploy`.")
@click.option("--env", "-e", "env", multiple=True, metavar="KEY=VALUE", help="Environment variable; repeat for more.")
@click.option("--no-logs", "no_logs", is_flag=True, help="Do not stream the function's output.")
def dev(session: Session, path: Path, name: str, env: tuple[str, ...], no_logs: bool) -> None:
    """Deploy at every save and stream the function's output, until Ctrl-C."""
    from dayfly.cli.deploying import overrides
    from dayfly.cli.developing import Developing

    if not path.exists():
        raise Failure(f"{path} does not exist.", "Name a .py file or a folder.")
    Developing(session, path, name, overrides({}, env, [])).run(logs=not no_logs)
