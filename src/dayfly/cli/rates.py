"""Two looks at /api/v1/statistics → the rows of `dayfly top`. Pure: time is an argument."""

from typing import Any, ClassVar

from dayfly.cli import output

COUNTERS = ("calls", "errors", "cold")


class Rates:
    """Remembers the last look, so that counters become rates."""

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "function", ">calls/s", ">busy", ">queue", ">inst.", ">cold %", ">p50", ">p99", ">memory", ">errors", ">cost/h",
    )  # fmt: skip

    def __init__(self) -> None:
        self._at = 0.0
        self._before: dict[str, dict[str, Any]] = {}

    def rows(self, answer: dict[str, Any], now: float) -> list[dict[str, Any]]:
        """One row per function; rates are None at the first look. `now`: seconds on any clock that does not jump."""
        functions = [f for f in answer.get("functions", []) if isinstance(f, dict)]
        seconds = now - self._at if self._before else 0.0
        rows = [self._row(f, seconds) for f in functions]
        self._before = {_key(f): f for f in functions}
        self._at = now
        return sorted(rows, key=lambda row: (-(row["calls_per_second"] or 0), row["function"]))

    def _row(self, function: dict[str, Any], seconds: float) -> dict[str, Any]:
        before = self._before.get(_key(function))
        new = {key: max(0, _number(function.get(key)) - _number((before or {}).get(key))) for key in COUNTERS}
        known = before is not None and seconds > 0
        calls = new["calls"] if known else _number(function.get("calls"))
        cold = new["cold"] if known else _number(function.get("cold"))
        return {
            "function": _key(function),
            "calls_per_second": round(new["calls"] / seconds, 2) if known else None,
            **{key: _number(function.get(key)) for key in ("calls", "errors", "in_flight", "waiting", "instances", "memory_mb")},
            "cold_percent": round(100 * cold / calls, 1) if calls else None,
            "p50_ms": _phase(function, "p50"),
            "p99_ms": _phase(function, "p99"),
            "cost_per_hour": _cost_per_hour(before or {}, function, seconds),
        }  # fmt: skip

    def cells(self, row: dict[str, Any]) -> tuple[str, ...]:
        """A row as text."""
        return (
            row["function"],
            _text(row["calls_per_second"], ".1f"),
            str(row["in_flight"]),
            str(row["waiting"]),
            str(row["instances"]),
            _text(row["cold_percent"], ".1f"),
            output.milliseconds(row["p50_ms"]),
            output.milliseconds(row["p99_ms"]),
            f"{row['memory_mb']} MB",
            str(row["errors"]),
            _text(row["cost_per_hour"], ".6f"),
        )


def _key(function: dict[str, Any]) -> str:
    name, namespace = str(function.get("function") or function.get("name", "?")), function.get("namespace", "default")
    return name if namespace == "default" else f"{name}.{namespace}"


def _cost_per_hour(before: dict[str, Any], now: dict[str, Any], seconds: float) -> float | None:
    """From the growth of the running cost; None at the first look."""
    if not before or seconds <= 0:
        return None
    growth = float(_number(now.get("cost")) - _number(before.get("cost")))
    return round(max(0.0, growth) / seconds * 3600, 6)


def _phase(function: dict[str, Any], quantile: str) -> float | None:
    """Milliseconds of the whole call at a quantile, None before the first call."""
    value = function.get("phases", {}).get("total", {}).get(f"{quantile}_ms")
    return float(value) if isinstance(value, int | float) else None


def _number(value: Any) -> Any:
    return value if isinstance(value, int | float) else 0


def _text(value: Any, spec: str) -> str:
    return format(value, spec) if isinstance(value, int | float) else "-"
