"""What a gateway writes down of answered calls: counted, billed by the call, added up by the day."""

import msgspec

from dayfly.core.decide.quota import DAY_SECONDS
from dayfly.core.model.records import Answered, FunctionStatistics
from dayfly.core.model.settings import Settings
from dayfly.gateway.ledger import TELLING, UNTOLD, Ledger

CALL = Answered("ok", 100.0, False, 1, 2, 3, 1500, 128, 10, 20)


def test_usage_is_rounded_call_by_call_and_never_counts_calls_that_did_not_run() -> None:
    ledger = Ledger(Settings(tariff_round_ms=10))
    hello = ledger.function("default", "hello")
    failed = {"outcome": "function_error", "exec_us": 11_000}
    for changed in ({}, failed, {"outcome": "queue_full"}, {"outcome": "bad_request"}, {"cold": True, "exec_us": 0}):
        ledger.answered(hello, msgspec.structs.replace(CALL, **changed))
    [used] = ledger.take_usage()
    assert (used.calls, used.errors, used.cold, used.billed_ms, used.mb_ms) == (3, 1, 1, 40, 40 * 128)
    assert (used.bytes_in, used.bytes_out, used.exec_us) == (30, 60, 12_500)
    assert hello.numbers.calls == 5 and hello.numbers.errors == 3, "statistics count them all"


def test_each_day_has_a_sum_of_its_own_also_when_the_clock_is_put_back() -> None:
    ledger = Ledger(Settings())
    hello = ledger.function("default", "hello")
    for at in (DAY_SECONDS - 1.0, DAY_SECONDS + 1.0, DAY_SECONDS + 2.0, DAY_SECONDS - 0.5):
        ledger.answered(hello, msgspec.structs.replace(CALL, finished_at=at))
    assert [(used.day, used.calls) for used in ledger.take_usage()] == [(0, 1), (1, 2), (0, 1)]
    ledger.answered(hello, msgspec.structs.replace(CALL, finished_at=1.0))
    assert [(used.day, used.calls) for used in ledger.take_usage()] == [(0, 1)], "what was taken does not grow any more"


def test_a_function_that_is_gone_is_still_billed() -> None:
    ledger = Ledger(Settings())
    ledger.answered(ledger.function("default", "hello"), CALL)
    ledger.forget(set())
    ledger.answered(ledger.function("default", "hello"), CALL)
    assert [used.calls for used in ledger.take_usage()] == [1, 1]


def test_a_call_that_ends_after_its_function_was_removed_is_billed_once_whenever_usage_was_taken() -> None:
    ledger = Ledger(Settings())
    hello = ledger.function("default", "hello")
    ledger.answered(hello, CALL)
    ledger.forget_function("default", "hello")
    assert [used.calls for used in ledger.take_usage()] == [1]
    ledger.answered(hello, CALL)
    assert [used.calls for used in ledger.take_usage()] == [1]


def test_a_refusal_counts_also_when_the_ledger_was_let_go_while_the_body_was_on_its_way() -> None:
    ledger = Ledger(Settings())
    hello = ledger.function("default", "hello")
    while ledger.functions:
        ledger.report()
    ledger.rejected(hello, "bad_request")
    [numbers] = ledger.report()
    assert numbers.rejected == 1 and numbers.since != hello.numbers.since
    while ledger.report() or ledger._awake:
        pass
    assert ledger.functions, "something happened to it, so it is kept"


def test_a_change_of_any_number_is_told_once() -> None:
    ledger = Ledger(Settings())
    ledger.answered(ledger.function("default", "hello"), CALL)
    while ledger.report():
        pass
    for name in TELLING:
        hello = ledger.function("default", "hello")
        was = getattr(hello.numbers, name)
        setattr(hello.numbers, name, "ready" if isinstance(was, str) else was + 1)
        assert ledger.report() == [hello.numbers], name
        assert ledger.report() == [], name
    assert UNTOLD | set(TELLING) == set(FunctionStatistics.__struct_fields__)


def test_the_tables_never_change_without_a_number_that_is_told() -> None:
    ledger = Ledger(Settings())
    for change in (lambda it: ledger.answered(it, CALL), lambda it: ledger.rejected(it, "queue_full", "reason")):
        hello = ledger.function("default", "hello")
        ledger.report()
        change(hello)
        assert ledger.report() == [hello.numbers]
