"""core/manifest and core/wire/bundle.py: configs, handlers, requirements, entries of a zip; friendly and hostile."""

import stat
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.manifest import requirements
from dayfly.core.manifest.function import NUMBERS, Surroundings, checked_config, default_handler
from dayfly.core.model.errors import Refusal
from dayfly.core.wire import bundle
from dayfly.core.wire.bundle import Entry

AROUND = Surroundings(runtimes=("python3.11", "python3.12"), default_runtime="python3.11", secrets=("db",), files=("hello.py", "README"))


def refused_config(table: dict[str, Any], overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(Refusal) as refusal:
        checked_config(table, overrides or {}, AROUND)
    assert refusal.value.kind.code == "bad_config"
    return refusal.value.detail


def test_nothing_given_means_defaults_the_platforms_interpreter_and_the_only_file() -> None:
    config = checked_config({}, {}, AROUND)
    assert (config.handler, config.runtime, config.memory_mb) == ("hello.handler", "python3.11", 128)


def test_the_command_line_wins_over_the_file_and_env_is_merged_name_by_name() -> None:
    table = {"name": "x", "memory_mb": 64, "env": {"A": "1", "B": "1"}, "platform": {"port": 1}}
    config = checked_config(table, {"memory_mb": 512, "env": {"B": "2"}}, AROUND)
    assert (config.memory_mb, config.env) == (512, {"A": "1", "B": "2"})


@pytest.mark.parametrize("key", sorted(NUMBERS))
def test_every_number_has_both_bounds_and_its_message_names_key_value_and_range(key: str) -> None:
    kind, low, high, _ = NUMBERS[key]
    extra = {"max_instances": 10_000} if key == "min_instances" else {}
    for value in (low, high):
        checked_config({key: kind(value), **({} if key == "max_instances" else extra)}, {}, AROUND)
    step = 1 if kind is int else 0.01
    for value in (low - step, high + step, "1", True, None, float("nan"), float("inf"), [], 10**400 if kind is int else 1e400):
        message = refused_config({key: value, **extra})
        assert message.startswith(f"{key} = ") and f"{low:g}" in message and f"{high:g}" in message


def test_an_explicit_keep_alive_is_a_promise_and_auto_may_be_asked_for_beside_it() -> None:
    assert checked_config({}, {}, AROUND).keep_alive == "auto"
    assert checked_config({"keep_alive_seconds": 0}, {}, AROUND).keep_alive == "fixed"
    assert checked_config({}, {"keep_alive_seconds": 600}, AROUND).keep_alive == "fixed"
    both = checked_config({"keep_alive": "auto"}, {"keep_alive_seconds": 600}, AROUND)
    assert (both.keep_alive, both.keep_alive_seconds) == ("auto", 600.0)


def test_windows_of_provisioned_instances_are_read_with_their_defaults() -> None:
    window = {"cron": "0 8 * * mon-fri", "duration": "1d10h30m", "min_instances": 5}
    (read,) = checked_config({"provisioned": [window]}, {}, AROUND).provisioned
    assert (read.duration_seconds, read.min_instances, read.timezone) == (86_400 + 10 * 3600 + 1800, 5, "UTC")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cron": 5}, "provisioned[0]: cron must be there"),
        ({"duration": 36_000}, "provisioned[0]: duration must be a text such as '10h'"),
        ({"duration": "10 h"}, "duration must be"),
        ({"duration": ""}, "duration must be"),
        ({"duration": "30s"}, "from a minute"),
        ({"duration": "999d"}, "to a year"),
        ({"min_instances": 0}, "from 1 to 1000"),
        ({"min_instances": True}, "from 1 to 1000"),
        ({"min_instances": 101}, "must not be above max_instances = 100"),
        ({"timezone": ""}, "timezone must be a name"),
        ({"zone": "UTC"}, "unknown key 'zone'; there are cron, duration, min_instances, timezone"),
    ],
)
def test_a_window_of_the_wrong_shape_is_refused_and_named(change: dict[str, Any], said: str) -> None:
    window = {"cron": "0 8 * * *", "duration": "10h", "min_instances": 5}
    assert said in refused_config({"provisioned": [window | change]})


@pytest.mark.parametrize("value", ["x", {}, 5, ["x"], [{"cron": "* * * * *", "duration": "1h", "min_instances": 1}] * 17])
def test_windows_are_a_list_of_at_most_sixteen_tables(value: Any) -> None:
    assert "provisioned" in refused_config({"provisioned": value})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"memory": 128}, "did you mean 'memory_mb'"),
        ({"time-out": 3}, "Unknown key 'time-out'"),
        ({"keepalive_seconds": 3}, "did you mean 'keep_alive_seconds'"),
        ({"min_instances": 5, "max_instances": 2}, "must not be above max_instances = 2"),
        ({"handler": "hello"}, "module.function"),
        ({"handler": "../x.y"}, "module.function"),
        ({"handler": 5}, "module.function"),
        ({"handler": "a:b:c"}, "module:application"),
        ({"handler": "a:b.c"}, "module:application"),
        ({"handler": ":b"}, "module:application"),
        ({"handler": "a." * 200 + "b"}, "module.function"),
        ({"runtime": "python2.7"}, "found: python3.11, python3.12"),
        ({"runtime": ["python3.11"]}, "not found"),
        ({"egress": "interent"}, "one of 'none', 'internet', 'all', or a list"),
        ({"egress": "all"}, "egress_max"),
        ({"egress": []}, "or a list of 1 to 64 hosts"),
        ({"egress": ["a.test"] * 65}, "or a list of 1 to 64 hosts"),
        ({"egress": ["a.test", 5]}, "or a list"),
        ({"egress": ["https://a.test/"]}, "is no port"),
        ({"egress": ["b c.test"]}, "no host name"),
        ({"egress": "a.test"}, "or a list"),
        ({"egress": ["10.0.0.0/8"]}, "out of reach here (private)"),
        ({"egress": ["169.254.169.254"]}, "out of reach here (link-local)"),
        ({"auth": None}, "one of 'token', 'none'"),
        ({"env": {"AWS_REGION": "x"}}, "reserved"),
        ({"env": {"dayfly_x": "x"}}, "reserved"),
        ({"env": {"A B": "x"}}, "no name for a variable"),
        ({"env": {"A": 1}}, "table of names and texts"),
        ({"env": {"A": "x\0y"}}, "NUL"),
        ({"env": {"A": "\ud800"}}, "UTF-8"),
        ({"env": {"A": "x" * 40_000}}, "at most"),
        ({"env": [1]}, "table of names"),
        ({"memory_mb": 1 << 20_000}, "a huge number"),
        ({"secrets": "db"}, "list of names"),
        ({"secrets": ["nope"]}, "dayfly secret set nope"),
        ({"secrets": ["../db"]}, "not a valid secret name"),
        ({"secrets": ["db", "db"]}, "different names"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(table: dict[str, Any], said: str) -> None:
    assert said in refused_config(table)


def test_all_problems_are_found_at_once() -> None:
    with pytest.raises(Refusal) as refusal:
        checked_config({"memory_mb": 1, "egress": "x", "foo": 1, "env": {"_X": ""}}, {}, AROUND)
    assert len(refusal.value.extra["problems"]) == 4  # type: ignore[arg-type]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*NUMBERS, "handler", "runtime", "env", "secrets", "egress", "auth", "x"]), json_values))
def test_no_table_whatever_does_anything_but_pass_or_be_refused(table: dict[str, Any]) -> None:
    try:
        checked_config(table, {}, AROUND)
    except Refusal as refusal:
        assert refusal.kind.code == "bad_config"


@pytest.mark.parametrize("handler", ["app:app", "pkg.web:application", "pkg/web:application"])
def test_a_colon_names_a_web_application(handler: str) -> None:
    assert checked_config({"handler": handler}, {}, AROUND).is_application
    assert not checked_config({"handler": handler.replace(":", ".")}, {}, AROUND).is_application


@pytest.mark.parametrize(
    ("files", "handler"),
    [
        (["hello.py"], "hello.handler"),
        (["hello.py", "README.md", "lib/x.py"], "hello.handler"),
        (["handler.py", "other.py"], "handler.handler"),
        (["main.py", "app.py"], "main.handler"),
        (["app.py", "util.py"], "app.handler"),
        (["lambda_function.py"], "lambda_function.lambda_handler"),
    ],
)
def test_the_handler_that_a_folder_means(files: list[str], handler: str) -> None:
    assert default_handler(files) == handler


@pytest.mark.parametrize("files", [[], ["a.py", "b.py"], ["lib/handler.py"], ["my-func.py"], ["1x.py"], ["a b.py"]])
def test_an_unclear_handler_is_asked_for(files: list[str]) -> None:
    with pytest.raises(Refusal) as refusal:
        default_handler(files)
    assert refusal.value.kind.code == "bad_config"


def test_requirements_are_canonical_whatever_their_order_comments_and_line_ends() -> None:
    one = requirements.canonical("# why\nb==2\na>=1 # later\n\n")
    other = requirements.canonical("\ufeffa>=1\r\nb==2\r\n")
    assert one == other == "a>=1\nb==2\n"
    assert requirements.canonical("# nothing\n\n") == ""


def test_hashes_stay_with_their_requirement() -> None:
    text = "a==1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n--only-binary :all:\n"
    assert requirements.canonical(text) == "--only-binary :all:\na==1 --hash=sha256:00 --hash=sha256:11\n"


@pytest.mark.parametrize(
    "line",
    ["-r other.txt", "-c x", "-e .", "--editable .", "--find-links /etc", "-f x", ".", "./pkg", "/etc/passwd", "~/x", "../x",
     "file:///etc/passwd", "a @ file:///x", "a @ ./x", "x.whl", "pkg.tar.gz", "--no-binary :all:",
     "=1", "a\x00b", "a b", "a==1 b==2", "a[x", "a==1 --global-option x", "--pre x", "--require-hashes --pre", "a==${X}", "a/b", "a;x:y"],
)  # fmt: skip
def test_what_is_not_from_an_index_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(Refusal) as refusal:
        requirements.canonical(f"idna==3\n{line}\n")
    assert refusal.value.kind.code == "bad_config" and "requirements.txt:2" in refusal.value.detail


HOST = "10.0.0.1:8500"
CONNECTIONS = [
    f"-i http://{HOST}/", f"-ihttp://{HOST}/", f"--index-url http://{HOST}/", f"--index-url=http://{HOST}/", f"--extra-index-url http://{HOST}/",
    f"--find-links http://{HOST}/", f"-f http://{HOST}/", f"--trusted-host {HOST}", f"--index http://{HOST}/", f"--default-index=http://{HOST}/",
    "--index-url file:///x", "--no-index", f"--proxy {HOST}", f"a @ http://{HOST}/a.whl", f"a@https://{HOST}/a.whl", f"a[b] @ HTTPS://{HOST}/a",
    f"https://{HOST}/a.whl", f"http://{HOST}/a.tar.gz", f"git+ssh://{HOST}/y", f"git+https://{HOST}/y", f"a @ git+https://{HOST}/y@main",
    f"a @ //{HOST}/a", f"//{HOST}/a", "git+git@x:y", "a @ ${URL}", f"a==1 --index-url http://{HOST}/", f"--pre --index-url http://{HOST}/",
    f"--only-binary :all: -i http://{HOST}/", f"a==1 \\\n -i http://{HOST}/", f"a; python_version > '3' --index-url http://{HOST}/",
    f"a==1 --hash=sha256:00 -i http://{HOST}/", f"a==1 --hash=http://{HOST}/", f"a\x0b-i http://{HOST}/", f"a\u2028--index-url http://{HOST}/",
]  # fmt: skip


@pytest.mark.parametrize("line", CONNECTIONS)
def test_no_line_says_where_the_installer_connects_to(line: str) -> None:
    """Builds have the host's network: an index or URL of a user's choice would reach what only this machine may reach."""
    with pytest.raises(Refusal) as refusal:
        requirements.canonical(f"idna==3\n{line}\n")
    assert refusal.value.kind.code == "bad_config" and "requirements.txt:" in refusal.value.detail
    assert HOST not in refusal.value.detail, "an address may hold a password"
    if not line.startswith("-"):
        with pytest.raises(Refusal):
            requirements.from_pyproject({"project": {"dependencies": [line]}})


@pytest.mark.parametrize("line", [f"--index-url http://{HOST}/", f"--find-links=http://{HOST}/", f"a @ https://{HOST}/a.whl"])
def test_who_names_an_index_is_told_where_it_is_set(line: str) -> None:
    with pytest.raises(Refusal, match=r"the platform's administrator sets \(UV_DEFAULT_INDEX and the like"):
        requirements.canonical(line)


@pytest.mark.parametrize(
    "line",
    ["a", "a.b_c-d", "a==1.0.post1+local", "a>=1,<2", "a >= 1 , < 2", "a (>=1)", "a (>=1, !=1.5.*)", "a[x]", "a[x,y-z] ~=1.4", "a===1!2.0",
     "a; python_version < '3.12'", 'a>=2 ; (sys_platform == "linux" or os_name != "nt") and extra == "x"',
     "a==1 --hash=sha256:00ff --hash sha512:AA",
     "a==1; python_version>='3' --hash=sha256:00"],
)  # fmt: skip
def test_what_people_write_passes_as_it_is(line: str) -> None:
    assert requirements.canonical(line + "\n") == line + "\n"


@given(st.text(alphabet="a1-.= @:/[];$\\\"'#\r\n\u2028fi", max_size=40))
def test_whatever_passes_holds_no_address_and_one_requirement_a_line(text: str) -> None:
    try:
        passed = requirements.canonical(text)
    except Refusal:
        return
    assert not set("@/$#\\\r\u2028") & set(passed)
    assert all(line[0].isalnum() and "--" not in line for line in passed.splitlines())


def test_pyproject_dependencies_are_the_same_text() -> None:
    assert requirements.from_pyproject({"project": {"dependencies": ["b==2", "a>=1"]}}) == "a>=1\nb==2\n"
    assert requirements.from_pyproject({}) == ""
    for bad in ("x", [1], ["-r x"], ["a\n-r x"], ["a\r--pre"]):
        with pytest.raises(Refusal):
            requirements.from_pyproject({"project": {"dependencies": bad}})


def test_a_layer_is_named_by_text_interpreter_installer_and_platform() -> None:
    base = ("a==1\n", "python3.11", "uv 1", "linux-x86_64")
    digests = {requirements.layer_digest(*base)}
    for i in range(4):
        digests.add(requirements.layer_digest(*(part + ("x" if j == i else "") for j, part in enumerate(base))))
    assert len(digests) == 5


def entry(name: str, **changes: Any) -> Entry:
    mode = stat.S_IFDIR | 0o755 if name.endswith("/") else stat.S_IFREG | 0o644
    return Entry(**({"name": name, "size": 0, "mode": mode, "flags": 0x800, "method": 8, "index": 0} | changes))


HOSTILE = [
    [entry("../x")], [entry("a/../../x")], [entry("/etc/passwd")], [entry("C:/x")], [entry("a\\b")], [entry("a\0b")],
    [entry("a\nb")], [entry("")], [entry("a//b")], [entry("./a")], [entry("a/./b")], [entry("..")], [entry("/")],
    [entry("x" * 256)], [entry("x/" * 33 + "y")], [entry(("x" * 200 + "/") * 6 + "y")], [entry("\ud800")],
    [entry("link", mode=stat.S_IFLNK | 0o777)], [entry("dev", mode=stat.S_IFCHR)], [entry("pipe", mode=stat.S_IFIFO)],
    [entry("sock", mode=stat.S_IFSOCK)], [entry("folder", mode=stat.S_IFDIR)], [entry("file/", mode=stat.S_IFREG)],
    [entry("x", flags=0x801)], [entry("x", method=14)], [entry("x/", size=5)],
    [entry("a"), entry("a")], [entry("a"), entry("A")], [entry("é"), entry("e\u0301")], [entry("a"), entry("a/b")],
    [entry("a/b"), entry("A/c")], [entry("ß"), entry("ss")], [entry("é", flags=0), entry("caf\u00e9", flags=0)], [],
    [entry("__pycache__/x.pyc")], [entry("only/")],
]  # fmt: skip


@pytest.mark.parametrize("entries", HOSTILE, ids=lambda entries: ascii([e.name[:20] for e in entries]))
def test_hostile_entries_are_refused(entries: list[Entry]) -> None:
    with pytest.raises(Refusal) as refusal:
        bundle.checked_entries(entries, 1000)
    assert refusal.value.kind.code == "bad_bundle"
    assert refusal.value.detail.isprintable()


def test_plain_entries_pass_sorted_with_their_execute_bit_and_without_leftovers() -> None:
    entries = [
        entry("z.py"),
        entry("lib/"),
        entry("lib/tool", mode=stat.S_IFREG | 0o755, index=3),
        entry("__MACOSX/z.py"),
        entry(".DS_Store"),
        entry("näme.txt".encode().decode("cp437"), flags=0),
        entry("no-mode", mode=0),
    ]
    files = bundle.checked_entries(entries, 1000)
    assert [file.name for file in files] == ["lib/tool", "no-mode", "näme.txt", "z.py"]
    assert [file.executable for file in files] == [True, False, False, False]
    assert files[0].index == 3


def test_claimed_sizes_over_the_bound_are_refused_before_anything_is_written() -> None:
    with pytest.raises(Refusal) as refusal:
        bundle.checked_entries([entry("a", size=600), entry("b", size=600)], 1000)
    assert refusal.value.kind.code == "bundle_too_large"


@given(st.lists(st.text(max_size=30), max_size=6))
def test_whatever_passes_is_safe_to_join_to_a_folder(names: list[str]) -> None:
    try:
        files = bundle.checked_entries([entry(name, mode=0) for name in names], 1000)
    except Refusal:
        return
    for file in files:
        parts = file.name.split("/")
        assert not file.name.startswith("/") and ".." not in parts and "" not in parts and "\0" not in file.name


def test_a_directory_that_lies_about_itself_is_refused() -> None:
    def end(entries: int, size: int, offset: int, disk: int = 0) -> bytes:
        return bundle.END.pack(b"PK\x05\x06", disk, 0, entries, entries, size, offset, 0)

    assert bundle.directory_span(b"x" * 10 + end(1, 4, 2), 32, 5) == (2, 4)
    for tail, code in (
        (b"no zip at all", "bad_bundle"),
        (b"PK\x05\x06", "bad_bundle"),
        (end(6, 0, 0), "bundle_too_large"),
        (end(1, 100_000, 0), "bundle_too_large"),
        (end(1, 50, 0), "bad_bundle"),
        (end(1, 0, 0, disk=1), "bad_bundle"),
        (b"PK\x06\x07" + b"\0" * 16 + end(1, 0, 0), "bad_bundle"),
    ):
        with pytest.raises(Refusal) as refusal:
            bundle.directory_span(tail, len(tail), 5)
        assert refusal.value.kind.code == code


def test_entries_are_counted_in_the_directory_itself() -> None:
    header = b"PK\x01\x02" + b"\0" * 24 + struct.pack("<3H", 2, 0, 0) + b"\0" * 12 + b"ab"
    assert bundle.count_entries(header * 3, 3) == 3
    with pytest.raises(Refusal):
        bundle.count_entries(header * 4, 3)
    with pytest.raises(Refusal):
        bundle.count_entries(header + b"junk", 3)
