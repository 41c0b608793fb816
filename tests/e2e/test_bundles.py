"""Hostile bundles through the real API: refused with a reason, nothing unpacked, nothing kept."""

import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Answer, Platform, zipped

pytestmark = pytest.mark.one_user

GOOD = "def handler(event, context):\n    return 'good'\n"


def archive(*entries: tuple[str, bytes], mode: int = 0) -> bytes:
    """A zip with exactly these names; `mode` (st_mode) for all of them."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("handler.py", GOOD)
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.filename = name  # ZipInfo cleans what we want dirty
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            out.writestr(info, content)
    return packed.getvalue()


def bomb() -> bytes:
    """300 MB of nothing in 300 KB."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("handler.py", GOOD)
        with out.open("big", "w") as file:
            for _ in range(300):
                file.write(bytes(1 << 20))
    return packed.getvalue()


def lying_size() -> bytes:
    """An entry that says it unpacks to 10 bytes, and to a megabyte does."""
    data = bytearray(archive(("big", bytes(1 << 20))))
    size = struct.pack("<I", 1 << 20)
    while (at := data.find(size)) >= 0:
        data[at : at + 4] = struct.pack("<I", 10)
    return bytes(data)


def many() -> bytes:
    return archive(*((f"f{number}", b"") for number in range(20_001)))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "zip slip": lambda: archive(("../../outside.txt", b"x")),
    "hidden zip slip": lambda: archive(("a/b/../../../outside.txt", b"x")),
    "absolute": lambda: archive(("/tmp/dayfly-outside.txt", b"x")),
    "backslash": lambda: archive(("..\\outside.txt", b"x")),
    "drive": lambda: archive(("C:/outside.txt", b"x")),
    "link": lambda: archive(("link", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777),
    "device": lambda: archive(("device", b""), mode=stat.S_IFCHR | 0o666),
    "fifo": lambda: archive(("fifo", b""), mode=stat.S_IFIFO | 0o666),
    "twice": lambda: archive(("a.txt", b"1"), ("a.txt", b"2")),
    "twice but for case": lambda: archive(("a.txt", b"1"), ("A.txt", b"2")),
    "file and folder": lambda: archive(("a", b"1"), ("a/b", b"2")),
    "control characters": lambda: archive(("a\x1b[2Jb\n.txt", b"x")),
    "long name": lambda: archive(("n" * 5000, b"x")),
    "deep": lambda: archive(("d/" * 600 + "f", b"x")),
    "dot": lambda: archive((".", b"x")),
    "empty name": lambda: archive(("", b"x")),
    "lying size": lying_size,
    "no zip": lambda: b"this is no zip",
    "empty": lambda: b"",
    "cut": lambda: archive(("a.txt", b"x" * 10_000))[:-40],
}
LARGE: dict[str, Callable[[], bytes]] = {"bomb": bomb, "many entries": many}


def code_of(answer: Answer) -> tuple[int, str]:
    """Status and code, wherever the deploy failed: before it began (an HTTP error) or in its stream."""
    document = json.loads(answer.body.strip().splitlines()[-1])
    assert document.get("event", "failed") == "failed", document
    return answer.status, document["error"]["code"]


def folders(platform: Platform) -> set[str]:
    return {f"{kind}/{path.name}" for kind in ("code", "builds") for path in (platform.data / kind).iterdir()}


@pytest.mark.parametrize("kind", [*HOSTILE, *LARGE])
def test_a_hostile_bundle_is_refused_and_leaves_nothing(platform: Platform, kind: str) -> None:
    platform.put("clean", GOOD)
    before = folders(platform)
    expected = "bundle_too_large" if kind in LARGE else "bad_bundle"
    answer = platform.upload("clean", (HOSTILE | LARGE)[kind](), {})
    assert code_of(answer)[1] == expected, answer.body
    assert folders(platform) == before
    assert not Path("/tmp/dayfly-outside.txt").exists() and not list(platform.folder.rglob("outside.txt"))
    assert platform.invoke("clean").json() == "good"


def test_a_bundle_over_the_upload_limit_is_refused_before_it_is_read(platform: Platform) -> None:
    """300 MB by Content-Length: refused at once, without the bytes."""
    import http.client

    connection = http.client.HTTPConnection(*platform.address, timeout=30)
    try:
        connection.putrequest("PUT", "/api/v1/functions/huge")
        connection.putheader("Authorization", f"Bearer {platform.token}")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", str(300 * 1024 * 1024))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413, (answer.status, answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["..", "a%2Fb", "a b", "ä", "x" * 64, "-a", "a..b", "%00", "a%0d%0ab"])
def test_hostile_function_names_are_refused(platform: Platform, name: str) -> None:
    import urllib.parse

    answer = platform.upload(urllib.parse.quote(name, safe="%"), zipped(GOOD), {})
    assert answer.status in (400, 404, 405), (answer.status, answer.body)


@pytest.mark.parametrize(
    "config",
    [
        {"memory_mb": 1}, {"memory_mb": "many"}, {"timeout_seconds": -1}, {"timeout_seconds": 1e9}, {"unknown": 1}, {"env": {"A=B": "c"}},
        {"env": {"A": "b\0c"}}, {"env": {"": "x"}}, {"concurrency": 100_000}, {"secrets": ["../key"]}, {"runtime": "python2.7"},
        {"runtime": "../../bin/sh"}, {"handler": "../x.y"}, {"handler": ""}, {"egress": "lan"}, {"auth": "maybe"}, {"max_instances": 0},
        {"min_instances": 5, "max_instances": 2},
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_refused_and_named(platform: Platform, config: dict[str, object]) -> None:
    answer = platform.upload("clean2", zipped(GOOD), config)
    assert code_of(answer)[1] == "bad_config", answer.body
    assert next(iter(config)) in answer.body.decode(), answer.body
    assert platform.request("GET", "/api/v1/functions/clean2").status == 404
