"""What a function prints and logs: LOG frames with the right call, before its answer, in order, bounded."""

import re

import pytest

from dayfly.runtime import frames
from tests.runtime.conftest import Start
from tests.runtime.driver import Answer, Frame, http_head

LINE = frames.LOG_LINE_BYTES_MAX


def lines(answer: Answer) -> list[tuple[int, int, str]]:
    """(stream, level, text) of a call's log."""
    return [(log.flags, log.status, log.body.decode()) for log in answer.logs]


def test_printing_goes_out_by_line_with_the_call_and_before_its_answer(every: Start) -> None:
    """Both streams in the order they were written; an unfinished line is finished by the answer; init has number 0."""
    code = (
        "import sys\nprint('init')\nsys.stdout.write('half')\n"
        "def handler(event, context):\n"
        "    print('a', 'b')\n    print('c', file=sys.stderr)\n    print('d', end='')\n    print('e')\n    print()\n"
        "    print('two\\nlines')\n    sys.stdout.buffer.write(b'raw\\xff\\n')\n    sys.stderr.write('end ä\\udc80')\n"
    )
    instance = every(code)
    instance.boot()
    assert [(f.seq, f.body) for f in instance.seen if f.kind == frames.LOG] == [(0, b"init"), (0, b"half")]
    for _ in range(2):
        assert lines(instance.invoke()) == [
            (frames.STDOUT, 20, "a b"),
            (frames.STDERR, 30, "c"),
            (frames.STDOUT, 20, "de"),
            (frames.STDOUT, 20, ""),
            (frames.STDOUT, 20, "two"),
            (frames.STDOUT, 20, "lines"),
            (frames.STDOUT, 20, "raw\ufffd"),
            (frames.STDERR, 30, "end ä\\udc80"),
        ]


def test_long_lines_are_split_between_characters_and_blocks_between_lines(every: Start) -> None:
    instance = every("import sys\ndef handler(event, context):\n    sys.stdout.write(event * 50_000 + '\\n')\n")
    instance.boot()
    for piece in ("x", "ä", "😀", "line\n", "a" * 40 + "ä\n"):
        answer = instance.invoke(piece)
        bodies = [log.body for log in answer.logs]
        assert max(map(len, bodies)) <= LINE
        joined = b"\n".join(bodies) if "\n" in piece else b"".join(bodies)
        assert joined.decode() == piece * 50_000
        for body in bodies:
            body.decode()  # no character is cut


def test_a_line_without_end_is_sent_when_it_is_long_and_never_grows(every: Start) -> None:
    instance = every("import sys\ndef handler(event, context):\n    for _ in range(100_000): sys.stdout.write('abc')\n")
    instance.boot()
    answer = instance.invoke()
    assert "".join(log.body.decode() for log in answer.logs) == "abc" * 100_000
    assert all(len(log.body) <= LINE for log in answer.logs)


def test_ten_megabytes_of_output_arrive_whole(start: Start) -> None:
    instance = start(
        "def handler(event, context):\n    print('0123456789' * 1_000_000)\n    for n in range(20_000): print(n)\n    return 'done'\n"
    )
    instance.boot()
    answer = instance.invoke()
    text = [log.body for log in answer.logs]
    assert sum(map(len, text[:-20_000])) == 10_000_000
    assert [int(line) for line in text[-20_000:]] == list(range(20_000))
    assert answer.json() == "done"


def test_the_streams_behave_like_files(every: Start) -> None:
    code = (
        "import sys, io, contextlib\n"
        "def handler(event, context):\n"
        "    s = sys.stdout\n"
        "    s.flush(); s.buffer.flush(); s.writelines(['w\\n'])\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as caught: print('caught')\n"
        "    return [s.fileno(), sys.stderr.fileno(), s.isatty(), s.writable(), s.readable(), s.encoding,"
        " isinstance(s, io.TextIOBase), caught.getvalue(),"
        " s is sys.__stdout__]\n"
    )
    instance = every(code)
    instance.boot()
    answer = instance.invoke()
    assert answer.json() == [1, 2, False, True, False, "utf-8", True, "caught\n", True]
    assert answer.text == "w"


def test_logging_speaks_lambdas_format_with_level_and_call_id(every: Start) -> None:
    """Also when it is configured at import, with a formatter of the user's, an exception, a huge level, a broken message."""
    code = (
        "import logging\nlogging.basicConfig(level=10)\nlogging.getLogger().setLevel(10)\n"
        "log = logging.getLogger('x')\nlog.warning('init')\n"
        "def handler(event, context):\n"
        "    log.info('hello %s', 'ä')\n    log.log(99999999, 'huge')\n    logging.critical('bad %d', 'x')\n"
        "    try: 1 / 0\n    except ZeroDivisionError: log.exception('failed')\n"
        "    root = logging.getLogger()\n    old = root.handlers[0].formatter\n"
        "    root.handlers[0].setFormatter(logging.Formatter('%(levelname)s:%(aws_request_id)s:%(message)s'))\n"
        "    log.debug('mine')\n    root.handlers[0].setFormatter(old)\n"
        "    return len(root.handlers)\n"
    )
    instance = every(code)
    instance.boot()
    first = [f for f in instance.seen if f.kind == frames.LOG]
    assert [(f.flags, f.status) for f in first] == [(frames.LOGGING, 30)]
    assert re.fullmatch(rb"\[WARNING\]\t\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\t\tinit", first[0].body)
    answer = instance.invoke(call_id="the-id")
    assert answer.json() == 1
    logged = [(level, text) for stream, level, text in lines(answer) if stream == frames.LOGGING]
    assert re.fullmatch(r"\[INFO\]\t[0-9T:.-]+Z\tthe-id\thello ä", logged[0][1]) and logged[0][0] == 20
    assert logged[1][0] == 65535
    assert logged[2][0] == 40 and "failed\nTraceback" in logged[2][1] and "ZeroDivisionError" in logged[2][1]
    assert logged[3] == (10, "DEBUG:the-id:mine")
    assert "Logging error" in answer.text and "TypeError" in answer.text


def test_logging_is_loaded_only_by_those_who_import_it(every: Start) -> None:
    code = (
        "import sys\nfinders = len(sys.meta_path)\n"
        "def handler(event, context):\n"
        "    before = 'logging' in sys.modules\n    import logging.handlers\n"
        "    loader = logging.__spec__.loader\n"
        "    return [before, finders - len(sys.meta_path), type(loader).__name__, logging.__loader__ is loader]\n"
    )
    instance = every(code)
    instance.boot()
    assert instance.invoke().json() == [False, 1, "SourceFileLoader", True]


def test_an_error_is_logged_with_its_traceback_before_the_answer(every: Start) -> None:
    instance = every("def handler(event, context):\n    print('before')\n    raise ValueError('no')\n")
    instance.boot()
    answer = instance.invoke(call_id="r")
    error = answer.json()
    path = f"{instance.task}/handler.py"
    assert error == {
        "errorMessage": "no",
        "errorType": "ValueError",
        "requestId": "r",
        "stackTrace": [f"  File \"{path}\", line 3, in handler\n    raise ValueError('no')\n"],
    }
    assert lines(answer) == [
        (frames.STDOUT, 20, "before"),
        (
            frames.STDERR,
            40,
            "[ERROR] ValueError: no\nTraceback (most recent call last):\n"
            f"  File \"{path}\", line 3, in handler\n    raise ValueError('no')",
        ),
    ]


def test_output_of_processes_and_of_c_goes_to_the_pipe(every: Start) -> None:
    """So does what a forked child prints with Python: the answers socket is not its own."""
    code = (
        "import os, subprocess, sys, logging\n"
        "def handler(event, context):\n"
        "    print('parent', end='')\n"
        "    os.write(1, b'raw\\n')\n"
        "    subprocess.run(['/bin/sh', '-c', 'echo sub; echo err >&2'], check=True)\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        print('child'); logging.warning('child logs'); print('child err', file=sys.stderr); os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    instance = every(code)
    instance.boot()
    answer = instance.invoke()
    assert answer.text == "parent"
    output = instance.output().decode().splitlines()
    assert output[:4] == ["raw", "sub", "err", "child"] and output[-1] == "child err"
    assert output[4].startswith("[WARNING]") and output[4].endswith("child logs")


def test_a_thread_prints_for_the_call_that_runs_and_for_none_between_calls(start: Start) -> None:
    code = (
        "import threading\ngo, stop = threading.Event(), threading.Event()\n"
        "def handler(event, context):\n"
        "    if event == 'late':\n"
        "        threading.Thread(target=lambda: (go.wait(), print('late'), stop.set()), daemon=True).start()\n"
        "        threading.Timer(0.1, go.set).start()\n"
        "    else:\n"
        "        thread = threading.Thread(target=print, args=('during',)); thread.start(); thread.join()\n"
    )
    instance = start(code)
    instance.boot()
    assert instance.invoke("during").text == "during"
    instance.invoke("late")
    late = instance.wait_for(lambda frame: frame.kind == frames.LOG)
    assert (late.seq, late.body) == (0, b"late")
    assert instance.invoke("during").text == "during"


def test_threads_that_print_all_the_time_never_break_a_frame(every: Start) -> None:
    """Large answers and lines of eight threads on one socket: every frame arrives whole (the driver would see garbage)."""
    code = (
        "import threading, time\n"
        "def noise(n):\n    while True: print(str(n) * 3000); time.sleep(0.0005)\n"
        "for n in range(8): threading.Thread(target=noise, args=(n,), daemon=True).start()\n"
        "def handler(event, context):\n    return 'x' * 500_000\n"
    )
    instance = every(code)
    instance.boot()
    for _ in range(20):
        assert len(instance.invoke().json()) == 500_000
    noise = [frame.body for frame in instance.seen if frame.kind == frames.LOG]
    # An answer finishes the lines of its call, also those a thread is about to end: their line ends then stand alone.
    assert noise and {len(body) for body in noise} <= {3000, 0} and all(len(set(body)) <= 1 for body in noise)


@pytest.mark.parametrize("keyword", ["def", "async def"])
def test_crash_output_is_not_lost(every: Start, keyword: str) -> None:
    """Lines printed right before a crash have been sent; the crash itself has a Python stack on descriptor 2."""
    instance = every(f"import ctypes\n{keyword} handler(event, context):\n    print('last words')\n    ctypes.string_at(0)\n")
    instance.boot()
    instance.send(frames.HTTP, meta=http_head())
    said: Frame = instance.wait_for(lambda frame: frame.kind == frames.LOG)
    assert said.body == b"last words"
    assert instance.wait_exit() == -11
    assert b"Segmentation fault" in (output := instance.output()) and b"handler.py" in output
