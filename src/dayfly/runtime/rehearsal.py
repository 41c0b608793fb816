"""A zygote's rehearsal: the life of an instance, played a few times in the parent with nobody watching.

Every function that runs for the first time writes to its own code (CPython's adaptive interpreter), fills caches and touches
lazily made state. Done once before forking, all instances share the result; done after, each pays for it with its own copy of
those pages and with time on the cold path. So it plays all of a start, down to what takes no time: code that has learnt writes less.
Must leave nothing that an instance could notice: environment, import path and streams are put back, random state is not touched, no
descriptor stays open. Called by the node's zygote, once, before it freezes its heap.
"""

import os
import sys
from _socket import AF_UNIX, SOCK_SEQPACKET, SOCK_STREAM, socketpair
from mmap import mmap
from time import monotonic_ns

from dayfly.runtime import sequential
from dayfly.runtime.answers import Answers
from dayfly.runtime.boot import Boot, adopt, environment, import_path, settle
from dayfly.runtime.frames import BOOT, CONTROL, DIRECT, HTTP, PROGRESS_BYTES, REQUEST
from dayfly.runtime.handler import check_not_builtin, is_async, is_plain_file, read_source, run_source, split
from dayfly.runtime.inbox import Inbox
from dayfly.runtime.instance import Instance
from dayfly.runtime.logs import watch
from dayfly.runtime.output import Scope, replace_streams
from dayfly.runtime.ready import clocks, say_ready

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROUNDS = 24  # CPython specialises a function's code after 2 to 16 runs, depending on its version
BOOT_BODY = (
    b'{"namespace":"n","function":"f","version":1,"instance":"i","handler":"handler.handler","memory_mb":128,'
    b'"timeout_seconds":30.0,"concurrency":1,"env":{"NAME":"value"},"secrets":[]}'
)
HEAD = b"POST\n/a\nb=c%20d\n127.0.0.1\nhttp\nhost: a.b\ncontent-type: application/json\ncookie: a=b\naccept: */*"


CALLS = ((DIRECT, b"", b'{"a":1}'), (HTTP, HEAD, b'{"a":1}'), (HTTP, HEAD, b""))


def rehearse() -> None:
    """Play boot and a few calls of both kinds, with an answer, an error and output in each round."""
    settle()
    for number in range(ROUNDS):
        _play(number)


def _play(number: int, calls: "tuple[tuple[int, bytes, bytes], ...]" = CALLS) -> None:
    requests, requests_end = socketpair(AF_UNIX, SOCK_SEQPACKET)
    answers, answers_end = socketpair(AF_UNIX, SOCK_STREAM)
    answers.send(CONTROL.pack(BOOT, len(BOOT_BODY), 0) + BOOT_BODY)
    inbox = Inbox(requests_end.detach())
    stage = Answers(answers_end.detach())
    page = mmap(-1, PROGRESS_BYTES)
    boot = Boot(stage.read_boot())
    scope = Scope()
    variables = environment(boot, "/var/task", "/opt/python")
    environ, path, finders = {name: os.environ.get(name) for name in variables}, sys.path[:], sys.meta_path[:]
    streams = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
    outputs = replace_streams(stage, scope)
    try:
        began = clocks()
        adopt(variables, import_path(boot, "/var/task", "/opt/python"))
        watch(stage, scope)
        check_not_builtin(split(boot.handler)[0], "/")
        is_plain_file("rehearsal", "/")
        read_source(os.devnull)
        instance = Instance(boot, stage, memoryview(page).cast("Q"), scope, outputs)
        instance.finish_lines()
        say_ready(stage, began, is_async(_handler), "fork")
        for kind, meta, body in calls:
            head = REQUEST.pack(kind, 0, 4, len(meta), number + 1, monotonic_ns() + 10**12)
            requests.send(head + b"call" + meta + body)
            call = inbox.wait()
            sequential.run_one(instance, _handler, call)
            instance.is_worn_out(call.began)
        sys.stdout.write("line\n")
    finally:
        sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__ = streams  # type: ignore[misc]
        sys.meta_path[:], sys.path[:] = finders, path
        for name, value in environ.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    for output in outputs:
        output.forget()
    stage.forget()
    inbox.forget()
    requests.close()
    answers.close()


def _handler(event: "Any", context: "Any") -> "Any":
    if "rawPath" in event:
        return {"statusCode": 200, "headers": {"content-type": "text/plain"}, "body": event.get("body", "")}
    return {"answer": [event, context.get_remaining_time_in_millis(), 1.5, None, True]}


SOURCE = b"""import json
import os

TABLE = {"a": [1, 2.5, None], "b": (True, "text")}


class Thing:
    def __init__(self, value=1, *rest, **named):
        self.value = value


def handler(event, context):
    try:
        found = [row for row in event.get("rows", ()) if row]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no {error!r}") from error
    with_default = event["a"] if "a" in event else Thing(len(found)).value
    return {"statusCode": 200, "body": json.dumps({"x": with_default, **TABLE})}
"""


SMALL_SOURCE = b"import os\n\n\ndef handler(event, context):\n    return event\n"


def prefault() -> None:
    """Once more, in a child that waits for its function: the pages that a start and a first call write to are its own then, and the
    copying of them is over before anybody waits for it. A short play: a longer one costs each sandbox 54 pages and 0.3 ms more of a
    processor, and saves its first call next to nothing."""
    run_source("rehearsal", "", SMALL_SOURCE)
    del sys.modules["rehearsal"]
    _play(0, CALLS[:2])


def rehearse_import() -> None:
    """Run a module's source a few times, and look for one that is not there, as an instance does with the user's. Called before the
    zygote's walls stand, while the import system still finds everything."""
    for _ in range(ROUNDS):
        for finder in sys.meta_path:
            finder.find_spec("dayfly_no_such_module", None)
        is_plain_file("rehearsal", "/")
        run_source("rehearsal", "", SOURCE)
        del sys.modules["rehearsal"]
