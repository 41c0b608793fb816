"""The front role: TLS and HTTP/2 before the gateway. It writes Caddy's configuration (core/wire/caddy.py), tries it, and becomes Caddy.

Ready by construction: the sockets listen since before `dayfly up` forked, so who connects early waits in the kernel. Never root, no admin
API; it lives and dies with the supervisor (app.py has told the kernel so). `dayfly up` asks `program` first, so that it can refuse in time.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from dayfly.core.model.layout import Layout
from dayfly.core.model.settings import Settings
from dayfly.core.wire import caddy

NAME = "caddy"
CONFIG_FILE = "caddy.json"
VALIDATE_SECONDS_MAX = 20.0
KEPT_VARIABLES = ("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "NO_PROXY")


def program() -> str:
    """Where Caddy is: beside this Python (the extra `tls` puts it there), else on PATH; "" when it is nowhere."""
    beside = Path(sys.executable).parent / NAME
    return str(beside) if os.access(beside, os.X_OK) else shutil.which(NAME) or ""


def run(settings: Settings, layout: Layout, *, lifeline: int, ready: Callable[[], None], listeners: tuple[int, int]) -> None:
    """Become Caddy. Raises RuntimeError with Caddy's own words when it does not take the configuration."""
    found = program()
    if not found:
        raise RuntimeError("Caddy is not installed any more: pip install 'dayfly[tls]'")
    os.close(lifeline)
    path = Path(layout.front, CONFIG_FILE)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(caddy.config(settings, layout.front, listeners)), indent=1))
    environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ} | {"HOME": layout.front}
    words = ["--config", str(path)]
    tried = subprocess.run(
        [found, "validate", *words], env=environment, capture_output=True, text=True, timeout=VALIDATE_SECONDS_MAX, check=False
    )
    if tried.returncode:
        raise RuntimeError(f"Caddy refuses its configuration: {(tried.stderr.strip().splitlines() or ['no word'])[-1][:500]}")
    ready()
    os.execve(found, [found, "run", *words], environment)  # noqa: S606 - no shell is wanted
