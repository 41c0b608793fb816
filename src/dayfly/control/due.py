"""Due times of schedules: `cron`, `rate` and `at`, read with their time zone. Is an expression sound, and when does it come.

cronsim reads cron, and walks along a clock on the wall that is never changed; what that means in a time zone is told here, because cronsim
tells it for five fields only, forgets it in the middle of a repeated hour, and steps over half hours. Two kinds, as Debian's cron has
them: an expression whose minute and hour are named (neither begins with `*`) is for the clock on the wall: what a spring night skips
comes right after the gap (once, if several are skipped), and what an autumn night repeats comes the first time. One with a star
there is for real time: it does not come in the gap, and comes in both hours of the repeated one. Never touches a store or a clock.
Used by control/schedules.py (core/decide/schedule.py decides by these) and control/deploy.py.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from dayfly.core.decide.schedule import Times
from dayfly.core.manifest.schedule import rate_seconds
from dayfly.core.model.errors import Refusal
from dayfly.core.model.schedule import Schedule

CRON_FIELDS = (5, 6)
FORM = "[second] minute hour day month weekday, as in '0 8 * * mon-fri'"
NO_TIME = timedelta()
MINUTE = timedelta(minutes=1)
EPOCH_MAX = 250_000_000_000.0  # year 9892: datetime ends soon after
FIRINGS_COMPARED = 200  # how far ahead the shortest distance of a cron expression is looked for
REMEMBERED_MAX = 4096


class Rate:
    """Every `period` seconds after an anchor."""

    def __init__(self, anchor: float, period: int) -> None:
        self._anchor, self._period = anchor, period

    def after(self, moment: float) -> Iterator[float]:
        """See core/decide/schedule.py Times."""
        number = max(0, int((moment - self._anchor) // self._period))
        while True:
            number += 1
            yield self._anchor + number * self._period

    def upto(self, moment: float) -> Iterator[float]:
        """See core/decide/schedule.py Times."""
        number = int((moment - self._anchor) // self._period)
        while number > 0:
            yield self._anchor + number * self._period
            number -= 1


class Once:
    """One time."""

    def __init__(self, at: float) -> None:
        self._at = at

    def after(self, moment: float) -> Iterator[float]:
        """See core/decide/schedule.py Times."""
        return iter((self._at,) if self._at > moment else ())

    def upto(self, moment: float) -> Iterator[float]:
        """See core/decide/schedule.py Times."""
        return iter((self._at,) if self._at <= moment else ())


class Cron:
    """What a cron expression says in a time zone. Raises CronSimError when it says nothing."""

    def __init__(self, expression: str, zone: tzinfo) -> None:
        self._expression, self._zone = expression, zone
        fields = expression.split()
        if len(fields) not in CRON_FIELDS:
            raise CronSimError(f"must have five or six fields, not {len(fields)}")
        minute, hour = fields[-5:-3]
        self._by_wall = zone is not UTC and not minute.startswith("*") and not hour.startswith("*")
        CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC))

    def after(self, moment: float) -> Iterator[float]:
        """See core/decide/schedule.py Times."""
        if not 0 <= moment < EPOCH_MAX:
            return iter(())
        return _strict(self._found(moment, reverse=False), lambda due: due > moment, 1)

    def upto(self, moment: float) -> Iterator[float]:
        """See core/decide/schedule.py Times."""
        if not 0 <= moment < EPOCH_MAX:
            return iter(())
        return _strict(self._found(moment, reverse=True), lambda due: due <= moment, -1)

    def _found(self, moment: float, *, reverse: bool) -> Iterator[float]:
        """Due times beyond `moment`, in order, some perhaps repeated, with a few from its other side."""
        begin = _begin(datetime.fromtimestamp(moment, self._zone), reverse=reverse)
        walls = (wall.replace(tzinfo=None) for wall in CronSim(self._expression, begin, reverse=reverse))
        if self._by_wall:
            return (on_wall(wall, self._zone) for wall in walls)
        return _in_order((_each_time(wall, self._zone) for wall in walls), -1 if reverse else 1)


def _begin(moment: datetime, *, reverse: bool) -> datetime:
    """Where on the wall to begin, as if it showed UTC. In an hour that the clock shows twice, the other one may hold times to come."""
    other = moment.replace(fold=1 - moment.fold)
    twice = abs((moment.utcoffset() or NO_TIME) - (other.utcoffset() or NO_TIME)) if moment.fold == int(reverse) else NO_TIME
    margin = twice + timedelta(seconds=1)  # cronsim's first tick goes beyond where it starts
    return moment.replace(tzinfo=UTC, microsecond=0, fold=0) + (margin if reverse else -margin)


def _each_time(wall: datetime, zone: tzinfo) -> list[float]:
    """The moments at which a clock on the wall shows `wall`: one, two, or none."""
    found = {wall.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1)}
    return [moment for moment in sorted(found) if datetime.fromtimestamp(moment, zone).replace(tzinfo=None, fold=0) == wall]


def _in_order(groups: Iterable[list[float]], sign: int) -> Iterator[float]:
    """All moments in order (-1: the newest first), where those that come first of each group are so already: the others, of an hour that
    the clock shows twice, wait for their turn."""
    held: list[float] = []
    for group in groups:
        ordered = group[::sign]
        while held and ordered and sign * held[0] <= sign * ordered[0]:
            yield held.pop(0)
        yield from ordered[:1]
        held += ordered[1:]
    yield from held


def _strict(found: Iterator[float], wanted: Callable[[float], bool], sign: int) -> Iterator[float]:
    """Those that are wanted, each once."""
    last: float | None = None
    for due in found:
        if wanted(due) and (last is None or sign * (due - last) > 0):
            last = due
            yield due


def on_wall(wall: datetime, zone: tzinfo) -> float:
    """The moment at which a clock on the wall shows `wall`: the first of two; the end of the gap when it never does."""
    local = wall.replace(tzinfo=zone, fold=0)
    if local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != wall:
        local = local.replace(second=0, microsecond=0)
        while local.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != local.replace(tzinfo=None):
            local += MINUTE
    return local.timestamp()


def zone_of(name: str) -> tzinfo:
    """Raises ZoneInfoNotFoundError, ValueError or OSError when there is no such zone."""
    return UTC if name == "UTC" else ZoneInfo(name)


def moment_of(text: str, zone: tzinfo) -> float:
    """An ISO moment, in `zone` unless it names one. Raises ValueError."""
    said = text.strip()
    if said.startswith("at(") and said.endswith(")"):
        said = said[3:-1]
    moment = datetime.fromisoformat(said)
    found = moment.timestamp() if moment.tzinfo else on_wall(moment, zone)
    if not 0 < found < EPOCH_MAX:
        raise ValueError("out of range")
    return round(found, 3)


@lru_cache(REMEMBERED_MAX)
def times_of(schedule: Schedule, anchor: float) -> Times:
    """Its due times. Raises Refusal bad_config when it says nothing that can be understood."""
    try:
        zone = zone_of(schedule.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problem = f"timezone = {schedule.timezone!r}: unknown; names are those of the IANA database, as in 'Europe/Berlin' or 'UTC'."
        raise Refusal("bad_config", problem) from None
    if schedule.cron:
        try:
            return Cron(schedule.cron, zone)
        except CronSimError as error:
            raise Refusal("bad_config", f"cron = {schedule.cron!r}: {error}; it is {FORM}.") from None
    if schedule.rate:
        return Rate(anchor, rate_seconds(schedule.rate))
    try:
        return Once(moment_of(schedule.at, zone))
    except (ValueError, OverflowError):
        raise Refusal("bad_config", f"at = {schedule.at!r}: must be a moment such as '2026-12-24T18:00:00'.") from None


def check(schedule: Schedule, now: float, period_min: float) -> None:
    """Raises Refusal bad_config when it cannot be understood, never comes, or comes oftener than every `period_min` seconds.

    An `at` that is over is sound: it was to come when it was written."""
    times = times_of(schedule, 0.0)
    coming = list(islice(times.after(now), FIRINGS_COMPARED))
    if not coming and not schedule.at:
        raise Refusal("bad_config", f"{schedule.expression}: never comes.")
    if any(later - due < period_min for due, later in pairwise(coming)):
        raise Refusal(
            "bad_config", f"{schedule.expression}: comes oftener than every {period_min:g} seconds (schedule_period_seconds_min)."
        )


def check_all(schedules: Iterable[Schedule], now: float, period_min: float) -> None:
    """`check` of all schedules of a manifest. Raises Refusal bad_config with every problem found."""
    problems = []
    for number, schedule in enumerate(schedules):
        try:
            check(schedule, now, period_min)
        except Refusal as refusal:
            problems.append(f"schedule[{number}]: {refusal.detail}")
    if problems:
        raise Refusal("bad_config", " ".join(problems[:3]), extra={"problems": problems})
