"""What may be forgotten: versions beyond the newest, folders nobody names. Facts in, what to delete out.

Policy (docs/operations.md): the `versions_kept` newest versions of a function stay, and every version that an alias names. A
code or layer folder goes when no kept version has named it for the grace period, so that calls that began before a version
was dropped, or a function removed, still find their files.
"""

from collections.abc import Collection, Mapping

from dayfly.core.model.function import Alias

LONGEST_CALL_SECONDS = 900.0
GRACE_SECONDS = LONGEST_CALL_SECONDS + 60.0  # the longest call plus the time in which pools drain


def versions_to_drop(numbers: Collection[int], aliases: Collection[Alias], kept: int) -> tuple[int, ...]:
    """Version numbers to forget, ascending."""
    named = {number for alias in aliases for number, _ in alias.weights}
    newest = sorted(numbers)[-kept:]
    return tuple(sorted(set(numbers) - named - set(newest)))


def folders_to_drop(
    marked: Mapping[tuple[str, str], float], held: Collection[tuple[str, str]], now: float, grace_seconds: float = GRACE_SECONDS
) -> list[tuple[str, str]]:
    """Of the folders `marked` as unreferenced (→ since when), those whose grace is over and that no deploy holds now."""
    return sorted(folder for folder, since in marked.items() if now - since >= grace_seconds and folder not in held)
