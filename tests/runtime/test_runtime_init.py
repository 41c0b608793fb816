"""Init: what a function sees when it starts, and Lambda's names for what goes wrong before it does."""

import json
import os
import subprocess
from typing import Any

import pytest

from dayfly.runtime import frames
from tests.runtime.conftest import Start
from tests.runtime.driver import SOURCE, Driver


def failure(instance: Driver) -> dict[str, Any]:
    """The FAILED frame's error; the instance must end with 1."""
    frame = instance.boot()
    assert frame.kind == frames.FAILED
    assert instance.wait_exit() == 1
    error: dict[str, Any] = json.loads(frame.meta)
    return error


@pytest.mark.parametrize(
    ("handler", "file"),
    [
        ("handler.handler", "handler.py"),
        ("handler", "handler.py"),
        ("pkg/sub/mod.handler", "pkg/sub/mod.py"),
        ("pkg.sub.mod.handler", "pkg/sub/mod.py"),
        ("pkg/mod", "pkg/mod.py"),
        ("lib.handler", "lib/__init__.py"),
    ],
)
def test_the_handler_string_finds_the_function(start: Start, handler: str, file: str) -> None:
    instance = start({file: "def handler(event, context):\n    return __name__\n"}, handler=handler)
    assert instance.boot().kind == frames.READY
    assert instance.invoke().json() == file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize(
    ("code", "handler", "error_type", "words"),
    [
        ("import nothing_like_it", "handler.handler", "Runtime.ImportModuleError", "No module named 'nothing_like_it'"),
        ("", "absent.handler", "Runtime.ImportModuleError", "Unable to import module 'absent': No module named 'absent'"),
        ("x = 1", "handler.missing", "Runtime.HandlerNotFound", "Handler 'missing' missing on module 'handler'"),
        ("handler = 7", "handler.handler", "Runtime.HandlerNotFound", "not callable"),
        ("def handler(:\n  pass", "handler.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'handler'"),
        ("", "handler.", "Runtime.MalformedHandlerName", "Bad handler"),
        ("", "a..b", "Runtime.MalformedHandlerName", "Bad handler"),
        ("", "../x.y", "Runtime.MalformedHandlerName", "Bad handler"),
        ("", "sys.exit", "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys"),
        ("import sys; sys.exit(3)", "handler.handler", "Runtime.ExitError", "Runtime exited with error: exit status 3"),
        ("raise SystemExit", "handler.handler", "Runtime.ExitError", "Runtime exited without providing a reason"),
        ("1 / 0", "handler.handler", "ZeroDivisionError", "division by zero"),
        ("raise KeyboardInterrupt('k')", "handler.handler", "KeyboardInterrupt", "k"),
    ],
)
def test_a_failing_init_is_named_as_lambda_names_it(every: Start, code: str, handler: str, error_type: str, words: str) -> None:
    error = failure(every({"handler.py": code}, handler=handler))
    assert error["errorType"] == error_type
    assert words in error["errorMessage"]
    assert error["requestId"] == ""


def test_a_failing_init_shows_the_users_frames_and_none_of_ours(every: Start) -> None:
    """In the error and in the log, which also names the cause."""
    code = (
        "def inner():\n    raise ValueError('deep')\n"
        "try:\n    inner()\nexcept ValueError as error:\n    raise RuntimeError('top') from error\n"
    )
    instance = every(code)
    error = failure(instance)
    assert error["stackTrace"] == [
        f"  File \"{instance.task}/handler.py\", line 6, in <module>\n    raise RuntimeError('top') from error\n"
    ]
    text = b"\n".join(f.body for f in instance.seen if f.kind == frames.LOG).decode()
    assert text.startswith("[ERROR] RuntimeError: top\nTraceback (most recent call last):\n")
    assert "Caused by ValueError: deep" in text and "in inner\n    raise ValueError('deep')" in text
    assert "dayfly" not in text.replace(str(instance.task), "")


def test_a_users_module_named_like_a_loaded_one_is_refused_by_name(start: Start) -> None:
    error = failure(start({"json.py": "def handler(event, context): pass\n"}, handler="json.handler"))
    assert error["errorType"] == "Runtime.BuiltInModuleConflict" and "json" in error["errorMessage"]


def test_an_enormous_init_error_fits_its_frame(start: Start) -> None:
    code = "def f(n):\n    if n: f(n - 1)\n    raise ValueError('x' * 10_000_000)\nf(900)\n"
    error = failure(start(code))
    assert error["errorType"] == "ValueError" and len(error["errorMessage"]) == 4096 and error["stackTrace"]


ENVIRONMENT = "import os\ndef handler(event, context):\n    return dict(os.environ)\n"


def test_the_environment_is_lambdas_plus_ours_plus_the_users(every: Start) -> None:
    """Reserved names stay the platform's; the zygote's environment is not visible."""
    os.environ["LEAK"] = "1"
    try:
        instance = every(
            ENVIRONMENT, env={"A": "b", "TZ": "Europe/Berlin", "PATH": "/x", "AWS_LAMBDA_FUNCTION_NAME": "liar", "DAYFLY_VERSION": "9"}
        )
    finally:
        del os.environ["LEAK"]
    instance.boot()
    seen = instance.invoke().json()
    assert "LEAK" not in seen
    assert seen["A"] == "b" and seen["TZ"] == "Europe/Berlin" and seen["PATH"] == "/x"
    expected = {
        "AWS_LAMBDA_FUNCTION_NAME": "hello",
        "AWS_LAMBDA_FUNCTION_VERSION": "3",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/hello",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "LAMBDA_TASK_ROOT": instance.task,
        "_HANDLER": "handler.handler",
        "DAYFLY_FUNCTION": "hello",
        "DAYFLY_NAMESPACE": "default",
        "DAYFLY_VERSION": "3",
        "DAYFLY_INSTANCE": "i-1",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
    }
    assert expected.items() <= seen.items()
    assert seen["AWS_EXECUTION_ENV"].startswith("AWS_Lambda_python3.")
    assert seen["AWS_LAMBDA_LOG_STREAM_NAME"].endswith("/[3]i-1")


def test_the_import_path_is_task_layer_and_standard_library(every: Start) -> None:
    """The function's own modules win over its layer's; nothing of ours, and no site-packages."""
    instance = every(
        {
            "handler.py": "import sys, both, only\n"
            "def handler(event, context):\n"
            "    try: import dayfly.runtime.agent as found\n"
            "    except ImportError: found = None\n"
            "    try: import msgspec as other\n"
            "    except ImportError: other = None\n"
            "    ours = [name for name in sys.modules if name.startswith('dayfly')]\n"
            "    return [sys.path, both.who, only.who, str(found), str(other), ours, sys.argv]\n",
            "both.py": "who = 'task'",
        },
        layer={"both.py": "who = 'layer'", "only.py": "who = 'layer'"},
    )
    instance.boot()
    path, both, only, found, other, ours, argv = instance.invoke().json()
    assert path[:2] == [instance.task, instance.layer] and len(path) == 4
    assert not any("site-packages" in entry or "dayfly/src" in entry for entry in path)
    assert (both, only, found, other, ours, argv) == ("task", "layer", "None", "None", [], [""])


def test_a_bundle_may_bring_its_own_dayfly_module(start: Start) -> None:
    instance = start({"handler.py": "import dayfly\ndef handler(e, c): return dayfly.mine\n", "dayfly.py": "mine = 1"})
    instance.boot()
    assert instance.invoke().json() == 1


def test_the_time_zone_is_in_force(start: Start) -> None:
    instance = start("import time\ndef handler(e, c): return time.strftime('%H', time.localtime(0))\n", env={"TZ": "XYZ-5"})
    instance.boot()
    assert instance.invoke().json() == "05"


def test_the_context_has_lambdas_fields_and_methods(every: Start) -> None:
    code = """
def handler(event, c):
    first = c.get_remaining_time_in_millis()
    c.mine = 1
    cc = c.client_context
    return {
        "id": c.aws_request_id, "group": c.log_group_name, "stream": c.log_stream_name, "name": c.function_name,
        "memory": c.memory_limit_in_mb, "version": c.function_version, "arn": c.invoked_function_arn, "tenant": c.tenant_id,
        "identity": [c.identity.cognito_identity_id, c.identity.cognito_identity_pool_id], "left": first,
        "client": cc and [cc.custom, cc.env, cc.client and cc.client.app_title], "w3c": c.w3c(), "repr": repr(c)[:14],
        "log": c.log("logged\\n"),
    }
"""
    instance = every(code)
    instance.boot()
    answer = instance.invoke(call_id="abc", seconds=10)
    seen = answer.json()
    assert 0 < seen.pop("left") <= 10_000
    assert seen.pop("stream").endswith("/[3]i-1")
    assert seen == {
        "id": "abc",
        "group": "/aws/lambda/hello",
        "name": "hello",
        "memory": "128",
        "version": "3",
        "arn": "arn:aws:lambda:local:000000000000:function:hello",
        "tenant": None,
        "identity": [None, None],
        "client": None,
        "w3c": None,
        "repr": "LambdaContext(",
        "log": None,
    }
    assert answer.text == "logged"
    given = {"client": {"app_title": "t"}, "custom": {"a": 1}, "env": {"b": 2}, "w3c": {"traceparent": "x"}}
    seen = instance.invoke(meta=json.dumps(given).encode()).json()
    assert seen["client"] == [{"a": 1}, {"b": 2}, "t"] and seen["w3c"] == {"traceparent": "x"}


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff"])
def test_a_bad_client_context_is_named(start: Start, text: bytes) -> None:
    instance = start("def handler(e, c): return 1\n")
    instance.boot()
    assert instance.invoke(meta=text).json()["errorType"] == "Runtime.LambdaContextUnmarshalError"


def test_remaining_time_is_never_negative(start: Start) -> None:
    instance = start("import time\ndef handler(e, c):\n    time.sleep(0.05)\n    return c.get_remaining_time_in_millis()\n")
    instance.boot()
    assert instance.invoke(seconds=0.04).json() == 0


def test_random_numbers_differ_between_instances_of_one_zygote(python: str) -> None:
    """Two forks of one process that had imported random and seeded it."""
    program = """
import os, sys, random
sys.path.insert(0, {source!r})
random.seed(1)
from dayfly.runtime import boot
def child():
    boot.reseed()
    return random.random()
for _ in range(2):
    if os.fork() == 0:
        os.write(1, f"{{child()}}\\n".encode())
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([python, "-I", "-S", "-c", program.format(source=str(SOURCE))], capture_output=True, text=True, timeout=30)
    first, second = done.stdout.split()
    assert first != second
