"""Where cold answers came from: a plain fork, a prepared sandbox, a template, or a template's child made ahead. Arithmetic only.

A benchmark measures one origin; answers of another do not belong to its figure and are counted beside it, never hidden. Used by the
cold benchmarks; bench/report.py prints the document.
"""

from collections import Counter
from dataclasses import dataclass, field

from bench.load import Reply
from bench.outcome import quantile

WARM = "warm"
UNNAMED = "fork"  # a platform that says nothing of origins has no other


def origin_of(reply: Reply) -> str:
    """fork | prepared | template | ahead of a cold answer; `warm` of any other."""
    return (reply.header("x-dayfly-origin") or UNNAMED) if reply.header("x-dayfly-start") == "cold" else WARM


@dataclass
class Tally:
    """The answers of all runs. `wanted` is the origin that the benchmark measures; '' takes every cold answer."""

    wanted: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    hits: list[float] = field(default_factory=list)

    def take(self, replies: list[Reply]) -> tuple[list[float], int]:
        """Count them. Returns the times of the cold ones, in milliseconds, and how many were warm."""
        cold, warm = [], 0
        for reply in replies:
            origin = origin_of(reply)
            self.counts[origin] += 1
            if origin == WARM:
                warm += 1
                continue
            cold.append(reply.milliseconds)
            if self.wanted in ("", origin):
                self.hits.append(reply.milliseconds)
        return cold, warm

    def document(self) -> dict[str, object]:
        """`answers` by origin, `belonging` and `elsewhere` as counts, and the percentiles of those that belong."""
        cold = sum(count for origin, count in self.counts.items() if origin != WARM)
        return {
            "wanted": self.wanted or "any",
            "answers": dict(sorted(self.counts.items())),
            "belonging": len(self.hits),
            "elsewhere": cold - len(self.hits),
            "p50_belonging": round(quantile(self.hits, 0.5), 3),
            "p99_belonging": round(quantile(self.hits, 0.99), 3),
        }
