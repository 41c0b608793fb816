"""One deploy: pack, upload, follow the platform's progress, report. `dayfly deploy` and `dayfly dev` share it.

The configuration goes up as the few overrides that were given; defaults and dayfly.toml are the platform's business.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from dayfly.cli.bundle import Bundle
from dayfly.cli.client import Client, function_path
from dayfly.cli.failure import EXIT_PLATFORM, Failure, refused
from dayfly.cli.settings import convert
from dayfly.core.model.function import FunctionConfig

BLOCK_BYTES = 256 * 1024
Progress = Callable[[dict[str, Any]], None]


def overrides(given: Mapping[str, str], env: Sequence[str], secret_names: Sequence[str]) -> dict[str, Any]:
    """Flags as FunctionConfig overrides, converted; raises Failure naming the flag."""
    config = {
        name: convert(FunctionConfig, name, _listed(name, value), f"flag --{name.replace('_', '-')}") for name, value in given.items()
    }
    if env:
        config["env"] = dict(_assignment(text) for text in env)
    if secret_names:
        config["secrets"] = list(secret_names)
    return config


def _listed(name: str, value: str) -> str | list[str]:
    """--egress takes a word, or hosts with commas between them."""
    is_list = name == "egress" and any(mark in value for mark in ".:,")
    return [part.strip() for part in value.split(",")] if is_list else value


def _assignment(text: str) -> tuple[str, str]:
    """KEY=VALUE; a bare KEY takes its value from our own environment."""
    import os

    key, sign, value = text.partition("=")
    if not sign and key in os.environ:
        return key, os.environ[key]
    if not sign or not key:
        raise Failure(f"-e {text!r} is no KEY=VALUE.", "Write -e KEY=VALUE, or -e KEY for a variable that is set here.")
    return key, value


class Deployed:
    """What came of it: the platform's last word, and seconds from packing to that word."""

    def __init__(self, name: str, event: dict[str, Any], seconds: float) -> None:
        self.name = name
        self.event = event
        self.seconds = seconds

    def as_json(self, base_url: str) -> dict[str, Any]:
        known = {key: value for key, value in self.event.items() if key != "event"}
        return {
            "name": self.name,
            **known,
            "url": base_url + str(self.event.get("url", f"/function/{self.name}")),
            "total_seconds": round(self.seconds, 3),
        }


def deploy(client: Client, name: str, bundle: Bundle, config: dict[str, Any], progress: Progress, *, namespace: str) -> Deployed:
    """Upload and wait. `progress` gets every event of the stream. Raises Failure when the platform refuses or the deploy fails."""
    begun = time.perf_counter()
    boundary = secrets.token_hex(16)
    head, tail = _frame(boundary, config)
    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(len(head) + bundle.length + len(tail)),
    }
    body = _body(head, bundle.file, tail)
    for event in client.lines("PUT", function_path(name), query={"namespace": namespace}, body=body, headers=headers):
        progress(event)
        if event.get("event") == "deployed":
            return Deployed(name, event, time.perf_counter() - begun)
        if event.get("event") == "failed":
            error = event.get("error")
            raise refused(error if isinstance(error, dict) else {}, 422)
    raise Failure(
        "The platform's answer ended before the deploy did.",
        "Try again; if it stays so, read the platform's log.",
        fault="platform",
        exit_code=EXIT_PLATFORM,
    )


def _frame(boundary: str, config: dict[str, Any]) -> tuple[bytes, bytes]:
    """What stands before and behind the zip in the multipart body."""
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="config"\r\nContent-Type: application/json\r\n\r\n'
        f"{json.dumps(config)}\r\n"
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="bundle"; filename="bundle.zip"\r\nContent-Type: application/zip\r\n\r\n'
    )
    return head.encode(), f"\r\n--{boundary}--\r\n".encode()


def _body(head: bytes, file: IO[bytes], tail: bytes) -> Iterator[bytes]:
    """The body in blocks; head and the first block travel together, so that a small bundle is one write."""
    yield head + file.read(BLOCK_BYTES)
    while block := file.read(BLOCK_BYTES):
        yield block
    yield tail
