"""Windows in which more instances are kept ready (`[[provisioned]]` of dayfly.toml): are they sound, and which are open now.

due.py reads the expressions and knows daylight saving as Debian's cron does (a time that a spring night skips fires right after it, one
that an autumn night repeats fires once); a window then lasts its seconds of real time. The floors of the moment travel in the catalog
(`Function.floors`): a gateway that starts anew has them at once, and one whose control is away keeps the last ones.
Used by control/catalog.py and control/deploy.py. Never touches a store or a clock.
"""

from collections.abc import Iterable, Iterator
from zoneinfo import ZoneInfoNotFoundError

from cronsim import CronSimError

from dayfly.control.due import Cron, zone_of
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import FunctionConfig, Provisioned, Version

CRON_FIELDS = 5
REMEMBERED_MAX = 10_000  # windows whose next edge is known; beyond, all are worked out again


def check(config: FunctionConfig, now: float) -> None:
    """Raises Refusal bad_config that names every window whose cron cannot be read or never comes, or whose timezone is unknown."""
    problems = [
        f"provisioned[{number}]: {problem}" for number, window in enumerate(config.provisioned) for problem in _problems(window, now)
    ]
    if problems:
        raise Refusal("bad_config", " ".join(problems[:3]), extra={"problems": problems})


def _problems(window: Provisioned, now: float) -> Iterator[str]:
    try:
        zone = zone_of(window.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        yield f"timezone = {window.timezone!r}: unknown; names are those of the IANA database, as in 'Europe/Berlin' or 'UTC'."
        return
    if len(window.cron.split()) != CRON_FIELDS:
        yield f"cron = {window.cron!r}: must have five fields: minute hour day month weekday, as in '0 8 * * mon-fri'."
        return
    try:
        next(Cron(window.cron, zone).after(now))
    except (CronSimError, StopIteration) as error:
        yield f"cron = {window.cron!r}: {error or 'never comes'}; five fields: minute hour day month weekday, as in '0 8 * * mon-fri'."


class Floors:
    """Which windows are open. Remembers each window's next edge, so that asking every second costs a look-up."""

    def __init__(self) -> None:
        self._known: dict[Provisioned, tuple[float, float, bool]] = {}  # asked at, holds until, open

    def of(self, versions: Iterable[Version], now: float) -> dict[int, int]:
        """Version number → instances that its open windows ask for at epoch seconds `now`; only versions with an open window."""
        floors: dict[int, int] = {}
        for version in versions:
            asked = [window.min_instances for window in version.config.provisioned if self._open(window, now)]
            if asked:
                floors[version.number] = max(asked)
        return floors

    def _open(self, window: Provisioned, now: float) -> bool:
        since, until, is_open = self._known.get(window, (0.0, 0.0, False))
        if not since <= now < until:  # also when the machine's clock was put back
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            until, is_open = _edge(window, now)
            self._known[window] = now, until, is_open
        return is_open


def _edge(window: Provisioned, now: float) -> tuple[float, bool]:
    """Until when the answer holds, and the answer: whether a beginning lies less than the duration back."""
    try:
        starts = Cron(window.cron, zone_of(window.timezone))
        first = next(starts.after(now - window.duration_seconds))
    except (CronSimError, StopIteration, ZoneInfoNotFoundError, ValueError, OSError):
        return float("inf"), False  # it was sound when it was deployed; the machine's time zones may have changed
    return (first + window.duration_seconds, True) if first <= now else (first, False)
