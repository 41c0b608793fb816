"""Where settings come from and what is said when one is wrong."""

import pytest

from dayfly.cli.failure import Failure
from dayfly.cli.settings import default_data, resolve


def write(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("file", "environ", "flags", "port", "source"),
    [
        ("", {}, {}, 8080, None),
        ("port = 1", {}, {}, 1, "dayfly.toml"),
        ("port = 1", {"DAYFLY_PORT": "2"}, {}, 2, "DAYFLY_PORT"),
        ("port = 1", {"DAYFLY_PORT": "2"}, {"port": "3"}, 3, "flag --port"),
        ("", {"DAYFLY_PORT": "2"}, {"port": "3"}, 3, "flag --port"),
        ("port = 1", {}, {"port": "3"}, 3, "flag --port"),
    ],
)
def test_a_stronger_source_wins(tmp_path, file, environ, flags, port, source):
    write(tmp_path / "dayfly.toml", f"[platform]\n{file}\n")
    resolved = resolve({**flags, "data": str(tmp_path)}, environ)
    assert resolved.settings.port == port
    assert (resolved.sources.get("port") or "").endswith(source or "")


def test_a_named_file_replaces_the_one_in_the_data_directory_and_may_name_the_directory(tmp_path):
    write(tmp_path / "data/dayfly.toml", "[platform]\nport = 1\n")
    named = write(tmp_path / "other.toml", f'[platform]\nhost = "::1"\ndata = "{tmp_path}/data"\n')
    settings = resolve({}, {}, config=str(named)).settings
    assert (settings.data, settings.host, settings.port) == (f"{tmp_path}/data", "::1", 8080)


@pytest.mark.parametrize(
    ("flags", "environ", "file", "words"),
    [
        ({"port": "99999"}, {}, "", ("port", "flag --port", "65535")),
        ({"port": "http"}, {}, "", ("port", "flag --port", "int")),
        ({"isolation": "lax"}, {}, "", ("isolation", "flag --isolation")),
        ({"domain": "exa mple"}, {}, "", ("domain", "no host name")),
        ({"domain": "*.example.org"}, {}, "", ("domain", "name server")),
        ({"front_tls": "none"}, {}, "", ("front_tls", "flag --front-tls")),
        ({"trusted_proxies": "10.0.0.1/8"}, {}, "", ("trusted_proxies", "host bits")),
        ({}, {"DAYFLY_INSTANCES_MAX": "0"}, "", ("instances_max", "DAYFLY_INSTANCES_MAX", "1")),
        ({}, {"DAYFLY_IDLE_TIMEOUT_SECONDS": "nan"}, "", ("idle_timeout_seconds", "DAYFLY_IDLE_TIMEOUT_SECONDS")),
        ({}, {"DAYFLY_IDLE_TIMEOUT_SECONDS": "inf"}, "", ("idle_timeout_seconds", "finite")),
        ({}, {}, 'port = "8080"', ("port", "dayfly.toml") if False else ()),
        ({}, {}, "port = true", ("port", "dayfly.toml")),
        ({}, {}, "prot = 1", ("prot", "dayfly.toml", "no setting")),
        ({}, {}, "port = [", ("dayfly.toml", "TOML")),
        ({}, {}, 'data = "/x"', ("data", "dayfly.toml")),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_source(tmp_path, flags, environ, file, words):
    if file:
        write(tmp_path / "dayfly.toml", f"[platform]\n{file}\n")
    if not words:  # a number in quotes is understood, as in every other source
        assert resolve({**flags, "data": str(tmp_path)}, environ).settings.port == 8080
        return
    with pytest.raises(Failure) as caught:
        resolve({**flags, "data": str(tmp_path)}, environ)
    for word in words:
        assert word in caught.value.what


def test_a_platform_that_is_no_table_is_refused(tmp_path):
    write(tmp_path / "dayfly.toml", "platform = 3\n")
    with pytest.raises(Failure, match="no table"):
        resolve({"data": str(tmp_path)}, {})


def test_unknown_variables_are_told_and_the_command_lines_own_are_not(tmp_path):
    resolved = resolve({"data": str(tmp_path)}, {"DAYFLY_PROT": "1", "DAYFLY_URL": "x", "DAYFLY_TOKEN": "x", "PATH": "/"})
    assert resolved.unknown == ["DAYFLY_PROT"]


def test_the_data_directory_depends_on_who_asks(tmp_path):
    assert default_data(0, {}) == "/var/lib/dayfly"
    assert default_data(1000, {"XDG_DATA_HOME": "/x"}) == "/x/dayfly"
    assert resolve({}, {"XDG_DATA_HOME": str(tmp_path)}, euid=1000).settings.data == f"{tmp_path}/dayfly"
