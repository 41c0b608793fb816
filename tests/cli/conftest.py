"""The command line in this process: a fake API, a configuration folder of its own, and `run(words)` → code, out, err."""

import io
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from dayfly.cli.main import main
from tests.cli.fake import FakeApi


class Done(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def own_configuration(tmp_path, monkeypatch) -> None:
    """No test reads or writes the user's credentials or settings."""
    import os

    for key in [key for key in os.environ if key.startswith("DAYFLY_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("DAYFLY_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def api() -> Iterator[FakeApi]:
    server = FakeApi()
    yield server
    server.close()


@pytest.fixture
def run(capsysbinary, monkeypatch) -> Callable[..., Done]:
    """`run("ls", "--json", stdin=b"")`."""

    def command(*words: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(words)
        out, err = capsysbinary.readouterr()
        return Done(code, out.decode(), err.decode())

    return command


@pytest.fixture
def cli(run, api, monkeypatch) -> Callable[..., Done]:
    """`run` against the fake API, with a token."""
    monkeypatch.setenv("DAYFLY_URL", api.url)
    monkeypatch.setenv("DAYFLY_TOKEN", "dfy_test_token")
    return run
