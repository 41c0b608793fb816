"""Builds: uv in its sandbox. Real installs are marked `network`; what must be refused needs none."""

import os
import select
import sys
import time
from pathlib import Path

import pytest

from dayfly.core.wire import node as wire
from dayfly.node import build, leftovers
from tests.node.handlers import LOOK
from tests.node.rig import SECONDS_MAX, Client, Rig

RUNTIME = f"python{sys.version_info.major}.{sys.version_info.minor}"


def built(rig: Rig, client: Client, requirements: str, layer: str, seconds: float = 60.0) -> tuple[wire.Built, str]:
    """Run a build to its end: the node's answer, and what the installer said."""
    folder = Path(rig.layout.builds, layer)
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / "requirements.txt").write_text(requirements)
    os.chown(folder, rig.uid, rig.uid)
    os.chown(folder / "requirements.txt", rig.uid, rig.uid)
    reader, writer = os.pipe()
    client.send(wire.Build(layer, RUNTIME, seconds), [writer])
    os.close(writer)
    said, message = b"", None
    with open(reader, "rb", buffering=0) as output:
        deadline = time.monotonic() + seconds + SECONDS_MAX
        while message is None:
            assert time.monotonic() < deadline
            readable, _, _ = select.select([output, client.socket], [], [], 1)
            if output in readable:
                said += output.read(65536)
            if client.socket in readable and isinstance(found := client.receive(), wire.Built):
                message = found
        said += output.read()
    return message, said.decode()


@pytest.mark.network
@pytest.mark.parametrize("rig", ["root", "user"], indirect=True)
def test_install_and_use(rig: Rig, client: Client) -> None:
    """A pinned wheel lands in `out`, compiled, owned by control's user with plain modes, and works as a layer; the cache is gone."""
    layer = "a" * 64
    answer, said = built(rig, client, "six==1.16.0\n", layer)
    assert answer.ok, (answer, said)
    assert "six==1.16.0" in said
    folder = Path(rig.layout.builds, layer)
    assert sorted(entry.name for entry in folder.iterdir()) == ["out", "requirements.txt"]
    owners = {entry.stat().st_uid for entry in (folder / "out").rglob("*")} | {(folder / "out").stat().st_uid}
    assert owners == ({rig.users["control"].uid} if rig.uid == 0 else {rig.uid})
    assert list((folder / "out" / "__pycache__").glob("six.*.pyc"))
    (folder / "out").rename(Path(rig.layout.layers, layer))
    look = client.run(rig.code(LOOK), layer=layer)
    assert look.call("__import__('six').__version__") == "1.16.0"


@pytest.mark.network
def test_unknown_package(rig: Rig, client: Client) -> None:
    """A requirement that does not exist fails with the installer's words, and its environment's credentials are not among them."""
    answer, said = built(rig, client, "six==0.0.0.1\n", "b" * 64)
    assert not answer.ok
    assert "status" in answer.detail
    assert "six" in said


@pytest.mark.parametrize("rig", ["root", "user"], indirect=True)
def test_requirements_cannot_read_the_host(rig: Rig, client: Client) -> None:
    """A requirements file that points at files of the host finds nothing: the sandbox shows none of them."""
    secret = rig.folder / "secret.txt"
    secret.write_text("six==1.16.0\n")
    answer, said = built(rig, client, f"-r {secret}\n", "c" * 64)
    assert not answer.ok
    assert "secret.txt" in said
    if rig.uid == 0:
        left = os.listdir(Path(rig.layout.builds, "c" * 64))
        assert left == ["requirements.txt"], "files of the installer's uid, which control could not remove"


def test_source_packages_are_not_built(rig: Rig, client: Client) -> None:
    """A local folder with a setup.py is not run: wheels only."""
    project = Path(rig.layout.builds, "d" * 64)
    project.mkdir(mode=0o700)
    (project / "setup.py").write_text("open('/build/ran', 'w')\n")
    answer, _said = built(rig, client, "/build\n", "d" * 64)
    assert not answer.ok
    assert not (project / "ran").exists()


def test_timeout_kills_everything(rig: Rig, client: Client) -> None:
    """A build over its time is killed whole and says so. The index is a listening socket of this machine that never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        answer, _said = built(rig, client, f"-i http://127.0.0.1:{port}/simple\nsix\n", "e" * 64, seconds=1.0)
    assert not answer.ok
    assert "timeout" in answer.detail
    if rig.uid == 0:
        assert os.listdir(Path(rig.layout.builds, "e" * 64)) == ["requirements.txt"], "also after it was killed"


@pytest.mark.parametrize("layer", ["f" * 64, "9" * 64])
def test_missing_or_linked_folder(rig: Rig, client: Client, layer: str) -> None:
    """Without a folder of that digest, or with a link in its place, there is no build and nothing is written elsewhere."""
    elsewhere = rig.folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    (elsewhere / "requirements.txt").write_text("")
    if layer.startswith("9"):
        Path(rig.layout.builds, layer).symlink_to(elsewhere)
    reader, writer = os.pipe()
    client.send(wire.Build(layer, RUNTIME, 10.0), [writer])
    os.close(writer)
    answer = client.receive()
    os.close(reader)
    assert isinstance(answer, wire.Built)
    assert not answer.ok
    assert [entry.name for entry in elsewhere.iterdir()] == ["requirements.txt"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users")
def test_at_its_start_the_node_removes_builds_that_the_last_one_did_not_end(tmp_path: Path) -> None:
    """A folder that control has just prepared, a result that was handed over, and whatever is no build's stay."""
    control, installer = 1001, 64021
    dead, prepared, handed, odd, linked = (digit * 64 for digit in "abcde")
    for layer in (dead, prepared, handed, "other"):
        (tmp_path / layer).mkdir()
        (tmp_path / layer / "requirements.txt").write_text("x")
    for layer, name, uid in ((dead, "out", installer), (dead, "cache", installer), (handed, "out", control), ("other", "out", installer)):
        (tmp_path / layer / name / "deep").mkdir(parents=True)
        os.chown(tmp_path / layer / name, uid, uid)
    (tmp_path / odd).write_text("a file")
    (tmp_path / linked).symlink_to(tmp_path / "other")
    leftovers.remove(str(tmp_path), linked)
    assert leftovers.remove_all(str(tmp_path), control) == [dead]
    assert sorted(os.listdir(tmp_path)) == sorted([prepared, handed, odd, linked, "other"])
    assert sorted(os.listdir(tmp_path / "other")) == ["out", "requirements.txt"]
    assert (tmp_path / handed / "out/deep").is_dir()


def test_size_is_counted_without_following_links(tmp_path: Path) -> None:
    """What a build wrote is its blocks on disk: hard links once, link targets not at all, too many files as too much."""
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "file", tmp_path / "twin")
    (tmp_path / "link").symlink_to("/usr")
    size = build._measure(str(tmp_path))
    assert 100_000 <= size < 150_000
