"""Every example in examples/ deploys and answers as its README says, in real sandboxes."""

import json
import time

import pytest

from tests.e2e.harness import Platform
from tests.tidy.sources import REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def test_hello_greets_whom_it_is_told(platform: Platform) -> None:
    platform.deploy(platform.copy(EXAMPLES / "hello") / "hello.py", "--auth", "none")
    assert platform.request("GET", "/function/hello?name=Ada", token="").body == b"Hello, Ada!\n"
    assert platform.request("GET", "/function/hello", token="").body == b"Hello, World!\n"


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_thumbnails_shrinks_a_photo_sized_jpeg(platform: Platform) -> None:
    platform.deploy(platform.copy(EXAMPLES / "thumbnails"))
    photo = platform.request("GET", "/function/thumbnails", token="")
    assert photo.headers["content-type"] == "image/jpeg"
    assert jpeg_size(photo.body) == (4000, 3000)
    thumbnail = platform.request("POST", "/function/thumbnails?width=320", photo.body, {"Content-Type": "image/jpeg"}, token="")
    assert thumbnail.status == 200
    assert jpeg_size(thumbnail.body) == (320, 240)
    assert len(thumbnail.body) < len(photo.body) / 10
    refused = platform.request("POST", "/function/thumbnails", b"no picture", token="")
    assert (refused.status, b"Send a picture" in refused.body) == (400, True)


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height from a JPEG's frame header (ITU T.81, B.2.2): no imaging library is needed in the tests."""
    assert data[:2] == b"\xff\xd8", f"no JPEG: {data[:20]!r}"
    position = 2
    while data[position + 1] not in (0xC0, 0xC1, 0xC2):
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return int.from_bytes(data[position + 7 : position + 9], "big"), int.from_bytes(data[position + 5 : position + 7], "big")


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_report_sums_a_csv_as_json_and_as_a_page(platform: Platform) -> None:
    first = platform.deploy(platform.copy(EXAMPLES / "report"))
    csv = (EXAMPLES / "report" / "sales.csv").read_bytes()
    answer = platform.request("POST", "/function/report", csv, {"Content-Type": "text/csv"}, token="").json()
    assert answer["rows"] == 6
    assert answer["revenue"] == pytest.approx(12 * 19.9 + 3 * 89 + 349 + 20 * 18.5 + 8 * 85 + 2 * 329)
    assert answer["best_product"] == "table"
    page = platform.request("POST", "/function/report", csv, {"Accept": "text/html"}, token="")
    assert page.headers["content-type"].startswith("text/html") and b"<table" in page.body
    assert platform.request("POST", "/function/report", b"a,b\n1,2\n", token="").status == 400
    again = platform.deploy(platform.copy(EXAMPLES / "report"), "--memory-mb", "600")
    assert again["seconds"]["build"] < first["seconds"]["build"] / 10, "the same pins are installed once: the layer is shared by versions"


def test_stream_sends_words_while_later_ones_are_not_yet_written(platform: Platform) -> None:
    import http.client

    platform.deploy(platform.copy(EXAMPLES / "stream"))
    connection = http.client.HTTPConnection(*platform.address, timeout=30)
    try:
        connection.request("GET", "/function/stream?pause=0.05")
        answer = connection.getresponse()
        first, first_at = answer.read1(), time.monotonic()
        rest, rest_at = answer.read(), time.monotonic()
    finally:
        connection.close()
    assert first.startswith(b"A ") and (first + rest).endswith(b"asleep again. \n")
    assert rest_at - first_at > 0.5, "the first words came while the function was still writing (30 words, 50 ms apart)"


def test_secret_egress_reads_its_secret_and_says_when_nobody_is_reached(platform: Platform) -> None:
    platform.cli("secret", "set", "API_TOKEN", stdin="a-secret-of-the-test")
    platform.deploy(platform.copy(EXAMPLES / "secret-egress"), "-e", "API_URL=http://127.0.0.1:9/nobody")
    answer = platform.request("GET", "/function/secret-egress", token="")
    said = json.loads(answer.body)
    assert said["reached"] is False and said["token_length"] == len("a-secret-of-the-test")
    assert b"a-secret-of-the-test" not in answer.body
