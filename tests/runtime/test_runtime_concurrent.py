"""Async handlers: several calls at once, each with its own slot, log and id; never more than asked for."""

import json
import select
import threading

import pytest

from dayfly.runtime import frames
from tests.runtime.conftest import Start

GATE = """
import asyncio, logging
gates = {}
async def handler(event, context):
    if event.get('open'):
        gates[event['open']].set()
        return 'opened'
    gate = gates[event['gate']] = asyncio.Event()
    print('waiting', event['gate'])
    await gate.wait()
    print('done', event['gate'])
    logging.warning('logged')
    return [event['gate'], context.aws_request_id]
"""


def body(**event: str) -> bytes:
    return json.dumps(event).encode()


def test_calls_run_at_once_and_answer_in_their_own_order(every: Start) -> None:
    """Logs and ids stay with their calls; the progress page shows every call that runs."""
    instance = every(GATE, concurrency=4)
    instance.boot()
    seqs = {name: instance.send(frames.DIRECT, body(gate=name), call_id=f"id-{name}") for name in "abc"}
    for _ in seqs:
        instance.wait_for(lambda frame: frame.kind == frames.LOG)
    assert sorted(instance.slots()) == sorted(seqs.values())
    for name in "cab":
        instance.invoke({"open": name})
        answer = instance.answer(seqs[name])
        assert answer.json() == [name, f"id-{name}"]
        assert answer.text.startswith(f"waiting {name}\ndone {name}\n[WARNING]") and answer.text.endswith(f"id-{name}\tlogged")


def test_no_more_calls_are_taken_than_there_are_slots(every: Start) -> None:
    """The third waits in the shared socket, where another instance could take it."""
    instance = every(GATE, concurrency=2)
    instance.boot()
    first, second = (instance.send(frames.DIRECT, body(gate=name)) for name in "ab")
    for _ in range(2):
        instance.wait_for(lambda frame: frame.kind == frames.LOG)
    third = instance.send(frames.DIRECT, body(open="a"))
    select.select([instance.answers], [], [], 0.1)
    assert sorted(instance.slots()) == [first, second] and not instance.frames
    assert third == 3


def test_an_instance_says_that_its_handler_is_async(start: Start) -> None:
    assert json.loads(start("async def handler(event, context):\n    return 1\n").boot().meta)["async"] is True


def test_async_handlers_with_one_slot_run_one_after_the_other(start: Start) -> None:
    code = (
        "import asyncio\nrunning = 0\n"
        "async def handler(event, context):\n"
        "    global running\n    running += 1\n    seen = running\n    await asyncio.sleep(0.001)\n    running -= 1\n    return seen\n"
    )
    instance = start(code)
    instance.boot()
    seqs = [instance.send(frames.DIRECT) for _ in range(50)]
    assert {instance.answer(seq).json() for seq in seqs} == {1}


@pytest.mark.parametrize(
    "code",
    [
        "import functools\nasync def f(x, event, context):\n    return event\nhandler = functools.partial(f, 1)\n",
        "class H:\n    async def __call__(self, event, context):\n        return event\nclass I(H): pass\nhandler = I()\n",
        "class H:\n    async def run(self, event, context):\n        return event\nhandler = H().run\n",
        "async def f(event, context):\n    return event\ndef handler(event, context):\n    return f(event, context)\n",
        "async def f(event, context):\n    return event\nasync def handler(event, context):\n    return f(event, context)\n"
        "outer = handler\nasync def handler(e, c): return await (await outer(e, c))\n",
    ],
)
def test_every_shape_of_async_handler_works(every: Start, code: str) -> None:
    instance = every(code)
    instance.boot()
    for number in range(3):
        assert instance.invoke(number).json() == number


def test_a_plain_function_may_return_an_async_generator(every: Start) -> None:
    instance = every("async def f():\n    yield 'a'\n    yield 'b'\ndef handler(event, context):\n    return f()\n")
    instance.boot()
    for _ in range(2):
        found = instance.stream(instance.send(frames.DIRECT))
        assert [frame.body for frame in found] == [b"a", b"b", b""]


def test_an_async_handler_may_return_a_generator(start: Start) -> None:
    instance = start("async def handler(event, context):\n    return (str(n) for n in range(3))\n")
    instance.boot()
    assert [frame.body for frame in instance.stream(instance.send(frames.DIRECT))] == [b"0", b"1", b"2", b""]


def test_errors_stay_with_their_call(every: Start) -> None:
    code = (
        "import asyncio\n"
        "async def handler(event, context):\n"
        "    if event == 'raise': raise KeyError('k')\n"
        "    if event == 'cancel': raise asyncio.CancelledError\n"
        "    if event == 'self': asyncio.current_task().cancel(); await asyncio.sleep(1)\n"
        "    if event == 'nan': return float('nan')\n"
        "    return event\n"
    )
    instance = every(code, concurrency=8)
    instance.boot()
    events = ["raise", "ok", "cancel", "self", "nan", "ok"]
    seqs = [instance.send(frames.DIRECT, json.dumps(event).encode()) for event in events]
    answers = [instance.answer(seq) for seq in seqs]
    types = [answer.json()["errorType"] if answer.failed else answer.json() for answer in answers]
    assert types == ["KeyError", "ok", "CancelledError", "CancelledError", "Runtime.MarshalError", "ok"]
    instance.wait_idle()


def test_background_tasks_and_threads_know_their_call(every: Start) -> None:
    """A task inherits its call's id; asyncio.to_thread too; after the answer they still print under it."""
    code = (
        "import asyncio\n"
        "async def handler(event, context):\n"
        "    await asyncio.to_thread(print, 'thread')\n"
        "    async def later():\n        await asyncio.sleep(0.05)\n        print('later')\n"
        "    global task\n    task = asyncio.create_task(later())\n"
    )
    instance = every(code, concurrency=2)
    instance.boot()
    answer = instance.invoke()
    assert answer.text == "thread"
    later = instance.wait_for(lambda frame: frame.kind == frames.LOG)
    assert (later.seq, later.body) == (answer.seq, b"later")


def test_concurrency_is_bounded_by_the_progress_page(start: Start) -> None:
    instance = start(GATE, concurrency=100_000)
    instance.boot()
    for number in range(frames.SLOTS_MAX + 20):
        instance.send(frames.DIRECT, body(gate=str(number)))
    for _ in range(frames.SLOTS_MAX):
        instance.wait_for(lambda frame: frame.kind == frames.LOG)
    assert len(instance.slots()) == frames.SLOTS_MAX


def test_end_of_file_lets_running_calls_end_first(every: Start) -> None:
    instance = every("import asyncio\nasync def handler(event, context):\n    await asyncio.sleep(0.1)\n    return 1\n", concurrency=4)
    instance.boot()
    seqs = [instance.send(frames.DIRECT) for _ in range(3)]
    instance.requests.close()
    assert [instance.answer(seq).json() for seq in seqs] == [1, 1, 1]
    instance.wait_for(lambda frame: frame.kind == frames.RETIRED)
    assert instance.wait_exit() == 0


def test_sys_exit_lets_the_others_end_and_takes_no_more(every: Start) -> None:
    code = (
        "import asyncio, sys\n"
        "async def handler(event, context):\n"
        "    if event == 'exit': sys.exit(5)\n    print('in')\n    await asyncio.sleep(0.1)\n    return event\n"
    )
    instance = every(code, concurrency=2)
    instance.boot()
    slow = instance.send(frames.DIRECT, b'"slow"')
    instance.wait_for(lambda frame: frame.kind == frames.LOG)
    left = instance.invoke("exit")
    assert left.flags == frames.ERROR | frames.EXITING
    assert instance.answer(slow).json() == "slow"
    assert instance.wait_exit() == 5


def test_sys_exit_in_a_background_task_answers_those_that_run(every: Start) -> None:
    code = (
        "import asyncio, sys\n"
        "async def leave():\n    sys.exit(6)\n"
        "async def handler(event, context):\n    asyncio.get_running_loop().create_task(leave())\n    await asyncio.sleep(60)\n"
    )
    instance = every(code)
    instance.boot()
    answer = instance.invoke(call_id="x")
    assert answer.flags == frames.ERROR | frames.EXITING
    assert answer.json()["errorMessage"] == "RequestId: x Error: Runtime exited with error: exit status 6"
    assert instance.wait_exit() == 6


def test_many_calls_under_a_slow_reader_are_all_answered_once(every: Start) -> None:
    """Large answers of many tasks on one full socket: each arrives whole, exactly once."""
    instance = every("async def handler(event, context):\n    return [event, str(event) * 100_000]\n", concurrency=16)
    instance.boot()
    sender = threading.Thread(target=lambda: [instance.send(frames.DIRECT, str(n % 10).encode()) for n in range(200)])
    sender.start()
    got = [instance.wait_for(lambda frame: frame.kind == frames.RESULT) for _ in range(200)]
    sender.join()
    assert sorted(frame.seq for frame in got) == list(range(1, 201))
    for frame in got:
        number, text = frame.json()
        assert text == str(number) * 100_000
