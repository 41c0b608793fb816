"""The whole platform with its store in PostgreSQL: everything that a user does, a server that goes away under load, and a password that
nobody but control sees."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import uid_of
from tests.e2e.harness import CommandFailed, Platform
from tests.e2e.load import ECHO, Load
from tests.postgres import Server

SAYS = "def handler(event, context):\n    print('said', event)\n    return {version}\n"


class OnPostgres(Platform):
    """A platform that is told its database as an administrator would: by a variable, or by a file of mode 0600."""

    told = ""

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | ({"DAYFLY_DATABASE": self.told} if self.told else {})

    def by_file(self, address: str) -> str:
        path = self.write("address", address + "\n")
        path.chmod(0o600)
        if self.as_uid:
            os.chown(path, self.as_uid, self.as_uid)
        return f"file:{path}"


@pytest.fixture(params=["root", "ordinary"])
def on_postgres(request: pytest.FixtureRequest, postgres: str) -> Iterator[OnPostgres]:
    """As root told by a file, as an ordinary user by a variable."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("needs root: run scripts/test as root to include it")
    platform = OnPostgres(as_uid=uid_of(request.param))
    platform.told = postgres if request.param == "ordinary" else platform.by_file(postgres)
    with platform:
        yield platform


def tables(server: Server, url: str) -> dict[str, int]:
    database = url.partition("@/")[2].partition("?")[0]
    names = server.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database).split()
    return {name: int(server.sql(f'SELECT count(*) FROM "{name}"', database)) for name in names}


def failed_deploy(platform: Platform) -> dict[str, Any]:
    """The error of a deploy that must not work just now, whichever way it is said."""
    from tests.e2e.harness import zipped

    answer = platform.upload("steady", zipped(SAYS.format(version=9)), {})
    said: dict[str, Any] = json.loads(answer.body.strip().splitlines()[-1])
    error: dict[str, Any] = said["error"]
    return error


def test_everything_works_on_postgresql_and_goes_on_after_a_restart(
    on_postgres: OnPostgres, postgres: str, postgres_server: Server
) -> None:
    platform = on_postgres
    platform.put("echo", SAYS.format(version=1))
    assert platform.put("echo", SAYS.format(version=2))["version"] == 2
    assert platform.invoke("echo", "hello").json() == 2
    platform.cli("rollback", "echo")
    assert platform.invoke("echo", "again").json() == 1
    platform.cli("namespace", "create", "team")
    platform.cli("secret", "set", "KEY", stdin="the value")
    token = platform.cli_json("token", "create", "reader", "--verb", "read")
    platform.wait_for("logs arrive", lambda: "said again" in platform.cli("logs", "echo"))
    platform.wait_for("usage arrives", lambda: tables(postgres_server, postgres).get("usage_day") == 1)
    held = tables(postgres_server, postgres)
    assert held["functions"] == 1 and held["versions"] == 2 and held["secrets"] == 1 and held["tokens"] == 2 and held["logs"] >= 2
    assert not (platform.data / "control" / "dayfly.db").exists() and not (platform.data / "control" / "logs.db").exists()
    platform.stop()
    platform.start()
    assert platform.invoke("echo", "third").json() == 1
    assert platform.request("GET", "/api/v1/functions", token=token["token"]).status == 200
    assert "said again" in platform.cli("logs", "echo")
    assert "team" in platform.cli("namespace", "ls")


def test_a_server_that_goes_away_fails_deploys_clearly_and_no_call(on_postgres: OnPostgres, postgres: str, postgres_server: Server) -> None:
    platform = on_postgres
    platform.put("steady", ECHO.format(version=1))
    platform.put("talks", SAYS.format(version=1))
    control = platform.roles()["control"]
    with Load(platform, "steady", threads=2) as load:
        load.wait_answers(20)
        postgres_server.stop(crash=True)
        assert platform.invoke("talks", "while it was away").json() == 1
        error = failed_deploy(platform)
        assert error["code"] == "data_unusable" and "cannot be reached" in error["message"], error
        assert platform.request("GET", "/api/v1/functions").status == 503
        load.wait_answers(20)
        postgres_server.start()
        assert platform.put("steady", ECHO.format(version=2))["version"] >= 2
        platform.wait_for("the new version answers", lambda: load.versions[2] > 0)
        platform.wait_for("what was said meanwhile is there", lambda: "while it was away" in platform.cli("logs", "talks"))
        for _ in range(3):
            postgres_server.restart()
            load.wait_answers(5)
        platform.wait_until("control serves again", "/api/v1/functions", lambda found: "error" not in found)
    assert set(load.statuses) == {200} and not load.broken and not load.wrong, load
    calls = sum(load.statuses.values())
    database = postgres.partition("@/")[2].partition("?")[0]

    def counted() -> int:
        return int(postgres_server.sql("SELECT coalesce(sum(calls), 0) FROM usage_day WHERE function = 'steady'", database))

    if platform.roles()["control"] == control:  # no commit was left in doubt, so that every call is counted, and once
        platform.wait_for(f"all {calls} calls are counted", lambda: counted() == calls)


def test_asynchronous_calls_are_kept_on_postgresql(on_postgres: OnPostgres) -> None:
    platform = on_postgres
    platform.put("echo", ECHO.format(version=1))
    ids, before = [], platform.roles()["control"]
    for number in range(20):
        answer = platform.request("POST", "/api/v1/functions/echo/invoke?mode=async", b'{"sent": 1}', {"X-Dayfly-Delay": "0.5"})
        assert answer.status == 202, answer.body
        ids.append(answer.headers["x-call-id"])
        if number == 10:
            os.kill(before, 9)
            platform.wait_for("control is back", lambda: platform.roles()["control"] not in (0, before) and _served(platform))
    for call_id in ids:
        platform.wait_until("it is done", f"/api/v1/calls/{call_id}?wait=15s", lambda call: call.get("state") == "done", seconds=40)
    assert not Path(platform.data, "control", "durable.db").exists()


def test_a_map_goes_on_on_postgresql_when_control_is_killed(on_postgres: OnPostgres) -> None:
    platform = on_postgres
    platform.put("slowly", "import time\ndef handler(event, context):\n    time.sleep(0.01)\n    return event\n")
    platform.put("sum", "def handler(event, context):\n    return sum(event['results'])\n")
    platform.request("POST", "/api/v1/maps", b'{"function": "slowly", "id": "m", "reduce": "sum"}')
    fed = platform.request("POST", "/api/v1/maps/m/items?last=true", b"\n".join(b"%d" % number for number in range(1000)))
    assert (fed.status, fed.json()["total"]) == (200, 1000), fed.body
    before = platform.roles()["control"]
    platform.wait_until("some are done", "/api/v1/maps/m", lambda it: it.get("done", 0) > 50)
    os.kill(before, 9)
    platform.wait_for("control is back", lambda: platform.roles()["control"] not in (0, before) and _served(platform))
    ended = platform.wait_until("it has ended", "/api/v1/maps/m?wait=15s", lambda it: it.get("ended_at"), seconds=60)
    assert (ended["state"], ended["done"]) == ("done", 1000)
    assert platform.request("GET", "/api/v1/maps/m/result").json() == sum(range(1000))
    lines = [json.loads(line) for line in platform.request("GET", "/api/v1/maps/m/results").body.splitlines()]
    assert [it["result"] for it in lines] == list(range(1000))


def test_control_killed_while_the_server_is_away_comes_back_with_it(on_postgres: OnPostgres, postgres_server: Server) -> None:
    platform = on_postgres
    platform.put("steady", ECHO.format(version=1))
    with Load(platform, "steady", threads=2) as load:
        load.wait_answers(5)
        postgres_server.stop()
        before = platform.roles()["control"]
        os.kill(before, 9)
        load.wait_answers(20)
        postgres_server.start()
        platform.wait_for("control is back", lambda: platform.roles()["control"] not in (0, before) and _served(platform))
        assert platform.put("steady", ECHO.format(version=2))["version"] == 2
    assert set(load.statuses) == {200} and not load.broken and not load.wrong, load


AT_COMMIT = """
CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER cut AFTER INSERT ON namespaces DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION cut();
"""


def test_a_commit_that_nobody_confirmed_makes_control_read_the_store_anew(
    on_postgres: OnPostgres, postgres: str, postgres_server: Server
) -> None:
    platform = on_postgres
    platform.put("steady", ECHO.format(version=1))
    database = postgres.partition("@/")[2].partition("?")[0]
    postgres_server.sql(AT_COMMIT, database)
    before = platform.roles()["control"]
    with Load(platform, "steady", threads=2) as load:
        load.wait_answers(5)
        with pytest.raises(CommandFailed, match="not known"):
            platform.cli("namespace", "create", "perhaps")
        postgres_server.sql("DROP TRIGGER cut ON namespaces", database)
        platform.wait_for("control is another one", lambda: platform.roles()["control"] not in (0, before) and _served(platform))
        platform.cli("namespace", "create", "surely")
        load.wait_answers(5)
    assert set(load.statuses) == {200} and not load.broken and not load.wrong, load
    assert "perhaps" not in platform.cli("namespace", "ls") and "control_renews" in platform.log_text()


def _served(platform: Platform) -> bool:
    return platform.request("GET", "/api/v1/functions").status == 200


def test_nobody_but_control_has_the_password(on_postgres: OnPostgres, postgres_server: Server) -> None:
    """Neither argv nor environment nor a descriptor nor the memory of any other process (functions are forks of one of them), nor a log."""
    platform = on_postgres
    platform.put("steady", ECHO.format(version=1))
    platform.invoke("steady", {"sent": 1})
    postgres_server.stop()
    failed_deploy(platform)
    postgres_server.start()
    platform.wait_for("control is there, or another one (control_renews)", lambda: platform.roles()["control"] and _served(platform))
    word = postgres_server.password.encode()
    control = platform.roles()["control"]
    seen = [pid for pid in platform.processes() if pid != control]
    assert len(seen) >= 4
    for pid in seen:
        for name in ("cmdline", "environ"):
            assert word not in Path(f"/proc/{pid}/{name}").read_bytes(), (pid, name)
    if os.geteuid() == 0:
        for pid in seen:
            assert word not in memory_of(pid), Path(f"/proc/{pid}/cmdline").read_bytes()
        assert word in memory_of(control), "so this would have found it"
    assert word not in platform.log.read_bytes()
    assert word not in (platform.data / "run" / "state.json").read_bytes()
    file = platform.data / "control" / "database.url"
    assert file.stat().st_mode & 0o777 == 0o600 and file.stat().st_uid == (platform.data / "control").stat().st_uid


def memory_of(pid: int) -> bytes:
    """What a process can write to: heap, stack, data."""
    found = b""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            span = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if span and "[vvar" not in line:
                begin, end = (int(part, 16) for part in span.groups())
                try:
                    memory.seek(begin)
                    found += memory.read(min(end - begin, 256 * 1024 * 1024))
                except (OSError, OverflowError):
                    continue
    return found


def test_what_cannot_be_a_database_is_said_without_its_password(tmp_path: Path, postgres_server: Server) -> None:
    platform = OnPostgres(as_uid=uid_of("root"))
    try:
        refused = (
            ("mysql://u:hush@h/d", "expected postgresql://"),
            ("postgresql://u:hush@h/d?nonsense=1", "libpq"),
            (postgres_server.url("missing").replace(postgres_server.password, "hush"), "password authentication failed"),
            (postgres_server.url("missing"), "does not exist"),
            ("postgresql://u:hush@127.0.0.1:1/d", "cannot be reached"),
            (f"file:{tmp_path}/nothing", "cannot be read"),
        )
        for address, words in refused:
            platform.told = address
            with pytest.raises(CommandFailed) as failed:
                platform.cli("up", "-d", "--port=0", f"--data={platform.data}")
            said = str(failed.value)
            assert words in said and "hush" not in said and postgres_server.password not in said and "Traceback" not in said, said
        platform.told = ""
        with pytest.raises(CommandFailed, match="list of processes"):
            platform.cli("up", "-d", "--port=0", f"--data={platform.data}", "--database=postgresql://u:hush@h/d")
    finally:
        platform.close()


def test_doctor_and_backup_know_where_the_store_is(on_postgres: OnPostgres, postgres_server: Server) -> None:
    """Also without the variable: the data directory says so. The backup has what lies here, and says what does not."""
    platform = on_postgres
    platform.put("steady", ECHO.format(version=1))
    told, platform.told = platform.told, ""
    document = json.loads(platform.cli("doctor", "--store", "--data", str(platform.data), "--json"))
    facts = document["store"]["postgresql"]
    assert document["ok"] and facts["version"].startswith("1") and facts["fsync"] and facts["schema"] and facts["round_trip_ms"] > 0
    assert "logs" in facts["tables_bytes"] and postgres_server.password not in json.dumps(document)
    archive = platform.folder / "files" / "backup"
    archive.parent.mkdir(exist_ok=True)
    if platform.as_uid:
        os.chown(archive.parent, platform.as_uid, platform.as_uid)
    said = json.loads(platform.cli("backup", str(archive), "--data", str(platform.data), "--json"))
    assert said["database"] == "postgresql" and postgres_server.password.encode() not in archive.read_bytes()
    platform.stop()
    shutil.rmtree(platform.data)
    platform.cli("restore", str(archive), "--data", str(platform.data))
    platform.told = told
    platform.start()
    assert platform.invoke("steady", {"sent": 1}).json()["version"] == 1
    postgres_server.stop()
    document = json.loads(platform.cli("doctor", "--store", "--data", str(platform.data), "--json", status=5))
    assert "cannot be reached" in json.dumps(document["checks"])
    postgres_server.start()


def test_a_directory_whose_functions_are_in_postgresql_does_not_start_without_it(on_postgres: OnPostgres) -> None:
    platform = on_postgres
    platform.put("steady", ECHO.format(version=1))
    platform.stop()
    address, platform.told = platform.told, ""
    with pytest.raises(CommandFailed, match="are in PostgreSQL"):
        platform.cli("up", "-d", "--port=0", f"--data={platform.data}")
    platform.told = address
    platform.start()
    assert platform.invoke("steady", {"sent": 1}).json()["version"] == 1
