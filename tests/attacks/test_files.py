"""Files: the platform's, the machine's and other functions' can neither be read nor found; its own code cannot be changed."""

import os
import sqlite3
import stat
import sys
from pathlib import Path

import pytest

from dayfly.control.build import digest_of
from dayfly.core.manifest.requirements import canonical
from tests.attacks.arena import CANARIES, Arena

BOTH = True
HOST_FILES = (
    "/etc/shadow", "/etc/sudoers", "/etc/ssh", "/root", "/home", "/boot", "/var/lib", "/var/log", "/srv", "/mnt", "/media",
    "/dev/mem", "/dev/kmsg", "/dev/port", "/dev/sda", "/dev/vda", "/dev/nvme0n1", "/dev/loop0", "/dev/kvm", "/dev/fuse", "/dev/net/tun",
    "/dev/console", "/dev/tty", "/dev/ptmx", "/dev/pts", "/var/run/docker.sock", "/run/systemd", "/run/netns", "/run/dbus",
)  # fmt: skip
KERNEL_FILES = (
    "/sys", "/sys/kernel/security", "/sys/firmware", "/sys/class/net", "/sys/class/dmi/id/product_uuid", "/sys/fs/cgroup",
    "/sys/kernel/debug", "/proc/kcore", "/proc/kmsg", "/proc/vmcore", "/proc/sysrq-trigger", "/proc/keys", "/proc/key-users",
    "/proc/iomem", "/proc/timer_list", "/proc/sched_debug", "/proc/slabinfo", "/proc/vmallocinfo", "/proc/kpagecount",
)  # fmt: skip
ONLY_ROOT_HIDES = (
    "/proc/iomem",
    "/proc/timer_list",
    "/proc/keys",
    "/proc/key-users",
)  # readable in any user namespace, and empty of secrets there


def tree_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below, with mode, owner and content."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            entry = path.lstat()
            found[str(path)] = (entry.st_mode, entry.st_uid, path.read_bytes() if stat.S_ISREG(entry.st_mode) else b"")
    return found


def worked(said: dict[str, object]) -> dict[str, object]:
    """Those attempts that did not end in an error of the kernel's."""
    errors = ("PermissionError", "FileNotFoundError", "OSError", "NotADirectoryError", "IsADirectoryError", "FileExistsError")
    return {name: answer for name, answer in said.items() if not str(answer).startswith(errors)}


def test_the_platforms_files_tokens_and_the_code_of_others_cannot_be_read(arena: Arena) -> None:
    platform = arena.platform
    data = platform.data
    for path in ("control/dayfly.db", "control/secret.key", "run/node.sock", "run/state.json", "code"):
        assert (data / path).exists(), f"the attack aims at what is there: {path}"
    with sqlite3.connect(f"file:{data}/control/dayfly.db?mode=ro", uri=True) as database:
        assert database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 3
    paths = [str(path) for path in (platform.folder, data, *sorted(data.rglob("*")))]
    assert any("dayfly.db" in path for path in paths) and any(path.endswith("handler.py") for path in paths)
    said = arena.attacker("files").try_("read", paths=paths[:150])
    assert said and not {path: seen for path, seen in said.items() if not isinstance(seen, dict)}


def test_no_canary_of_another_function_lies_anywhere_in_sight(arena: Arena) -> None:
    """Code, environment, secret, /tmp and log of the victim, and the admin token are in no file that can be read."""
    needles = [*CANARIES.values(), arena.platform.token]
    hidden = [needle.encode()[::-1].hex() for needle in needles]
    prefix = os.path.realpath(arena.platform.python).rpartition("/bin/")[0]
    skip = ["/proc", "/usr", "/lib", "/lib64", "/etc/ssl", prefix]
    said = arena.attacker("files").try_("hunt", needles=hidden, skip=skip)
    assert said["looked"] > 3
    assert said["found"] == []


def test_the_machines_files_and_the_kernels_cannot_be_read(arena: Arena) -> None:
    paths = [path for path in (*HOST_FILES, *KERNEL_FILES) if arena.mode == "root" or path not in ONLY_ROOT_HIDES]
    said = arena.attacker("files").try_("read", paths=paths)
    assert not {path: seen for path, seen in said.items() if not isinstance(seen, dict)}
    assert arena.attacker("files").act("read", paths=["/etc/passwd"])["/etc/passwd"].count("\n") == 1, "no account of the machine"


def test_the_platforms_sockets_cannot_be_connected_to(arena: Arena) -> None:
    run = arena.platform.data / "run"
    sockets = [str(path) for path in run.rglob("*") if path.is_socket()]
    assert {Path(path).name for path in sockets} >= {"node.sock", "api.sock", "link.sock"}
    paths = [*sockets, *(f"/proc/1/root{path}"[-107:] for path in sockets), "/run/node.sock", "/var/run/docker.sock", "/run/systemd/notify"]
    said = arena.attacker("files").try_("connect", paths=paths)
    assert said and set(said.values()) <= {"FileNotFoundError 2", "PermissionError 13", "NotADirectoryError 20"}, said


def test_another_instances_tmp_cannot_be_seen(arena: Arena) -> None:
    attacker = arena.attacker("files")
    said = attacker.try_("read", paths=["/tmp/canary", "/dev/shm/canary", "/var/tmp/canary"])
    assert not {path: seen for path, seen in said.items() if not isinstance(seen, dict)}


def test_code_and_interpreter_cannot_be_changed(arena: Arena) -> None:
    attacker = arena.attacker("files", files={"data.txt": "as deployed"})
    before = tree_of(arena.platform.data / "code")
    targets = [
        "/var/task/handler.py",
        "/var/task/data.txt",
        "/var/task",
        "/usr/bin/env",
        "/etc/resolv.conf",
        "/etc/passwd",
        "/dev/zero",
        "/",
    ]
    said = attacker.try_("change", paths=targets)
    assert worked(said) == {}
    folders = ["/var/task", "/opt", "/opt/python", "/usr/lib", "/etc", "/dev", "/run", "/run/secrets", "/", "/proc", "/proc/self", "/var"]
    assert worked(attacker.act("create", folders=folders)) == {}
    assert tree_of(arena.platform.data / "code") == before
    attacker.works()


def test_a_layer_cannot_be_changed(arena: Arena) -> None:
    """A finished layer is put where control looks for it, by the digest that control gives it: tests of walls install nothing."""
    text, runtime = "a-package-of-this-test==1.0\n", f"python{sys.version_info[0]}.{sys.version_info[1]}"
    layer = arena.platform.data / "layers" / digest_of(canonical(text), runtime)
    layer.mkdir()
    (layer / "dependency.py").write_text("VALUE = 11\n")
    os.chown(layer, arena.platform.as_uid, arena.platform.as_uid)
    attacker = arena.attacker("files", name="layered", files={"requirements.txt": text}, runtime=runtime)
    targets = ["/opt/python/dependency.py", "/opt/python", "/opt"]
    assert "VALUE" in attacker.act("read", paths=targets)["/opt/python/dependency.py"]
    assert worked(attacker.try_("change", paths=targets)) == worked(attacker.act("create", folders=targets[1:])) == {}
    assert (layer / "dependency.py").read_text() == "VALUE = 11\n"


@pytest.mark.root
def test_setuid_programs_give_nothing(arena: Arena) -> None:
    """Root's own setuid shell, put into the function's code from outside as a bundle never could, runs as the function's user."""
    if arena.mode != "root":
        pytest.skip("planting a setuid file takes root")
    attacker = arena.attacker("files", name="setuid", files={"shell": Path("/bin/sh").read_bytes()})
    (planted,) = (arena.platform.data / "code").rglob("shell")
    os.chown(planted, 0, 0)
    planted.chmod(0o6755)
    said = attacker.try_("setuid")
    assert int(said["mode"], 8) & 0o6000 == 0o6000
    assert said["planted"] == said["own"] == [said["me"], said["me"]] and said["me"] != 0


def test_links_in_tmp_lead_nowhere_and_nobody_follows_them(arena: Arena) -> None:
    """What they point at on the machine is as it was, also after the platform has cleaned up behind the instance."""
    attacker = arena.attacker("files", name="linker")
    canary = arena.platform.write("precious/canary", "precious")
    targets = [
        str(arena.platform.folder),
        str(canary),
        str(canary.parent),
        str(arena.platform.data / "control"),
        "/etc/shadow",
        "/proc/1/root",
    ]
    said = attacker.try_("links", targets=targets)
    seen = {target: found for target, found in said.items() if not isinstance(found, dict)}
    assert set(seen) <= {"/proc/1/root"} and "home" not in str(seen), seen
    before = tree_of(arena.platform.data / "control").keys()
    assert "x-amz-function-error" in attacker.call("go").headers
    attacker.works()
    assert canary.read_text() == "precious"
    assert tree_of(arena.platform.data / "control").keys() >= before


def test_a_race_of_links_in_tmp_reads_nothing_else(arena: Arena) -> None:
    canary = arena.platform.write("precious/canary", "precious")
    said = arena.attacker("files").try_("race", target=str(canary.parent), seconds=0.3)
    assert said["tries"] > 50 and "own" in said["seen"]
    assert set(said["seen"]) <= {"own", "FileNotFoundError", "PermissionError"}


def test_files_left_behind_are_gone_with_their_instance(arena: Arena) -> None:
    """Whoever gets this uid next finds nothing: nothing of the instance's user is left on the machine, and the next one starts empty."""
    attacker = arena.attacker("files", name="leaver")
    said = attacker.try_("leave", word="left")
    assert "/tmp" in said["planted"] and "/var/task" not in said["planted"]
    assert "x-amz-function-error" in attacker.call("go").headers
    again = attacker.act("leave", word="left again")
    assert again["tmp"] == ["left-behind"], "only what this one wrote itself"
    if arena.mode == "root":
        assert again["uid"] != said["uid"], "nobody has that uid again so soon"
        roots = [arena.platform.folder, Path("/tmp"), Path("/dev/shm"), Path("/var/tmp")]
        left = [path for root in roots for path in owned_by(root, {said["uid"], again["uid"]})]
        assert left == []


def owned_by(root: Path, uids: set[int]) -> list[str]:
    """Files below `root` that one of these users owns."""
    found = []
    for parent, folders, names in os.walk(root):
        for name in (*folders, *names):
            try:
                if os.lstat(f"{parent}/{name}").st_uid in uids:
                    found.append(f"{parent}/{name}")
            except FileNotFoundError:
                continue
    return found
