"""`dayfly simulate`: a trace of calls through the platform's own keep-alive and eviction, policy beside policy. Needs no platform."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dayfly.cli import output
from dayfly.cli.failure import EXIT_PLATFORM, Failure
from dayfly.cli.options import PATH, Session, command

if TYPE_CHECKING:
    from dayfly.core.decide.simulate import Policy, Result
    from dayfly.core.model.trace import Trace

BOUNDED = "histogram-bounded"
PLOT_SUFFIXES = (".svg", ".png")
COLUMNS = ("policy", ">cold", ">p50", ">p75", ">p90", ">wasted GB·h", ">instances", ">peak", ">ahead", ">evicted")


def register(app: click.Group) -> None:
    """Add the command."""
    command(app)(simulate)


@click.argument("trace", type=PATH)
@click.option("--policy", "names", multiple=True, metavar="NAME", help="Only this policy; may be repeated. Unknown names list all.")
@click.option("--memory-gb", "memory_gb", type=click.FloatRange(min=0, min_open=True), help=f"Memory of all instances, for {BOUNDED}.")
@click.option("--start-ms", "start_ms", type=click.FloatRange(min=0), default=5.0, help="Start with init, where the trace does not say.")
@click.option("--plot", "plot", type=PATH, help="Draw instances over time and cold shares into FILE.svg or FILE.png.")
def simulate(session: Session, trace: Path, names: tuple[str, ...], memory_gb: float | None, start_ms: float, plot: Path | None) -> None:
    """Replay a trace of calls (CSV) and compare keep-alive policies: cold share, wasted memory, instances over time."""
    from dayfly.core.decide.simulate import simulate as replay

    policies = _policies(names, memory_gb)
    if plot is not None:
        _plot_wanted(plot)
    replayed = _read(trace, start_ms)
    results = [replay(replayed, policy, (memory_gb or 0) * 1024) for policy in policies]
    if plot is not None:
        from dayfly.cli.plotting import draw

        draw(replayed.seconds, results, plot)
    if session.json:
        output.document(_document(replayed, results))
        return
    output.message(f"{results[0].calls:,} calls of {len(replayed.subjects):,} functions in {output.duration(replayed.seconds)}")
    output.show_table(COLUMNS, [_row(result) for result in results], empty="")
    output.message("cold: share of all calls; p50, p75, p90: the function's share that so many functions do not exceed.")
    if plot is not None:
        output.message(f"drawn: {plot}")


def _policies(names: Sequence[str], memory_gb: float | None) -> "list[Policy]":
    from dayfly.core.decide.simulate import POLICIES

    known = {policy.name: policy for policy in POLICIES}
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise Failure(f"There is no policy {unknown!r}.", "; ".join(f"{policy.name}: {policy.about}" for policy in POLICIES))
    if BOUNDED in names and memory_gb is None:
        raise Failure(f"{BOUNDED} needs a bound.", "Say how much memory all instances may have: --memory-gb 4")
    return [policy for policy in POLICIES if (policy.name in names if names else not policy.bounded or memory_gb is not None)]


def _read(path: Path, start_ms: float) -> "Trace":
    from dayfly.core.wire.trace import BadTrace, Defaults, parse_trace

    try:
        with path.open(encoding="utf-8", newline="") as lines:
            return parse_trace(lines, Defaults(start_ms=start_ms))
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(f"Cannot read {path}: {error}.", "Name a CSV file; docs/cli.md shows the two formats.") from error
    except BadTrace as error:
        raise Failure(f"{path} is no trace: {error}.", "docs/cli.md shows the two formats.") from error


def _plot_wanted(path: Path) -> None:
    """Said before the work, not after it."""
    from importlib.util import find_spec

    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise Failure(f"{path.name}: drawings end in .svg or .png.", "Name the file so.")
    if find_spec("matplotlib") is None:
        raise Failure("Drawing needs matplotlib.", "pip install 'dayfly[plot]'", fault="platform", exit_code=EXIT_PLATFORM)


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _row(result: "Result") -> list[str]:
    shares = [f"{share:.2%}" for share in (result.cold_share, *(result.share_at(at) for at in (0.5, 0.75, 0.9)))]
    counts = [f"{_mean(result.instances):.1f}", str(max(result.instances, default=0)), str(result.ahead), str(result.evicted)]
    return [result.policy, *shares, f"{result.wasted_mb_seconds / 1024 / 3600:.2f}", *counts]


def _document(trace: "Trace", results: "Sequence[Result]") -> dict[str, Any]:
    return {
        "functions": len(trace.subjects),
        "calls": results[0].calls,
        "seconds": trace.seconds,
        "policies": [
            {
                "name": result.policy,
                "cold": result.cold,
                "cold_share": result.cold_share,
                "cold_share_of_functions": {f"p{at}": result.share_at(at / 100) for at in (25, 50, 75, 90, 99)},
                "wasted_mb_seconds": result.wasted_mb_seconds,
                "memory_mb_peak": result.memory_mb_peak,
                "ahead": result.ahead,
                "evicted": result.evicted,
                "instances": list(result.instances),
            }
            for result in results
        ],
    }
