"""Templates of packages: a layer's modules are imported once, and instances of any code that has the layer start from there."""

import hashlib
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from dayfly.core.wire import node as wire
from dayfly.runtime import frames
from tests.node.handlers import ECHO, LOOK
from tests.node.rig import Client, Instance, Rig
from tests.node.test_bad_days import gone, wait_until

pytestmark = pytest.mark.root

# Modules that tell who imported them, when, and what they saw.
LAYER = {
    "heavy/__init__.py": "import os, random, sys\nimport heavy.part\nPID, SEEN = os.getpid(), dict(os.environ)\nPATH = list(sys.path)\n",
    "heavy/part.py": "IMPORTED = []\n",
    "broken.py": "1 / 0\n",
    "leaver.py": "raise SystemExit(3)\n",
    "hooked.py": """
from snapshot_restore_py import register_after_restore, register_before_snapshot
SEEN = []
register_before_snapshot(SEEN.append, "before")
register_after_restore(SEEN.append, "after")
""",
}
NAMES = ["heavy", "heavy.part", "broken", "leaver", "hooked"]
ASK = """
import sys
THERE = [name for name in ("heavy", "heavy.part", "broken", "hooked") if name in sys.modules]
import heavy, json, os, random
heavy.part.IMPORTED.append("{name}")
def handler(event, context):
    return eval(event)
"""


def layer(rig: Rig, files: Mapping[str, str] = LAYER) -> str:
    """A layer with these modules; its digest."""
    digest = hashlib.sha256(repr(files).encode()).hexdigest()
    folder = Path(rig.layout.layers, digest)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return digest


def packages(client: Client, layer: str, names: list[str] = NAMES) -> Instance:
    """A template of packages that stands."""
    made = client.start("", role="packages", layer=layer)
    made.boot(imports=names)
    made.ready()
    client.wait_accepted(made.name)
    return made


def child(rig: Rig, client: Client, source: str, of: Instance, layer: str, **settings: object) -> Instance:
    instance = client.run(rig.code(source), parent=of.name, layer=layer, **settings)
    assert instance.origin == "packages", rig.text()
    return instance


def test_any_code_with_the_layer_starts_from_what_was_imported_once(rig: Rig, client: Client) -> None:
    """Two versions of two functions: their packages are there before their code is, and nothing of one reaches the other."""
    digest = layer(rig)
    parent = packages(client, digest)
    boots = [{"function": f"f{number}", "version": number, "env": {}} for number in (1, 2)]
    both = [
        child(rig, client, ASK.replace("{name}", f"f{boot['version']}"), parent, digest, boot=boot, memory_mb=64 * number)
        for number, boot in enumerate(boots, 1)
    ]
    assert [it.call("THERE") for it in both] == [["heavy", "heavy.part", "hooked"]] * 2
    assert [it.call("heavy.part.IMPORTED") for it in both] == [["f1"], ["f2"]]
    assert [it.call("os.environ['AWS_LAMBDA_FUNCTION_NAME'] + os.environ['DAYFLY_VERSION']") for it in both] == ["f11", "f22"]
    assert both[0].call("random.random()") != both[1].call("random.random()")
    assert [it.call("[os.getcwd(), sys.path[0], heavy.PATH[0]]") for it in both] == [["/var/task", "/var/task", "/opt/python"]] * 2
    seen = both[0].call("heavy.SEEN")
    assert isinstance(seen, dict)
    assert seen["LAMBDA_TASK_ROOT"] == "/var/task"
    assert not [name for name in seen if "FUNCTION" in name or "VERSION" in name or name in ("_HANDLER", "DAYFLY_INSTANCE")]


def test_hooks_of_packages_run_around_the_copy(rig: Rig, client: Client) -> None:
    """And those that the function's own code registers do not: nothing of it was copied."""
    digest = layer(rig)
    own = "import hooked\nfrom snapshot_restore_py import register_after_restore\nregister_after_restore(hooked.SEEN.append, 'own')\n"
    source = ASK + own
    assert child(rig, client, source, packages(client, digest), digest).call("hooked.SEEN") == ["before", "after"]


def test_hooks_may_be_registered_where_nothing_is_copied(rig: Rig, client: Client) -> None:
    source = "from snapshot_restore_py import register_before_snapshot\nregister_before_snapshot(print, 'no')\n" + ECHO
    assert client.run(rig.code(source)).call(1) == 1


def test_children_stand_ready_once_they_are_asked_for_again(rig: Rig, client: Client) -> None:
    """One ask has a template of its own soon; two say that more will come. Those that stand ready get any code, and its limits."""
    digest = layer(rig)
    parent = packages(client, digest)
    for number in range(2):
        child(rig, client, ASK.replace("{name}", f"first {number}"), parent, digest)
    pid = client.wait_accepted(parent.name).pid
    wait_until(lambda: len(children_of(pid)) > 2, "no child was forked ahead")
    source = "BLOCKS = []\ndef handler(event, context):\n    while True:\n        BLOCKS.append(bytearray(b'x') * (1 << 20))\n"
    greedy = child(rig, client, source, parent, digest, memory_mb=40)
    greedy.send("memory")
    exited = client.wait_exited(greedy.name)
    assert exited.reason == "oom"
    assert exited.memory_peak_bytes <= 41 << 20, "its template's limit held, not its own"


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_child_has_the_walls_of_any_instance(rig: Rig, client: Client) -> None:
    """As tests/node/test_templates.py has them, and code that nobody can write."""
    digest = layer(rig)
    parent = packages(client, digest)
    one, two = (child(rig, client, LOOK + f"# {number}\n", parent, digest) for number in (1, 2))
    assert one.call("os.getuid()") != two.call("os.getuid()")
    assert one.call("writable('/tmp')") is True
    assert two.call("os.listdir('/tmp')") == []
    for instance in (one, two):
        assert instance.call("os.getpid()") == 1
        assert instance.call("[n for n in os.listdir('/proc') if n.isdigit()]") == ["1"]
        assert instance.call("os.uname().nodename") == instance.name
        status = instance.call("status()")
        assert isinstance(status, dict)
        assert [int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == [0] * 5
        assert (int(status["NoNewPrivs"]), int(status["Seccomp"])) == (1, 2)
        for flags in (0x10000000, 0x20000):
            assert instance.call(f"call('unshare', {flags:#x})") == 1
        for folder in ("/var/task", "/opt/python"):
            assert str(instance.call(f"writable('{folder}')")).split()[0] == "OSError"
        assert instance.call("os.listdir('/var/task')") == ["handler.py"]
        assert instance.call("sorted(int(n) for n in os.listdir('/proc/self/fd'))[:6]") == [0, 1, 2, 3, 4, 5]
    spaces = [{name: os.readlink(f"/proc/{client.wait_accepted(it.name).pid}/ns/{name}") for name in ("pid", "mnt", "net", "ipc", "uts", "user")} for it in (one, two, parent)]  # fmt: skip  # noqa: E501
    for name in spaces[0]:
        assert len({found[name] for found in spaces}) == 3, name


def test_what_cannot_start_from_packages_starts_without(rig: Rig, client: Client) -> None:
    """Another size of /tmp, another namespace, secrets; and code with a module by the name of one that would be there already."""
    digest, other = layer(rig), layer(rig, {"heavy/__init__.py": ""})
    parent = packages(client, digest)
    code = rig.code(ECHO)
    asked: list[dict[str, object]] = [
        {"tmp_mb": 17}, {"tenant": "other"}, {"layer": other}, {"secrets": {"key": b"value"}, "boot": {"secrets": ["key"]}},
    ]  # fmt: skip
    for settings in asked:
        instance = client.run(code, parent=parent.name, **({"layer": digest} | settings))
        assert (instance.origin in ("fork", "prepared"), instance.call(1)) == (True, 1), settings
    for name in ("heavy/__init__.py", "queue.py", "hooked.so"):
        shadowing = rig.code(ECHO, files={name: b""})
        assert client.run(shadowing, parent=parent.name, layer=digest).origin in ("fork", "prepared"), name


def test_packages_that_start_a_thread_are_refused(rig: Rig, client: Client) -> None:
    """As a version's init is: it says what, and ends."""
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), name='worker', daemon=True).start()\n"
    made = client.start("", role="packages", layer=layer(rig, {"threads.py": thread}))
    made.boot(imports=["threads"])
    kind, _, meta, _ = made.answer()
    assert kind == frames.READY
    assert "running thread (worker)" in meta.decode()
    assert client.wait_exited(made.name).reason in ("exit", "signal")


def test_only_modules_of_the_layer_are_imported(rig: Rig, client: Client) -> None:
    """Whatever names an instance may have told."""
    digest = layer(rig)
    parent = packages(client, digest, ["antigravity", "handler", "heavy", "..", ""])
    assert child(rig, client, ASK, parent, digest).call("['antigravity' in sys.modules, 'heavy' in sys.modules]") == [False, True]


def test_killed_packages_end_their_children_and_starts_go_on_without(rig: Rig, client: Client) -> None:
    digest = layer(rig)
    parent = packages(client, digest)
    instance = child(rig, client, ECHO, parent, digest)
    pids = [client.wait_accepted(it.name).pid for it in (parent, instance)]
    os.kill(pids[0], signal.SIGKILL)
    assert client.wait_exited(instance.name).reason == "signal"
    client.wait_exited(parent.name)
    wait_until(lambda: gone(pids), "a child outlived its template")
    assert client.run(rig.code(ECHO), parent=parent.name, layer=digest).origin in ("fork", "prepared")


def test_packages_that_cannot_fork_are_given_up(rig: Rig, client: Client) -> None:
    digest = layer(rig)
    parent = packages(client, digest)
    os.kill(client.wait_accepted(parent.name).pid, signal.SIGSTOP)
    instance = client.run(rig.code(ECHO), parent=parent.name, layer=digest)
    assert (instance.origin in ("fork", "prepared"), instance.call(1)) == (True, 1)


def test_an_init_tells_what_it_imported_when_it_was_costly(rig: Rig, client: Client) -> None:
    """Only modules of the layer, in the order in which their import ended; an init of no cost tells nothing."""
    digest = layer(rig)
    burn = "import time\nbegan = time.thread_time()\nwhile time.thread_time() - began < 0.006:\n    pass\n"
    told = []
    for source in (f"{burn}import hooked, heavy\n{ECHO}", f"import heavy\n{ECHO}"):
        instance = client.start(rig.code(source), layer=digest)
        instance.boot()
        kind, _, meta, _ = instance.answer()
        assert kind == frames.READY
        said = json.loads(meta)
        told.append(said.get("imports"))
        assert ("imports" in said) == (said["init_cpu_us"] >= 5000)
    assert told[0] == ["hooked", "heavy.part", "heavy"]


@pytest.mark.parametrize(
    "wrong",
    [{"code": ""}, {"role": "packages"}, {"role": "packages", "code": "", "layer": ""}, {"role": "packages", "code": "", "parent": "x"},
     {"role": "packages", "code": "", "has_secrets": True}],
)  # fmt: skip
def test_code_and_role_must_go_together(wrong: dict[str, object]) -> None:
    """A message that says otherwise is none."""
    right: dict[str, object] = {
        "type": "start", "instance": "i", "tenant": "t", "runtime": "python3.11", "code": "0" * 64, "layer": "1" * 64, "memory_mb": 64,
        "tmp_mb": 16, "egress": "none",
    }  # fmt: skip
    assert wire.decode_to_node(msgspec.json.encode(right))
    with pytest.raises(msgspec.ValidationError):
        wire.decode_to_node(msgspec.json.encode(right | wrong))
