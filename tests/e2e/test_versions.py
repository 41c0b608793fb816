"""Versions, aliases and deploys under load: what was deployed stays what it is, and moving between versions loses no call."""

import threading

import pytest

from tests.e2e.harness import Platform
from tests.e2e.load import ECHO, Load

pytestmark = pytest.mark.one_user


def put(platform: Platform, name: str, number: int, **config: object) -> int:
    return int(platform.put(name, ECHO.format(version=number), **config)["version"])


def live(platform: Platform, name: str) -> dict[str, float]:
    weights: dict[str, float] = platform.request("GET", f"/api/v1/functions/{name}").json()["live"]
    return weights


def test_versions_are_numbered_and_every_kept_one_takes_calls_by_its_number(platform: Platform) -> None:
    assert [put(platform, "numbered", number) for number in (1, 2, 3)] == [1, 2, 3]
    assert live(platform, "numbered") == {"3": 1.0}
    platform.request("PUT", "/api/v1/functions/numbered/aliases/old", b'{"weights": {"1": 1}}')
    for qualifier, number in (("live", 3), ("3", 3), ("old", 1), ("1", 1), ("2", 2)):
        answer = platform.request("POST", f"/api/v1/functions/numbered/invoke?qualifier={qualifier}", b'{"sent": ""}')
        assert (answer.headers["x-amz-executed-version"], answer.json()["version"]) == (str(number), number), answer.body
        answer = platform.request("POST", f"/function/numbered:{qualifier}", b'{"sent": ""}')
        assert answer.headers["x-dayfly-version"] == str(number), answer
    answer = platform.request("POST", "/api/v1/functions/numbered/invoke?qualifier=4", b'{"sent": ""}')
    assert answer.json()["error"]["code"] == "version_not_found"


def test_the_same_bundle_with_the_same_settings_is_said_to_be_unchanged(platform: Platform) -> None:
    first = platform.put("same", ECHO.format(version=1))
    again = platform.put("same", ECHO.format(version=1))
    other = platform.put("same", ECHO.format(version=1), memory_mb=256)
    assert (first["unchanged"], again["unchanged"], again["version"]) == (False, True, first["version"])
    assert (other["unchanged"], other["version"]) == (False, first["version"] + 1)


def test_a_weighted_alias_sends_calls_to_both_versions_and_rollback_ends_that(platform: Platform) -> None:
    old, new = put(platform, "split", 1), put(platform, "split", 2)
    answer = platform.request("PUT", "/api/v1/functions/split/aliases/live", b'{"weights": {"%d": 0.5, "%d": 0.5}}' % (old, new))
    assert answer.status == 200, answer.body
    with Load(platform, "split", threads=2) as load:
        platform.wait_for("both versions answer", lambda: {old, new} <= set(load.versions))
        back = platform.request("POST", "/api/v1/functions/split/rollback", b"{}")
        assert back.status == 200 and back.json()["weights"] == {str(old): 1.0}, back.body
    assert set(load.statuses) == {200} and not load.broken and not load.wrong, load
    assert {platform.invoke("split", {"sent": ""}).json()["version"] for _ in range(20)} == {1}


def test_rollback_goes_back_and_to_a_number(platform: Platform) -> None:
    for number in (1, 2, 3):
        put(platform, "back", number)
    assert platform.cli_json("rollback", "back")["weights"] == {"2": 1.0}
    assert platform.invoke("back", {"sent": ""}).json()["version"] == 2
    assert platform.request("POST", "/api/v1/functions/back/rollback", b'{"to": 1}').json()["weights"] == {"1": 1.0}
    assert platform.request("POST", "/api/v1/functions/back/rollback", b'{"to": 99}').status == 404
    assert platform.invoke("back", {"sent": ""}).json()["version"] == 1


@pytest.mark.parametrize(
    "weights", [b'{"1": 0.4}', b'{"1": 1.5, "2": -0.5}', b'{"1": NaN}', b"{}", b'{"1": 0.3, "2": 0.3, "3": 0.4}', b'{"77": 1}']
)
def test_an_alias_that_makes_no_sense_is_refused(platform: Platform, weights: bytes) -> None:
    if platform.request("GET", "/api/v1/functions/sense").status == 404:
        for number in (1, 2, 3):
            put(platform, "sense", number)
    before = live(platform, "sense")
    answer = platform.request("PUT", "/api/v1/functions/sense/aliases/live", b'{"weights": %b}' % weights)
    assert 400 <= answer.status < 500, (answer.status, answer.body)
    assert live(platform, "sense") == before


@pytest.mark.timeout(180)
def test_dozens_of_deploys_under_load_lose_no_call_and_callers_move_forward(platform: Platform) -> None:
    put(platform, "moving", 0)
    with Load(platform, "moving", threads=4) as load:
        load.wait_answers(20)
        for number in range(1, 31):
            put(platform, "moving", number)
        platform.wait_for("the newest version answers", lambda: load.versions[30] > 0)
    assert set(load.statuses) == {200} and not load.broken and not load.wrong, load
    assert load.accounted == load.sent
    assert len(load.versions) > 5, "callers saw versions come and go"


def test_removing_and_deploying_again_under_load_gives_only_the_honest_answers(platform: Platform) -> None:
    put(platform, "vanishing", 0)
    with Load(platform, "vanishing", threads=3) as load:
        load.wait_answers(10)
        for number in range(1, 6):
            assert platform.request("DELETE", "/api/v1/functions/vanishing").status == 200
            put(platform, "vanishing", number)
        load.wait_answers(10)
    assert set(load.statuses) <= {200, 404} and set(load.codes) <= {"function_not_found"} and not load.broken and not load.wrong, load


def test_two_deploys_at_once_end_with_one_of_them_live_and_both_told_the_truth(platform: Platform) -> None:
    put(platform, "crossing", 0)
    events: list[dict[str, object]] = []
    threads = [
        threading.Thread(target=lambda number=number: events.append(platform.try_put("crossing", ECHO.format(version=number))))
        for number in range(1, 7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = [event.get("version") for event in events if event["event"] == "deployed"]
    assert len(set(numbers)) == len(numbers) >= 1, events
    assert all(event["event"] == "deployed" or event["error"]["code"] == "conflict" for event in events), events  # type: ignore[index]
    (number,) = live(platform, "crossing")
    assert int(number) in numbers
    assert platform.invoke("crossing", {"sent": ""}).headers["x-dayfly-version"] == number
