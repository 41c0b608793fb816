"""Nothing of the machine it was written on is committed: no private paths, no package index, no secrets, no large files."""

import os
import re
from urllib.parse import urlsplit

from tests.tidy.sources import REPOSITORY, committed_files, text_of

FILE_BYTES_MAX = 512 * 1024
# Written in pieces, so that this file does not find itself.
PRIVATE_PATHS = ["/wo" + "rk/", "/ro" + r"ot/\.", "/tmp/" + "venv", "/opt/" + "pypi", "/home/" + "[a-z]+/", "/Us" + "ers/[a-z]"]
INDEX_HOSTS = ["pypi" + r"\.org", "python" + r"hosted\.org", "index-url" + r"[ =]+[a-z]+:"]
INDEX_SETTINGS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX")


def configured_hosts() -> list[str]:
    """Hosts of package indexes that this machine is told to use; they must not leak into a lock file."""
    addresses = " ".join(os.environ.get(name, "") for name in INDEX_SETTINGS).split()
    hosts = [urlsplit(address).hostname or "" for address in addresses]
    return [re.escape(host) for host in hosts if host]


def found(patterns: list[str], *, but: str = "-") -> list[str]:
    anything = re.compile("|".join(patterns))
    lines = (
        (name, number, line)
        for name in committed_files()
        if not name.startswith(but)
        for number, line in enumerate(text_of(name).splitlines(), 1)
    )
    return [f"{name}:{number}: {line.strip()[:120]}" for name, number, line in lines if anything.search(line)]


def test_no_path_of_a_developers_machine_is_committed() -> None:
    assert not found(PRIVATE_PATHS), "\n".join(found(PRIVATE_PATHS))


def test_no_package_index_is_committed_so_that_any_mirror_serves() -> None:
    """Tests may name one: what users write into requirements.txt is what they are about."""
    lines = found(INDEX_HOSTS + configured_hosts(), but="tests/")
    assert not lines, "\n".join(lines)


def test_no_private_key_or_token_is_committed() -> None:
    patterns = ["-----BEGIN" + " [A-Z ]*PRIVATE KEY", r"\bAKIA" + r"[0-9A-Z]{16}\b", r"\bghp" + r"_[A-Za-z0-9]{36}"]
    assert not found(patterns), "\n".join(found(patterns))


def test_no_large_file_is_committed() -> None:
    large = [name for name in committed_files() if (REPOSITORY / name).stat().st_size > FILE_BYTES_MAX]
    assert not large, f"larger than {FILE_BYTES_MAX} bytes: {large}"
