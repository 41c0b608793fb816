"""Where an alias may point, and where a rollback goes. Pure: versions and history in, alias out.

Theory: `live`'s history is a stack of version numbers. A deploy pushes, a rollback pops to the newest entry that is another
version; so two rollbacks in a row go back two deploys. While traffic is split over two versions, a rollback ends the split in
favour of the older one: that is what one wants undone first.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Alias, Function, FunctionConfig
from dayfly.core.model.names import LIVE

TARGETS_MAX = 2
WEIGHT_SUM_TOLERANCE = 1e-6


def whole(alias: str, number: int) -> Alias:
    """An alias that points at one version."""
    return Alias(name=alias, weights=((number, 1.0),))


def checked_alias(name: str, weights: Mapping[int, float], kept: Collection[int]) -> Alias:
    """An alias over kept versions. Raises Refusal version_not_found or bad_request, naming what is wrong."""
    if not 1 <= len(weights) <= TARGETS_MAX:
        raise Refusal("bad_request", f"An alias points at one or two versions, not {len(weights)}.")
    for number, weight in weights.items():
        if number not in kept:
            raise Refusal("version_not_found", f"There is no version {number}.")
        if not (math.isfinite(weight) and 0 < weight <= 1):
            raise Refusal("bad_request", f"The weight of version {number} must be above 0 and at most 1, not {weight}.")
    if abs(sum(weights.values()) - 1) > WEIGHT_SUM_TOLERANCE:
        raise Refusal("bad_request", f"Weights must sum to 1; these sum to {sum(weights.values()):g}.")
    return Alias(name=name, weights=tuple(sorted(weights.items())))


def live_config(function: Function) -> FunctionConfig:
    """Settings of the version that gets most of live's calls."""
    live = live_of(function.aliases)
    number = primary(live) if live else function.versions[-1].number
    return next(it.config for it in function.versions if it.number == number)


def primary(alias: Alias) -> int:
    """The version that gets most of an alias's calls; the newer of two equals."""
    return max(alias.weights, key=lambda pair: (pair[1], pair[0]))[0]


def live_of(aliases: Collection[Alias]) -> Alias | None:
    """The alias `live`, if it is among them."""
    return next((alias for alias in aliases if alias.name == LIVE), None)


def rollback(live: Alias, moves: Sequence[int], kept: Collection[int], to: int | None) -> tuple[int, int]:
    """(the version `live` shall point at, how many of the oldest `moves` to keep before it is pushed).

    `moves` are the versions `live` pointed at, oldest first, with the present one last; `to` is a version, or None for the
    one before. Raises Refusal version_not_found when that one is not kept, or there is none before.
    """
    if to is not None:
        if to not in kept:
            raise Refusal("version_not_found", f"There is no version {to}: it never was, or it is no longer kept.")
        return to, len(moves)
    if len(live.weights) > 1:
        return min(number for number, _ in live.weights), len(moves)
    present = live.weights[0][0]
    for index in range(len(moves) - 1, -1, -1):
        if moves[index] != present and moves[index] in kept:
            return moves[index], index
    raise Refusal("version_not_found", f"There is no version before {present} to go back to.")
