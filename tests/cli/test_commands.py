"""Every command against a fake API: what is sent, what is printed, which exit code."""

import io
import json
import zipfile

import click
import pytest

from dayfly.cli.main import app
from tests.cli.fake import error

# Every command that needs the API, with words that succeed against the fake.
COMMANDS = {
    "ls": ["ls"],
    "describe": ["describe", "hello"],
    "invoke": ["invoke", "hello"],
    "calls ls": ["calls", "ls", "hello", "--state", "dead"],
    "calls show": ["calls", "show", "c1"],
    "calls wait": ["calls", "wait", "c1"],
    "calls cancel": ["calls", "cancel", "c1"],
    "calls redrive": ["calls", "redrive", "c1"],
    "calls purge": ["calls", "purge", "--function", "hello", "--yes"],
    "map": ["map", "--resume", "m1"],
    "maps ls": ["maps", "ls"],
    "maps show": ["maps", "show", "m1"],
    "maps cancel": ["maps", "cancel", "m1"],
    "maps redrive": ["maps", "redrive", "m1"],
    "maps rm": ["maps", "rm", "m1", "--yes"],
    "logs": ["logs", "hello"],
    "rm": ["rm", "hello", "--yes"],
    "rollback": ["rollback", "hello", "--to", "1"],
    "alias set": ["alias", "set", "hello", "canary", "1=0.9", "2=0.1"],
    "alias ls": ["alias", "ls", "hello"],
    "alias rm": ["alias", "rm", "hello", "canary"],
    "secret set": ["secret", "set", "key"],
    "secret ls": ["secret", "ls"],
    "secret rm": ["secret", "rm", "key"],
    "token create": ["token", "create", "ci"],
    "token ls": ["token", "ls"],
    "token rm": ["token", "rm", "ab"],
    "namespace create": ["namespace", "create", "team"],
    "namespace ls": ["namespace", "ls"],
    "namespace rm": ["namespace", "rm", "team", "--yes"],
    "namespace limits": ["namespace", "limits", "team"],
    "schedules ls": ["schedules", "ls"],
    "schedules show": ["schedules", "show", "daily"],
    "schedules put": ["schedules", "put", "daily", "hello", "--rate", "1 hour"],
    "schedules rm": ["schedules", "rm", "daily", "--yes"],
    "schedules pause": ["schedules", "pause", "daily"],
    "schedules resume": ["schedules", "resume", "daily"],
    "schedules next": ["schedules", "next", "daily"],
    "schedules run": ["schedules", "run", "daily"],
    "top": ["top", "--once"],
    "cost": ["cost", "--from", "2026-01-01"],
}
# Tried elsewhere in this folder, or need a path.
LOCAL = {"up", "down", "restart", "status", "doctor", "backup", "restore", "new", "deploy", "dev", "simulate"}


def tree(group: click.Group, above: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found |= tree(command, f"{above}{name} ") if isinstance(command, click.Group) else {above + name: command}
    return found


def test_every_command_is_tried_here_or_named_as_local():
    assert set(tree(app)) == set(COMMANDS) | LOCAL


@pytest.mark.parametrize("name", sorted(set(COMMANDS) | LOCAL))
def test_every_command_has_help_and_the_global_options(run, name):
    done = run(*name.split(), "--help")
    assert done.code == 0
    assert len(done.out.splitlines()) > 5
    for option in ("--json", "--url", "--token", "--namespace"):
        assert option in done.out


@pytest.mark.parametrize("name", sorted(set(COMMANDS) | LOCAL))
def test_every_command_has_a_heading_in_the_documentation(name):
    from pathlib import Path

    page = Path(__file__).parents[2].joinpath("docs/cli.md").read_text()
    assert f"### dayfly {name.split()[0]}\n" in page


@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.parametrize("before", [True, False], ids=["--json first", "--json last"])
def test_every_command_prints_one_json_document(cli, name, before):
    words = COMMANDS[name]
    done = cli(*(["--json", *words] if before else [*words, "--json"]), stdin=b"value\n")
    assert done.code == 0, done.err
    assert isinstance(json.loads(done.out), dict)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_says_something_to_a_person_and_sends_its_token(cli, api, name):
    done = cli(*COMMANDS[name], stdin=b"value\n")
    assert done.code == 0, done.err
    assert done.out.strip()
    assert api.seen[-1].headers["authorization"] == "Bearer dfy_test_token"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_fails_with_3_when_nobody_listens(run, name):
    done = run(*COMMANDS[name], "--url", "http://127.0.0.1:9", "--token", "t", "--json", stdin=b"x")
    assert done.code == 3
    assert json.loads(done.out)["error"]["code"] == "unreachable"
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["error", "fault", "do"]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_error_of_the_api_is_three_lines_and_4(cli, api, name):
    api.answer = lambda seen: error(403, "forbidden", "caller", "Not with this token.")
    done = cli(*COMMANDS[name], stdin=b"x")
    assert done.code == 4
    assert done.err.splitlines()[-3:] == [
        "error: Not with this token. [forbidden]",
        "fault: the request (yours to change)",
        "do:    Do this.",
    ]


def test_the_namespace_goes_with_the_request(cli, api):
    assert "GET /users/{id}" in cli("ls", "-n", "team").out
    assert api.seen[-1].query["namespace"] == "team"


def test_deploy_sends_the_zip_and_only_what_was_said(cli, api, tmp_path):
    (tmp_path / "hello.py").write_text("def handler(event, context): return 1\n")
    words = ("--memory-mb", "256", "--timeout-seconds", "2.5", "-e", "A=b=c", "--secret", "key", "--auth", "none")
    done = cli("deploy", str(tmp_path / "hello.py"), *words)
    assert done.code == 0, done.err
    parts = api.seen[-1].parts()
    assert json.loads(parts["config"]) == {
        "memory_mb": 256,
        "timeout_seconds": 2.5,
        "auth": "none",
        "env": {"A": "b=c"},
        "secrets": ["key"],
    }
    assert zipfile.ZipFile(io.BytesIO(parts["bundle"])).namelist() == ["hello.py"]
    assert f"{api.url}/function/hello" in done.out
    assert "WARNING" in done.err
    assert "landlock" in done.err


def test_deploy_json_is_one_document_with_the_platforms_last_word(cli, tmp_path):
    (tmp_path / "hello.py").write_text("")
    answer = json.loads(cli("deploy", str(tmp_path / "hello.py"), "--json").out)
    assert (answer["name"], answer["version"], answer["missing"]) == ("hello", 3, ["landlock"])


def test_a_failing_init_shows_the_users_traceback_and_is_1(cli, api, tmp_path):
    (tmp_path / "hello.py").write_text("")
    failed = json.loads(
        error(422, "init_failed", "function", "No.", errorType="NameError", errorMessage="x", stackTrace=['  File "hello.py"'])[2]
    )
    api.answer = lambda seen: (200, {}, json.dumps({"event": "failed", **failed}).encode() + b"\n")
    done = cli("deploy", str(tmp_path / "hello.py"))
    assert done.code == 1
    assert '  File "hello.py"\nNameError: x' in done.err


def test_a_stream_that_ends_early_is_no_success(cli, api, tmp_path):
    (tmp_path / "hello.py").write_text("")
    api.answer = lambda seen: (200, {}, b'{"event": "stage", "stage": "prove"}\n')
    assert cli("deploy", str(tmp_path / "hello.py")).code == 5


@pytest.mark.parametrize("words", [["--memory-mb", "big"], ["--egress", "some"], ["-e", "novalue"], ["--bogus"]])
def test_a_wrong_flag_is_2_and_nothing_is_sent(cli, api, tmp_path, words):
    (tmp_path / "hello.py").write_text("")
    assert cli("deploy", str(tmp_path / "hello.py"), *words).code == 2
    assert not api.seen


def test_invoke_takes_the_event_from_anywhere_but_only_once(cli, api, tmp_path):
    (tmp_path / "event.json").write_text("[1]")
    assert cli("invoke", "hello").out == "{}\n"
    assert cli("invoke", "hello", "--data", '"x"').out == '"x"\n'
    assert cli("invoke", "hello", "--file", str(tmp_path / "event.json")).out == "[1]\n"
    assert cli("invoke", "hello", "-", stdin=b"7").out == "7\n"
    assert cli("invoke", "hello", "-", "--data", "1").code == 2
    assert cli("invoke", "hello", "--data", "{no").code == 2


def test_invoke_shows_the_tail_and_the_phases_beside_the_result(cli, api):
    done = cli("invoke", "hello", "--tail", "--qualifier", "canary")
    assert done.out == "{}\n"
    assert "line\n" in done.err
    assert "exec 2.5 ms" in done.err
    assert api.seen[-1].headers["x-amz-log-type"] == "Tail"
    assert api.seen[-1].query["qualifier"] == "canary"


def test_a_function_error_is_1_with_the_error_on_stdout_and_the_trace_on_stderr(cli, api):
    body = json.dumps({"errorType": "ValueError", "errorMessage": "no", "stackTrace": ["  line 1"]}).encode()
    api.answer = lambda seen: (200, {"X-Amz-Function-Error": "Unhandled"}, body)
    done = cli("invoke", "hello")
    assert done.code == 1
    assert json.loads(done.out)["errorType"] == "ValueError"
    assert done.err.endswith("ValueError: no\n")
    assert json.loads(cli("invoke", "hello", "--json").out)["error"]["errorMessage"] == "no"


def test_logs_escape_what_a_function_wrote(cli):
    done = cli("logs", "hello")
    assert "\x1b" not in done.out
    assert r"\x1b[31mred [bold]x[/bold]" in done.out


def test_since_is_an_age(cli, api):
    assert cli("logs", "hello", "--since", "10m").code == 0
    assert float(api.seen[-1].query["since"]) > 1e9
    assert cli("logs", "hello", "--since", "yesterday").code == 2


def test_a_secret_in_argv_is_warned_about_and_one_from_stdin_is_not(cli, api):
    assert "warning" in cli("secret", "set", "key", "value").err
    done = cli("secret", "set", "key", stdin=b"two\nlines\n")
    assert done.err == ""
    assert api.seen[-1].body == b"two\nlines"
    assert cli("secret", "set", "key", stdin=b"x" * 70_000).code == 2


def test_names_are_quoted_into_paths(cli, api):
    cli("describe", "../../secrets?x=1#")
    assert api.seen[-1].path == "/api/v1/functions/..%2F..%2Fsecrets%3Fx%3D1%23"


def test_limits_are_shown_with_what_was_used_and_changed_one_by_one(cli, api):
    out = cli("describe", "hello").out
    assert "calls_per_day          1,000,000 (namespace, 1,234 used today)" in out and "concurrency            5 (namespace)" in out
    assert "1,000,000" in cli("namespace", "limits", "team").out
    cli("namespace", "limits", "team", "--rate-per-second", "2.5", "--concurrency", "none")
    assert (api.seen[-1].method, json.loads(api.seen[-1].body)) == ("PUT", {"calls_per_day": 1_000_000, "rate_per_second": 2.5})
    cli("namespace", "limits", "team", "--clear", "--concurrency", "0")
    assert json.loads(api.seen[-1].body) == {"concurrency": 0}
    assert cli("namespace", "limits", "team", "--burst", "many").code == 2


def test_removing_asks_and_refuses_where_nobody_can_answer(cli, api):
    assert cli("rm", "hello").code == 2
    assert not api.seen


def test_an_answer_that_is_not_ours_is_said(cli, api):
    api.answer = lambda seen: (200, {}, b"<html>")
    assert cli("ls").code == 5


def test_new_makes_a_folder_that_packs_and_touches_nothing_that_is_there(run, tmp_path):
    from dayfly.cli.bundle import pack

    done = run("new", str(tmp_path / "my fn"), "--json")
    assert json.loads(done.out)["name"] == "my-fn"
    assert pack(tmp_path / "my fn").name == "my-fn"
    assert run("new", str(tmp_path / "my fn")).code == 2


def test_rates_come_from_two_looks_and_survive_a_restart_of_the_counters():
    from dayfly.cli.rates import Rates

    def look(calls: int, cold: int) -> dict:
        return {"functions": [{"name": "f", "namespace": "default", "calls": calls, "cold": cold, "cost": calls * 0.001, "phases": {}}]}

    rates = Rates()
    assert rates.rows(look(100, 1), 10.0)[0]["calls_per_second"] is None
    row = rates.rows(look(150, 6), 12.0)[0]
    assert (row["calls_per_second"], row["cold_percent"], row["cost_per_hour"]) == (25.0, 10.0, 90.0)
    assert rates.rows(look(3, 0), 13.0)[0]["calls_per_second"] == 0


@pytest.mark.parametrize("words", [["ls"], ["top", "--once"], ["cost"], ["token", "ls"], ["secret", "ls"], ["alias", "ls", "hello"]])
def test_a_table_in_a_pipe_has_a_line_of_headings(cli, words):
    head, row = cli(*words).out.splitlines()[:2]
    assert len(head.split("\t")) == len(row.split("\t"))
    assert ">" not in head
    assert head.split("\t")[0] in ("function", "name", "day (UTC)", "id", "alias")


def test_headings_of_top_are_whole_at_80_columns(monkeypatch):
    from dayfly.cli import output
    from dayfly.cli.rates import Rates

    monkeypatch.setenv("COLUMNS", "80")
    rates = Rates()
    named = {"name": "make-thumbnails", "namespace": "default", "calls": 12345, "errors": 123, "cold": 12, "memory_mb": 1024}
    phases = {"total": {"p50_ms": 12.3, "p99_ms": 1234.5}}
    for at in (1.0, 2.0):
        rows = rates.rows(
            {"functions": [named | {"cost": at * 1e-4, "phases": phases, "in_flight": 10, "waiting": 100, "instances": 10}]}, at
        )
    console = output.console()
    with console.capture() as drawn:
        console.print(output.table(rates.COLUMNS, [rates.cells(row) for row in rows]))
    head = drawn.get().splitlines()[0] or drawn.get().splitlines()[1]
    assert head.split() == " ".join(name.lstrip(">") for name in rates.COLUMNS).split()
    assert max(map(len, drawn.get().splitlines())) <= 80


def test_warnings_of_a_deploy_are_loud_and_it_succeeds(cli, api, tmp_path):
    (tmp_path / "hello.py").write_text("")
    event = {"event": "deployed", "version": 1, "url": "/function/hello", "warnings": ["Not as you meant."], "seconds": {}}
    api.answer = lambda seen: (200, {"Content-Type": "application/x-ndjson"}, json.dumps(event).encode() + b"\n")
    done = cli("deploy", str(tmp_path / "hello.py"))
    assert (done.code, done.err.splitlines()[-1]) == (0, "WARNING: Not as you meant.")
    assert json.loads(cli("deploy", str(tmp_path / "hello.py"), "--json").out)["warnings"] == ["Not as you meant."]


def test_problems_of_a_config_are_said_once(cli, api, tmp_path):
    (tmp_path / "hello.py").write_text("")
    problems = [f"Problem {n}." for n in range(1, 6)]
    body = {"code": "bad_config", "fault": "caller", "message": " ".join(problems[:3]), "hint": "Correct it.", "problems": problems}
    api.answer = lambda seen: (
        200,
        {"Content-Type": "application/x-ndjson"},
        json.dumps({"event": "failed", "error": body}).encode() + b"\n",
    )
    done = cli("deploy", str(tmp_path / "hello.py"))
    assert done.code == 4
    assert [done.err.count(problem) for problem in problems] == [1] * 5


def test_completion_is_installed_once(run, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("SHELL", "/bin/zsh")
    assert run("--install-completion").code == 0
    assert run("--install-completion").code == 0
    assert (home / ".zshrc").read_text().count("source ") == 1
    monkeypatch.setenv("SHELL", "/bin/oddshell")
    assert run("--show-completion").code == 2
