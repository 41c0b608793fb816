"""Windows of provisioned instances: which are sound, when they are open (daylight saving included), and that gateways hear of it."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest

from dayfly.control.catalog import Catalog
from dayfly.control.provisioned import Floors, check
from dayfly.control.usage import Usage
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Alias, Function, FunctionConfig, Provisioned, Version
from dayfly.core.wire.link import FunctionChanged, ToGateway
from dayfly.core.wire.packed import unpack
from tests.control.world import HELLO, folders, run, world

HOUR = 3600.0
OFFICE = Provisioned(cron="0 8 * * mon-fri", duration_seconds=10 * HOUR, min_instances=5, timezone="Europe/Berlin")


def berlin(*moment: int, fold: int = 0) -> float:
    return datetime(*moment, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold).timestamp()  # type: ignore[arg-type,misc]


def utc(*moment: int) -> float:
    return datetime(*moment, tzinfo=UTC).timestamp()  # type: ignore[arg-type,misc]


def version(*windows: Provisioned, number: int = 1) -> Version:
    config = FunctionConfig(provisioned=windows, max_instances=100)
    return Version(namespace="default", function="hello", number=number, config=config, code_digest="0" * 64)


def floor(moment: float, *windows: Provisioned) -> int:
    """With a fresh memory, and with one that was asked many times before: both say the same."""
    fresh = Floors().of([version(*windows)], moment).get(1, 0)
    used = Floors()
    for step in range(200, -1, -1):
        last = used.of([version(*windows)], moment - step * 1800.0)
    assert last.get(1, 0) == fresh
    return fresh


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (berlin(2026, 11, 25, 7, 59, 59), 0),
        (berlin(2026, 11, 25, 8, 0, 0), 5),
        (berlin(2026, 11, 25, 17, 59, 59), 5),
        (berlin(2026, 11, 25, 18, 0, 0), 0),
        (berlin(2026, 11, 28, 12, 0, 0), 0),  # a Saturday
        (berlin(2026, 7, 1, 8, 0, 0), 5),  # summer time: the hour of the wall clock, not of UTC
        (utc(2026, 7, 1, 6, 0, 0), 5),
        (utc(2026, 12, 1, 6, 30, 0), 0),
    ],
)
def test_a_window_opens_by_the_clock_of_its_time_zone_and_lasts_its_duration(moment, expected):
    assert floor(moment, OFFICE) == expected


def test_an_hour_that_a_spring_night_skips_opens_the_window_right_after_it():
    night = Provisioned(cron="30 2 * * *", duration_seconds=HOUR, min_instances=1, timezone="Europe/Berlin")
    assert floor(utc(2026, 3, 29, 0, 59), night) == 0
    assert floor(utc(2026, 3, 29, 1, 30), night) == 1
    assert floor(utc(2026, 3, 29, 2, 1), night) == 0 or floor(utc(2026, 3, 29, 2, 31), night) == 0
    opened = sum(floor(utc(2026, 3, 29, 0, 0) + 60 * minute, night) for minute in range(0, 240, 10))
    assert opened == 6, "open for one hour, once"


def test_an_hour_that_an_autumn_night_repeats_opens_the_window_once():
    night = Provisioned(cron="30 2 * * *", duration_seconds=0.5 * HOUR, min_instances=1, timezone="Europe/Berlin")
    opened = sum(floor(utc(2026, 10, 24, 23, 0) + 60 * minute, night) for minute in range(0, 300, 10))
    assert opened == 3
    assert floor(berlin(2026, 10, 25, 2, 45, fold=0), night) + floor(berlin(2026, 10, 25, 2, 45, fold=1), night) == 1


def test_a_window_over_the_change_of_the_clock_lasts_its_real_hours():
    night = Provisioned(cron="0 22 28 3 *", duration_seconds=10 * HOUR, min_instances=1, timezone="Europe/Berlin")
    assert floor(berlin(2026, 3, 29, 8, 59), night) == 1  # nine by the wall is ten hours after ten in the evening
    assert floor(berlin(2026, 3, 29, 9, 0), night) == 0


def test_of_overlapping_windows_the_largest_counts_and_one_that_renews_itself_stays_open():
    always = Provisioned(cron="*/10 * * * *", duration_seconds=1200.0, min_instances=2)
    assert floor(berlin(2026, 11, 25, 9, 0), OFFICE, always) == 5
    assert floor(berlin(2026, 11, 25, 19, 0), OFFICE, always) == 2
    assert all(floor(utc(2026, 11, 25, 3, minute), always) == 2 for minute in range(0, 60, 7))


def test_a_clock_that_is_put_back_is_believed():
    floors = Floors()
    assert floors.of([version(OFFICE)], berlin(2026, 11, 25, 19, 0)) == {}
    assert floors.of([version(OFFICE)], berlin(2026, 11, 25, 9, 0)) == {1: 5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cron": "61 8 * * *"}, "cron = '61 8 * * *'"),
        ({"cron": "0 8 * *"}, "five fields"),
        ({"cron": "0 0 8 * * *"}, "five fields"),
        ({"cron": "hello world is not a cron"}, "five fields"),
        ({"cron": "a b c d e"}, "cron = 'a b c d e'"),
        ({"cron": "0 0 30 2 *"}, "Bad day-of-month"),
        ({"timezone": "Europe/Atlantis"}, "timezone = 'Europe/Atlantis'"),
        ({"timezone": "../../etc/passwd"}, "timezone = '../../etc/passwd'"),
        ({"timezone": "/etc/localtime"}, "timezone"),
        ({"timezone": "Europe"}, "timezone = 'Europe'"),
    ],
)
def test_a_window_that_cannot_be_understood_is_refused_and_named(change, said):
    good = FunctionConfig(provisioned=(OFFICE, msgspec.structs.replace(OFFICE, **change)))
    with pytest.raises(Refusal) as refusal:
        check(good, utc(2026, 11, 25))
    assert refusal.value.kind.code == "bad_config"
    assert said in refusal.value.detail and "provisioned[1]" in refusal.value.detail


def test_sound_windows_pass():
    check(FunctionConfig(provisioned=(OFFICE, msgspec.structs.replace(OFFICE, cron="0 0 L * *"))), utc(2026, 11, 25))


def test_gateways_hear_when_a_window_begins_and_ends_and_a_new_one_knows_at_once(monkeypatch):
    now = berlin(2026, 11, 25, 7, 0)
    monkeypatch.setattr("dayfly.control.catalog.time.time", lambda: now)
    catalog, told = Catalog(Usage(None)), list[ToGateway]()  # type: ignore[arg-type]
    live = Alias(name="live", weights=((1, 1.0),))
    catalog.fill([Function(namespace="default", name="hello", aliases=(live,), versions=(version(OFFICE),))], [], {})
    catalog.listen(told.append)
    catalog.open_windows(now)
    assert told == []
    now = berlin(2026, 11, 25, 8, 0, 1)
    catalog.open_windows(now)
    catalog.open_windows(now)
    (change,) = told
    assert isinstance(change, FunctionChanged) and change.function.floors == {1: 5}
    assert unpack(catalog.listen(told.append)[1].catalog.functions[0].data).floors == {1: 5}
    catalog.put(msgspec.structs.replace(change.function, floors={}, versions=(version(OFFICE), version(OFFICE, number=2))))
    assert catalog.functions["default", "hello"].floors == {1: 5, 2: 5}, "a deploy in the window has it from the start"
    now = berlin(2026, 11, 25, 18, 0, 1)
    catalog.open_windows(now)
    assert catalog.functions["default", "hello"].floors == {}


def test_a_deployed_window_that_is_open_reaches_the_gateway_and_a_bad_one_is_refused():
    text = '[[provisioned]]\ncron = "{cron}"\nduration = "2h"\nmin_instances = 3\n'

    async def main() -> None:
        with folders() as layout:
            async with world(layout) as it:
                await it.deploy(HELLO | {"dayfly.toml": text.format(cron="* * * * *")})
                assert it.gateway.functions["default", "hello"].floors == {1: 3}
                last = (await it.deploy(HELLO | {"dayfly.toml": text.format(cron="* * * 13 *")}))[-1]
                assert "provisioned[0]" in str(msgspec.to_builtins(last)) and "bad_config" in str(msgspec.to_builtins(last))

    run(main())
