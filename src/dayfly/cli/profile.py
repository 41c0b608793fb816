"""Which platform a command talks to and as whom: flags, then environment, then what `dayfly up` stored.

credentials.json (mode 0600, in DAYFLY_CONFIG_DIR or ~/.config/dayfly) holds one entry per platform address, and which one
`dayfly up` started last. It holds tokens: it is replaced atomically, never widened, and never printed.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dayfly.cli.failure import EXIT_PLATFORM, Failure

DEFAULT_URL = "http://127.0.0.1:8080"
CREDENTIALS = "credentials.json"


def config_dir() -> Path:
    """Where the command line keeps its own files."""
    given = os.environ.get("DAYFLY_CONFIG_DIR")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path("~/.config").expanduser())
    return Path(base) / "dayfly"


def checked_url(url: str) -> str:
    """`url` as scheme://host[:port], the key of the store; raises Failure when it is none."""
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise Failure(f"{url!r} is no address: {error}.", "Write it like http://127.0.0.1:8080.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Failure(f"{url!r} is no address of a platform.", "Write it like http://127.0.0.1:8080.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "")


def load() -> dict[str, Any]:
    """The store; {"current": "", "platforms": {}} when there is none. A damaged file is an error, not an empty store."""
    path = config_dir() / CREDENTIALS
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        stored = {}
    except (OSError, ValueError) as error:
        raise Failure(f"{path} cannot be read: {error}.", "Correct or delete that file.", exit_code=EXIT_PLATFORM) from error
    if not isinstance(stored, dict) or not isinstance(stored.setdefault("platforms", {}), dict):
        raise Failure(f"{path} is damaged.", "Delete that file and set DAYFLY_TOKEN.", exit_code=EXIT_PLATFORM)
    stored.setdefault("current", "")
    return stored


def save(stored: dict[str, Any]) -> Path:
    """Write the store atomically with mode 0600. Returns its path; raises Failure when it cannot be written."""
    folder = config_dir()
    path = folder / CREDENTIALS
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd, temporary = tempfile.mkstemp(dir=folder, prefix=".credentials-")  # mkstemp's mode is 0600
        with os.fdopen(fd, "w") as file:
            json.dump(stored, file, indent=2)
        Path(temporary).replace(path)
    except OSError as error:
        raise Failure(
            f"The token could not be stored in {path}: {error.strerror}.",
            "Make that folder writable or set DAYFLY_CONFIG_DIR.",
            fault="platform",
            exit_code=EXIT_PLATFORM,
        ) from error
    return path


def remember(url: str, data: str, token: str) -> bool:
    """Note that a platform with this data directory now answers at `url`; `token` is "" on later starts.

    Its token is found again by data directory when the address changed. Returns whether a token is known."""
    stored = load()
    platforms = stored["platforms"]
    if not token:
        token = next((str(p.get("token", "")) for p in platforms.values() if isinstance(p, dict) and p.get("data") == data), "")
    if token:
        platforms[url] = {"token": token, "data": data}
    elif isinstance(platforms.get(url), dict) and platforms[url].get("data") != data:
        del platforms[url]  # another platform's token would only be refused here
    stored["current"] = url
    save(stored)
    return bool(token)


class Profile:
    """Address, token and namespace of one command."""

    def __init__(self, url: str = "", token: str = "", namespace: str = "") -> None:
        given = url or os.environ.get("DAYFLY_URL", "")
        everything = given and (token or os.environ.get("DAYFLY_TOKEN"))
        stored: dict[str, Any] = {"platforms": {}, "current": ""} if everything else load()
        self.url = checked_url(given or stored["current"] or DEFAULT_URL)
        entry = stored["platforms"].get(self.url)
        known = str(entry.get("token", "")) if isinstance(entry, dict) else ""
        self.token = token or os.environ.get("DAYFLY_TOKEN", "") or known
        self.namespace = namespace or os.environ.get("DAYFLY_NAMESPACE", "") or "default"

    def __repr__(self) -> str:
        return f"<Profile {self.url} namespace={self.namespace} token={'yes' if self.token else 'no'}>"
