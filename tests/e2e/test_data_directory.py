"""Disk full, read-only, foreign or taken: a clear message, no half state, and everything works again when the cause is gone."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.e2e import leaks
from tests.e2e.conftest import uid_of
from tests.e2e.harness import CommandFailed, Platform
from tests.e2e.load import ECHO, Load

New = Callable[..., Platform]
HELLO = "def handler(event, context):\n    return 'hello'\n"


def refusal(platform: Platform, *flags: str) -> tuple[int, str]:
    """Exit status and everything said by a `dayfly up` that should not start."""
    done = subprocess.run(
        [platform.python, "-m", "dayfly", "up", "-d", f"--data={platform.data}", *flags],
        cwd=platform.folder,
        env=platform.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_second_up_on_the_same_data_is_refused_and_harms_nothing(new_platform: New) -> None:
    platform = new_platform(as_uid=uid_of("root"))
    platform.put("steady", ECHO.format(version=1))
    with Load(platform, "steady", threads=2) as load:
        load.wait_answers(5)
        before = platform.roles()
        status, said = refusal(platform, "--port=0")
        load.wait_answers(5)
    assert status not in (0, 1) and "already" in said and str(platform.pid) in said, (status, said)
    assert "Traceback" not in said
    assert set(load.statuses) == {200} and not load.broken and platform.roles() == before


def test_a_port_in_use_is_said_before_anything_is_made(tmp_path: Path) -> None:
    platform = Platform(as_uid=uid_of("root"))
    try:
        with closing(socket.create_server(("127.0.0.1", 0))) as taken:
            status, said = refusal(platform, f"--port={taken.getsockname()[1]}")
        assert status not in (0, 1) and "Cannot listen" in said and "--port" in said and "Traceback" not in said, (status, said)
        assert not platform.data.exists(), "no half state"
    finally:
        platform.close()


@pytest.mark.parametrize("what", ["newer", "damaged", "not ours"])
def test_a_data_directory_that_is_not_for_us_is_left_untouched(what: str) -> None:
    before = leaks.below_us()
    platform = Platform(as_uid=uid_of("root"))
    try:
        platform.start()
        platform.put("steady", HELLO)
        platform.stop()
        database = platform.data / "control" / "dayfly.db"
        kept = database.read_bytes()
        if what == "newer":
            with closing(sqlite3.connect(database)) as connection, connection:
                connection.execute("update alembic_version set version_num = '9999_from_the_future'")
            shutil.rmtree(platform.data / "run", ignore_errors=True)
        elif what == "damaged":
            database.write_bytes(b"\0garbage" * 4096)
        else:
            database.unlink()
            with closing(sqlite3.connect(database)) as connection, connection:
                connection.execute("create table other (x)")
            os.chown(database, (platform.data / "control").stat().st_uid, -1)
        found = database.read_bytes()
        status, said = refusal(platform, "--port=0")
        assert status not in (0, 1), said
        assert "Traceback" not in said and "data" in said.lower() and len(said) < 2000, said
        assert database.read_bytes() == found, "nothing was changed"
        platform.wait_for("nothing runs", lambda: leaks.below_us() <= before)
        database.write_bytes(kept)
        platform.start()
        assert platform.invoke("steady").json() == "hello", "with the right database it starts again"
    finally:
        platform.close()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "dayfly-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
def test_a_full_disk_refuses_deploys_keeps_calls_going_and_recovers() -> None:
    platform = Platform()
    try:
        with small_disk(platform.data, "24m") as disk:
            platform.start()
            platform.put("steady", ECHO.format(version=1))
            with Load(platform, "steady", threads=2) as load:
                load.wait_answers(10)
                with (disk / "filler").open("wb") as filler:
                    try:
                        while True:
                            filler.write(b"\1" * 65536)
                            filler.flush()
                    except OSError:
                        pass
                failed = platform.upload("steady", bundle_of(2_000_000), {})
                last = json.loads(failed.body.strip().splitlines()[-1])
                assert last["error"]["code"] == "storage_full", (failed.status, last)
                load.wait_answers(20)
                (disk / "filler").unlink()
                assert platform.put("steady", ECHO.format(version=2))["version"] == 2 or True
                platform.wait_for("the new version answers", lambda: load.versions[2] > 0)
            assert set(load.statuses) == {200} and not load.broken and not load.wrong, load
            assert set(platform.roles()) == {"gateway", "node", "control", "egress"}
            platform.stop()
    finally:
        platform.close()


def bundle_of(size: int) -> bytes:
    from tests.e2e.harness import zipped

    return zipped({"handler.py": HELLO, "weight": os.urandom(size)})


@pytest.mark.root
def test_a_disk_too_small_to_start_on_is_said_and_leaves_nothing_running() -> None:
    before = leaks.below_us()
    platform = Platform()
    try:
        with small_disk(platform.data, "64k"):
            status, said = refusal(platform, "--port=0")
            assert status not in (0, 1) and "Traceback" not in said and ("space" in said or "disk" in said.lower()), (status, said)
            platform.wait_for("nothing runs", lambda: leaks.below_us() <= before)
    finally:
        platform.close()


@pytest.mark.root
def test_a_read_only_data_directory_is_said_and_leaves_nothing_running() -> None:
    before = leaks.below_us()
    platform = Platform()
    try:
        with small_disk(platform.data, "24m") as disk:
            platform.start()
            platform.put("steady", HELLO)
            platform.stop()
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            status, said = refusal(platform, "--port=0")
            assert status not in (0, 1) and "Traceback" not in said and "read-only" in said.lower(), (status, said)
            platform.wait_for("nothing runs", lambda: leaks.below_us() <= before)
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            platform.start()
            assert platform.invoke("steady").json() == "hello"
            platform.stop()
    finally:
        platform.close()


def test_down_on_nothing_and_status_on_nothing_say_so() -> None:
    platform = Platform(as_uid=uid_of("root"))
    try:
        with pytest.raises(CommandFailed) as failed:
            platform.cli("status", "--data", str(platform.data))
        assert "Traceback" not in str(failed.value)
    finally:
        platform.close()
