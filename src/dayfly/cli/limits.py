"""`dayfly namespace limits`: show what all functions of a namespace together may use, or change some of it. Also how limits are printed."""

from typing import Any
from urllib.parse import quote

import click

from dayfly.cli import output
from dayfly.cli.failure import Failure
from dayfly.cli.options import Session

NAMES = (
    "rate_per_second", "burst", "concurrency", "body_bytes_max", "calls_per_day", "gb_seconds_per_day", "response_bytes_per_day",
)  # fmt: skip
NONE = "none"


def flags(function: Any) -> Any:
    """One flag for each limit."""
    for name in reversed(NAMES):
        option = click.option(f"--{name.replace('_', '-')}", name, metavar=f"NUMBER|{NONE}", help=f"{name}; {NONE} takes it away.")
        function = option(function)
    return function


@click.argument("name", metavar="NAME")
@flags
@click.option("--clear", "clear", is_flag=True, help="Take all limits away first.")
def namespace_limits(session: Session, name: str, clear: bool, **given: str | None) -> None:
    """Show the limits of a namespace, or change those that are named (docs/functions.md, Limits)."""
    path = f"/api/v1/namespaces/{quote(name, safe='')}/limits"
    changes = {key: _number(key, text) for key, text in given.items() if text is not None}
    answer: dict[str, Any] = {} if clear else session.client.json("GET", path)
    if changes or clear:
        limits = {key: value for key, value in (answer.get("limits", {}) | changes).items() if value is not None}
        answer = session.client.json("PUT", path, body=limits)
    if session.json:
        output.document(answer)
        return
    output.show_table(("limit", ">value", ">used today"), [row[1:] for row in rows(answer["state"])], empty=f"{name} has no limits")


def rows(state: list[dict[str, Any]]) -> list[tuple[str, str, str, str]]:
    """(scope, limit, value, used today) as people read them."""
    return [(it["scope"], it["limit"], _shown(it["value"]), _shown(it.get("used_today"))) for it in state]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,g}" if value < 1e6 else f"{value:,.0f}"


def _number(name: str, text: str) -> float | int | None:
    if text == NONE:
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise Failure(f"--{name.replace('_', '-')} {text!r} is no number.", f"Write a number, or {NONE} to take the limit away.") from None
