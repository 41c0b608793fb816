"""Commands that look at a running platform over time: top, cost, dev."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dayfly.cli import output
from dayfly.cli.failure import Failure
from dayfly.cli.options import Session, command

MS_PER_HOUR = 3_600_000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app)(top)
    command(app)(cost)
    command(app)(dev)


def top(
    session: Session,
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", min=0.2, max=3600, help="Between two looks.")] = 1.0,
) -> None:
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


def _live(columns: tuple[str, ...], cells: Callable[[dict[str, Any]], tuple[str, ...]], look: Callable[[], list[dict[str, Any]]], interval: float) -> None:
    from rich.live import Live

    with Live(console=output.console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(output.table(columns, [cells(row) for row in look()], title=f"dayfly top · {time.strftime('%H:%M:%S')}"), refresh=True)
            time.sleep(interval)


def cost(
    session: Session,
    start: Annotated[str, typer.Option("--from", metavar="DATE", help="First day, YYYY-MM-DD.")] = "",
    end: Annotated[str, typer.Option("--to", metavar="DATE", help="Last day, YYYY-MM-DD.")] = "",
    function: Annotated[str, typer.Option("--function", metavar="NAME", help="Only this function.")] = "",
) -> None:
    """What was used and what it costs, per function and day."""
    answer = session.client.json("GET", "/api/v1/usage", query=session.query(**{"from": _day(start), "to": _day(end), "function": function}))
    if session.json:
        output.document(answer)
        return
    currency = answer.get("currency", "")
    rows = [
        (
            u.get("day", u.get("date", "-")), u.get("function", "?"), u.get("calls", 0), u.get("errors", 0), u.get("cold", 0),
            f"{u.get('gb_seconds', 0):.3f}", f"{u.get('cost', 0):.6f}",
        )
        for u in answer.get("usage", answer.get("rows", []))
    ]  # fmt: skip
    output.show_table(("day", "function", ">calls", ">errors", ">cold", ">GB-s", f">cost {currency}".rstrip()), rows, empty="nothing was used in that time")
    if rows:
        output.message(f"total {sum(float(row[6]) for row in rows):.6f} {currency}".rstrip())


def _day(text: str) -> str:
    if text:
        import datetime

        try:
            datetime.date.fromisoformat(text)
        except ValueError:
            raise Failure(f"{text!r} is no day.", "Write it like 2026-01-31.") from None
    return text


def dev(
    session: Session,
    path: Annotated[Path, typer.Argument(help="A .py file or a folder.", metavar="PATH")],
    name: Annotated[str, typer.Option("--name", help="Function's name; default as in `deploy`.")] = "",
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="Environment variable; repeat for more.")] = None,
    no_logs: Annotated[bool, typer.Option("--no-logs", help="Do not stream the function's output.")] = False,
) -> None:
    """Deploy at every save and stream the function's output, until Ctrl-C."""
    from dayfly.cli.developing import Developing
    from dayfly.cli.deploying import overrides

    if not path.exists():
        raise Failure(f"{path} does not exist.", "Name a .py file or a folder.")
    Developing(session, path, name, overrides({}, env or [], [])).run(logs=not no_logs)
