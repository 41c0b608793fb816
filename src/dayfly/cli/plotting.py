"""Draws what `dayfly simulate` found, with matplotlib (`dayfly[plot]`): instances over time, and how cold starts spread over functions.

Only cli/simulating.py imports this, and only when a drawing is wanted. Without a display: matplotlib's object interface, no pyplot.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dayfly.cli.failure import Failure
from dayfly.core.decide.simulate import Result


def draw(seconds: float, results: Sequence[Result], path: Path) -> None:
    """Write `path` (.svg or .png). Raises Failure when it cannot be written."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    above, below = figure.subplots(2)
    for result in results:
        times = [number * seconds / len(result.instances) / 3600 for number in range(len(result.instances))]
        above.plot(times, result.instances, label=result.policy, drawstyle="steps-post", linewidth=1)
        part = [100 * (number + 1) / len(result.shares) for number in range(len(result.shares))]
        below.plot([100 * share for share in result.shares], part, label=result.policy, drawstyle="steps-post", linewidth=1)
    above.set(xlabel="hours", ylabel="instances", ylim=(0, None))
    below.set(xlabel="cold starts, % of a function's calls", ylabel="% of functions", xlim=(0, 100), ylim=(0, 100))
    below.axhline(75, color="0.7", linewidth=0.8, linestyle="--")
    above.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as error:
        raise Failure(f"Cannot write {path}: {error}.", "Name a file in a folder that is there.") from error
