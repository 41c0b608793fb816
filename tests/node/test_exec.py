"""Programs that are no Python function of ours: any executable, a shell script, Node. The same walls, the same descriptors."""

import os
import select
import shutil
from pathlib import Path

import pytest

from dayfly.core.wire.node import Kill
from dayfly.runtime import frames
from tests.node.rig import SECONDS_MAX, Client, Instance, Rig

WALLED = ["root", "user"]
ALL = ["root", "user", "container", "bare"]

LOOK = b"""#!/bin/sh
echo "uid $(id -u)"
echo "cwd $(pwd)"
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status 2>/dev/null
echo "processes" /proc/[0-9]*
echo "write" $(touch /var/task/x 2>&1)
echo "fds" $(ls /proc/self/fd 2>/dev/null)
echo "unshare" $(unshare -U true 2>&1)
env | sort | sed 's/^/env /'
echo done
exec sleep 600
"""

# What a runtime for another language does: read BOOT, say READY, answer calls; in thirty lines, because the contract is one page.
NODE = b"""#!/usr/bin/env node
const fs = require('fs');
function exactly(fd, n) {
  const buffer = Buffer.alloc(n);
  for (let at = 0; at < n; at += fs.readSync(fd, buffer, at, n - at)) {}
  return buffer;
}
function frame(kind, seq, meta, body) {
  const head = Buffer.alloc(24);
  head.writeUInt8(kind, 0);
  head.writeUInt32LE(meta.length, 4);
  head.writeUInt32LE(body.length, 8);
  head.writeBigUInt64LE(seq, 16);
  fs.writeSync(4, Buffer.concat([head, meta, body]));
}
const boot = JSON.parse(exactly(4, exactly(4, 16).readUInt32LE(4)));
frame(1, 0n, Buffer.from(JSON.stringify({init_us: 1, async: false, origin: 'fork'})), Buffer.alloc(0));
const message = Buffer.alloc(1 << 18);
for (;;) {
  const size = fs.readSync(3, message, 0, message.length);
  if (size < 24) process.exit(0);
  const bodyAt = 24 + message.readUInt16LE(2) + message.readUInt32LE(4);
  const event = JSON.parse(message.toString('utf8', bodyAt, size));
  const pids = fs.readdirSync("/proc").filter(n => /^[0-9]+$/.test(n));
  const seen = {event, instance: boot.instance, uid: process.getuid(), root: fs.readdirSync("/"), pids};
  let write = '';
  try { fs.writeFileSync('/var/task/x', ''); } catch (error) { write = error.code; }
  frame(3, message.readBigUInt64LE(8), Buffer.alloc(0), Buffer.from(JSON.stringify({...seen, write})));
}
"""


def output_until(instance: Instance, end: str) -> str:
    """What it prints, up to the word `end`."""
    said = ""
    while end not in said:
        assert select.select([instance.output], [], [], SECONDS_MAX)[0], f"it said only {said!r}"
        block = os.read(instance.output, 65536).decode()
        assert block, f"it ended and said {said!r}"
        said += block
    return said


@pytest.mark.parametrize("rig", ALL, indirect=True)
def test_a_program_has_the_walls_of_any_instance(rig: Rig, client: Client) -> None:
    """A shell script: its own user, no privileges, the filter, files it cannot change, three descriptors, an environment from nothing."""
    instance = client.start(rig.code("", files={"bootstrap": LOOK}), runtime="exec")
    accepted = client.wait_accepted(instance.name)
    said = output_until(instance, "done\n")
    facts = {line.partition(" ")[0].rstrip(":"): line.partition(" ")[2].strip() for line in said.replace(":\t", " ").splitlines()}
    assert int(facts["uid"]) >= 0x10000000 if rig.uid == 0 else int(facts["uid"]) > 0
    assert facts["write"], "it could write beside its code"
    assert "permitted" in facts["unshare"] or "denied" in facts["unshare"] or "not found" in facts["unshare"], facts["unshare"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{accepted.pid}/status").read_text().splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    named = {line.removeprefix("env ").partition("=")[0] for line in said.splitlines() if line.startswith("env ")}
    assert named <= {
        "PATH", "LANG", "LC_CTYPE", "TZ", "HOME", "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_", "LAMBDA_TASK_ROOT", "DAYFLY_SECRETS",
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    }  # fmt: skip
    if not rig.filtered:
        assert facts["cwd"] == "/var/task"
        assert set(facts["fds"].split()) <= {"0", "1", "2", "3", "4", "5", "6"}
    client.send(Kill(instance.name))
    assert client.wait_exited(instance.name).reason == "signal"


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_node_serves_calls_in_the_same_walls(rig: Rig, client: Client) -> None:
    """A script for Node speaks the frames and sees what a Python function sees."""
    if not shutil.which("node", path="/usr/bin:/bin:/usr/local/bin"):
        pytest.skip("there is no Node on this machine")
    instance = client.start(rig.code("", files={"bootstrap": NODE}), runtime="exec", memory_mb=512)
    instance.boot()
    instance.ready()
    seen = instance.call({"a": [1, 2]})
    assert isinstance(seen, dict)
    assert seen["event"] == {"a": [1, 2]}
    assert seen["instance"] == instance.name
    assert seen["write"] in ("EROFS", "EACCES")
    assert seen["pids"] == ["1"]
    assert not {"home", "root", "sys", "srv"} & set(seen["root"])


@pytest.mark.parametrize("rig", WALLED, indirect=True)
def test_a_program_that_cannot_be_run_says_so(rig: Rig, client: Client) -> None:
    """None is there; its format is none; then 126, and why, in its output."""
    for files in ({}, {"bootstrap": b"\x7fELF nonsense"}):
        instance = client.start(rig.code("", files=files), runtime="exec")  # type: ignore[arg-type]
        exited = client.wait_exited(instance.name)
        assert (exited.reason, exited.code) == ("exit", 126)
        assert b"/bootstrap cannot be run" in instance.read_output()


def test_a_program_cannot_be_a_template(rig: Rig, client: Client) -> None:
    """Nobody knows how to fork it."""
    instance = client.start(rig.code("", files={"bootstrap": LOOK}), runtime="exec", role="template")
    assert client.wait_exited(instance.name).reason == "refused"


def test_frames_are_what_the_script_above_was_written_by() -> None:
    """If one of these changes, other languages' runtimes must."""
    assert (frames.REQUEST.size, frames.ANSWER.size, frames.CONTROL.size) == (24, 24, 16)
    assert (frames.READY, frames.RESULT) == (1, 3)
