"""Direct calls: JSON in, JSON out, Lambda's words for what cannot be said in JSON, large bodies, deadlines, the progress page."""

import json
import os

import pytest

from dayfly.runtime import frames
from tests.runtime.conftest import Start

ECHO = "def handler(event, context):\n    return event\n"


def returning(expression: str, imports: str = "") -> str:
    return f"{imports}\ndef handler(event, context):\n    return {expression}\n"


def test_a_call_gets_its_event_and_its_result(every: Start) -> None:
    """On each interpreter: what JSON can say arrives and comes back unchanged."""
    instance = every(ECHO)
    ready = json.loads(instance.boot().meta)
    assert ready["init_us"] > 0
    assert ready["async"] is False
    for event in ({"a": [1, 2.5, None, True, "ä\u2028😀"]}, [], "text", 7, None, {"": {"": {}}}):
        answer = instance.invoke(event)
        assert not answer.failed and answer.status == 200
        assert answer.json() == event


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "Expecting property name"),
        (b"1 2", "Extra data"),
        (b"nope", "Expecting value"),
        (b"\xff\xfe", "utf-8"),
        (b"[NaN]", "NaN is not JSON"),
        (b"-Infinity", "-Infinity is not JSON"),
        (b"[" * 200_000, ""),
        (b'"' + b"1" * 10 + b'"x', "Extra data"),
        (b"9" * 10_000, ""),
    ],
)
def test_what_is_no_json_is_an_unmarshal_error(every: Start, body: bytes, words: str) -> None:
    """And the instance lives on."""
    instance = every(ECHO)
    instance.boot()
    answer = instance.answer(instance.send(frames.DIRECT, body, fd=len(body) > 60_000))
    assert answer.failed
    error = answer.json()
    assert error["errorType"] == "Runtime.UnmarshalError" and words in error["errorMessage"]
    assert error["requestId"] == "call-1" and error["stackTrace"] == []
    assert instance.invoke(1).json() == 1


def test_no_body_is_an_empty_object_and_blanks_around_json_are_allowed(start: Start) -> None:
    instance = start(ECHO)
    instance.boot()
    assert instance.answer(instance.send(frames.DIRECT, b"")).body == b"{}"
    assert instance.answer(instance.send(frames.DIRECT, b' \r\n{"a" : 1}\t ')).body == b'{"a":1}'


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("float('nan')", "Out of range float"),
        ("{'a': [float('inf')]}", "Out of range float"),
        ("{1, 2}", "Object of type set is not JSON serializable"),
        ("object", "Object of type type is not JSON serializable"),
        ("map(str, [])", "Object of type map is not JSON serializable"),
        ("{(1, 2): 3}", "keys must be str"),
        ("decimal.Decimal('NaN')", "Out of range Decimal"),
        ("[decimal.Decimal(1), {2}]", "Object of type set is not JSON serializable"),
        ("(a := [], a.append(a))[0]", "Circular reference"),
        ("(a := {}, a.update(d=decimal.Decimal(1), a=a))[0]", "Circular reference"),
        ("Odd(a=1)", "broken items"),
    ],
)
def test_what_json_cannot_say_is_a_marshal_error(every: Start, expression: str, words: str) -> None:
    """Each time anew: a failed encoding leaves nothing behind for the next."""
    imports = "import decimal\nclass Odd(dict):\n    def items(self): raise RuntimeError('broken items')\n"
    instance = every(returning(expression, imports))
    instance.boot()
    for _ in range(2):
        answer = instance.invoke()
        assert answer.failed
        error = answer.json()
        assert error["errorType"] == "Runtime.MarshalError"
        assert error["errorMessage"].startswith("Unable to marshal response: ") and words in error["errorMessage"]


def test_a_result_nested_too_deeply_is_a_marshal_error(every: Start) -> None:
    instance = every("def handler(event, context):\n    a = []\n    for _ in range(200_000): a = [a]\n    return a\n")
    instance.boot()
    assert instance.invoke().json()["errorType"] == "Runtime.MarshalError"


def test_decimals_are_written_as_numbers_with_all_their_digits(every: Start) -> None:
    expression = "{'d': [decimal.Decimal('1.10'), decimal.Decimal('123456789012345678901234567890.12345')], 'f': 0.5, 's': 'ä\\udc80'}"
    instance = every(returning(expression, "import decimal"))
    instance.boot()
    assert instance.invoke().body == b'{"d":[1.10,123456789012345678901234567890.12345],"f":0.5,"s":"\\u00e4\\udc80"}'


def test_bytes_pass_through_and_lone_surrogates_are_escaped(every: Start) -> None:
    instance = every("def handler(event, context):\n    return b'\\x00raw' if event else {'k\\ud800': 'ä'}\n")
    instance.boot()
    assert instance.invoke(1).body == b"\x00raw"
    assert instance.invoke(0).body == b'{"k\\ud800":"\\u00e4"}'


def test_a_result_over_the_limit_is_refused_in_lambdas_words(start: Start) -> None:
    """At the limit it passes, whole."""
    instance = start("def handler(event, context):\n    return b'x' * event\n")
    instance.boot()
    assert len(instance.invoke(frames.RESULT_BYTES_MAX).body) == frames.RESULT_BYTES_MAX
    error = instance.invoke(frames.RESULT_BYTES_MAX + 1).json()
    assert error["errorType"] == "Function.ResponseSizeTooLarge"
    assert error["errorMessage"] == "Response payload size exceeded maximum allowed payload size (6291556 bytes)."


def test_bodies_up_to_the_inline_limit_and_large_ones_by_descriptor_arrive_whole(every: Start) -> None:
    instance = every("def handler(event, context):\n    return [len(event), event[-3:]]\n")
    instance.boot()
    inline = "a" * (frames.INLINE_BYTES_MAX - 5) + "end"
    assert instance.invoke(inline).json() == [len(inline), "end"]
    large = "b" * 6_000_000 + "end"
    for _ in range(3):
        assert instance.invoke(large, fd=True).json() == [len(large), "end"]


def test_large_bodies_leave_no_descriptor_behind_and_a_lost_one_is_an_error(every: Start) -> None:
    instance = every(
        "import os, resource\n"
        "def handler(event, context):\n"
        "    if event == 'tight':\n"
        "        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 100))\n"
        "    return len(os.listdir('/dev/fd')) if event != 'tight' else 0\n"
    )
    instance.boot()
    before = instance.invoke(1).json()
    for _ in range(5):
        instance.invoke("x" * 100_000, fd=True)
    instance.answer(instance.send(frames.DIRECT, b"{", fd=True))
    assert instance.invoke(1).json() == before
    instance.invoke("tight")
    answer = instance.invoke("x" * 100_000, fd=True)
    assert answer.json()["errorType"] == "Runtime.TruncatedRequest"


def test_a_call_past_its_deadline_is_dropped_because_the_gateway_has_answered_it(start: Start) -> None:
    """Silently, with its descriptor closed; the next call runs."""
    instance = start(ECHO)
    instance.boot()
    late = instance.send(frames.DIRECT, b"1", seconds=-1)
    late_large = instance.send(frames.DIRECT, b"1", seconds=-1, fd=True)
    assert instance.invoke(2).json() == 2
    assert not {late, late_large} & {frame.seq for frame in instance.seen}


def test_the_progress_page_names_the_call_that_runs_and_nothing_afterwards(start: Start) -> None:
    instance = start("import sys\ndef handler(event, context):\n    print('begun')\n    open(event).read()\n")
    instance.boot()
    pipe = f"{instance.task}/pipe"
    os.mkfifo(pipe)
    seq = instance.send(frames.DIRECT, json.dumps(pipe).encode())
    instance.wait_for(lambda frame: frame.kind == frames.LOG)
    assert instance.slots() == [seq]
    with open(pipe, "w"):
        pass
    instance.answer(seq)
    instance.wait_idle()


def test_execution_time_is_that_of_the_handler(start: Start) -> None:
    instance = start("import time\ndef handler(event, context):\n    time.sleep(event)\n")
    instance.boot()
    assert 50_000 <= instance.invoke(0.05).exec_us < 10_000_000
    assert instance.invoke(0).exec_us < 10_000_000
