"""A result for people, on the terminal and in bench/results/. Only formats what bench/__main__.py measured."""

import json
from pathlib import Path
from typing import Any

from bench.load import save_text

RESULTS = Path(__file__).parent / "results"


def text(full: dict[str, Any]) -> str:
    """The result as lines."""
    return "\n".join(
        [
            f"{full['name']}: {_figure(full['value'])} {full['unit']}   (floor: {full['floor']})",
            "",
            table(full),
            "",
            *_notes(full),
        ]
    )


def table(full: dict[str, Any]) -> str:
    """Markdown table: ours first, then the baselines with the ratio ours ÷ theirs."""
    unit = full["unit"]
    lines = [
        f"| | {unit} | p50 | p99 | errors | CPU µs per call | ours ÷ this |",
        "|---|---:|---:|---:|---:|---:|---:|",
        _row("**dayfly**", full, ""),
    ]
    lines += [_row(f"**dayfly**, {name}", one, "") for name, one in full.get("also", {}).items()]
    lines += [_row(name, one, _figure(one["ratio"])) for name, one in full["baselines"].items()]
    return "\n".join(lines)


def _row(name: str, one: dict[str, Any], ratio: str) -> str:
    figures = [_figure(one[key]) for key in ("value", "p50", "p99", "errors", "cpu_us_per_call")]
    return f"| {name} | {' | '.join(figures)} | {ratio} |"


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def _notes(full: dict[str, Any]) -> list[str]:
    m = full["machine"]
    runs = "; ".join(f"{name}: {', '.join(map(_figure, values))}" for name, values in full["values"].items())
    notes = [
        f"Method: {full['method']}. Median of {full['runs']} alternating runs{', quick' if full['quick'] else ''}. Runs: {runs}.",
        f"Machine: {m['processor']}, {m['cores']} cores, {m['memory_mb']:,} MB, {m['system']}, Linux {m['kernel']}, Python {m['python']}, "
        f"{m['user']} user. Load {m['load_before']} before, {m['load_after']} after; {m['steal_percent']} % of CPU time stolen.",
    ]
    if "cpu_percent" in full:
        notes.insert(0, "CPU while idle, % of a core: " + ", ".join(f"{k} {v}" for k, v in full["cpu_percent_all"].items()) + ".")
    notes = [*(_origins(name, one) for name, one in full.get("origins", {}).items()), *notes]
    notes += [f"{name[0].upper()}{name[1:]}: {text}." for name, text in full.get("notes", {}).items()]
    if not full["compared"]:
        notes.append("Without baselines: scripts/bench installs them; `python -m bench` alone does not.")
    return notes


def _origins(name: str, one: dict[str, Any]) -> str:
    """Where a series' cold answers came from, and its percentiles over those that belong to the figure."""
    answers = ", ".join(f"{count} {origin}" for origin, count in one["answers"].items())
    if one["wanted"] == "any":
        return f"Origin of the answers ({name}): {answers}."
    share = f"{one['belonging']} are {one['wanted']}, as this figure wants, {one['elsewhere']} are not"
    said = f"Origin of the answers ({name}): {answers}; {share}."
    if not one["belonging"]:
        return f"{said} This figure is none of {one['wanted']}."
    return f"{said} Over those that are: p50 {_figure(one['p50_belonging'])}, p99 {_figure(one['p99_belonging'])}."


def save(full: dict[str, Any]) -> None:
    """bench/results/NAME.json and NAME.md, replaced."""
    RESULTS.mkdir(exist_ok=True)
    save_text(RESULTS / f"{full['name']}.json", json.dumps(full, indent=2) + "\n")
    save_text(RESULTS / f"{full['name']}.md", "\n".join([f"# {full['name']}", "", text(full), ""]))
