"""Which platform a command talks to and as whom: flags, then environment, then what `dayfly up` stored.

credentials.json (mode 0600, in DAYFLY_CONFIG_DIR or ~/.config/dayfly) holds a token per data directory, which directories last
answered at which address, and the address that `dayfly up` started last. An address may serve one directory today and another
tomorrow, and a directory's admin token is shown only once: so tokens belong to directories. The file is replaced atomically, never
widened, and never printed.
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
    """The store: {"current": URL, "platforms": {URL: {"data", "run"}}, "tokens": {DATA: TOKEN}}, empty when there is none.

    An entry may hold a "token" of its own: one written by hand for a platform elsewhere. A damaged file is an error, not an empty store."""
    path = config_dir() / CREDENTIALS
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError:
        stored = {}
    except (OSError, ValueError) as error:
        raise Failure(f"{path} cannot be read: {error}.", "Correct or delete that file.", exit_code=EXIT_PLATFORM) from error
    if not isinstance(stored, dict) or not all(isinstance(stored.setdefault(key, {}), dict) for key in ("platforms", "tokens")):
        raise Failure(f"{path} is damaged.", "Delete that file and set DAYFLY_TOKEN.", exit_code=EXIT_PLATFORM)
    stored.setdefault("current", "")
    _migrate(stored)
    return stored


def _migrate(stored: dict[str, Any]) -> None:
    """Once the token stood in the entry of the address, where the next directory at that address replaced it."""
    entries = sorted(stored["platforms"].items(), key=lambda item: item[0] == stored["current"])  # the one in use last: it wins
    for _, entry in entries:
        if isinstance(entry, dict) and entry.get("data") and entry.get("token"):
            stored["tokens"][entry["data"]] = entry.pop("token")


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


def remember(url: str, data: str, token: str, *, run: str = "") -> bool:
    """Note that the platform with this data directory now answers at `url`; `token` is "" on later starts.

    Returns whether a token of that directory is known. Tokens of other directories stay, whatever their addresses."""
    stored = load()
    if token:
        stored["tokens"][data] = token
    stored["platforms"][url] = {"data": data, "run": run}
    stored["current"] = url
    save(stored)
    return bool(stored["tokens"].get(data))


class Profile:
    """Address, token and namespace of one command; data and run directory when it is a platform that was started here, else ""."""

    def __init__(self, url: str = "", token: str = "", namespace: str = "") -> None:
        given = url or os.environ.get("DAYFLY_URL", "")
        everything = given and (token or os.environ.get("DAYFLY_TOKEN"))
        stored: dict[str, Any] = {"platforms": {}, "current": "", "tokens": {}} if everything else load()
        self.url = checked_url(given or stored["current"] or DEFAULT_URL)
        entry = stored["platforms"].get(self.url)
        entry = entry if isinstance(entry, dict) else {}
        self.data, self.run = str(entry.get("data", "")), str(entry.get("run", ""))
        known = str(entry.get("token") or stored["tokens"].get(self.data, ""))
        self.token = token or os.environ.get("DAYFLY_TOKEN", "") or known
        self.namespace = namespace or os.environ.get("DAYFLY_NAMESPACE", "") or "default"

    def __repr__(self) -> str:
        return f"<Profile {self.url} namespace={self.namespace} token={'yes' if self.token else 'no'}>"
