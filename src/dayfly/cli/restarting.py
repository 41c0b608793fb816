"""`dayfly restart` from outside: one signal to the supervisor, whose state file then says how far it is.

Who may signal the supervisor (its own user, and root) may restart it: the kernel decides, and nobody parses anything. Used by platform.py.
"""

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from dayfly.cli import running
from dayfly.cli.failure import EXIT_PLATFORM, EXIT_UNREACHABLE, Failure
from dayfly.core.model.layout import Layout
from dayfly.supervisor import RENEW, ROLL

BEGIN_SECONDS_MAX = 30.0
LOOK_SECONDS = 0.05


def restart(layout: Layout, *, rolling: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Ask for a restart and wait for its end; `tell` hears its steps. Returns what the supervisor says of it. Raises Failure."""
    pid = running.holder(layout)
    if pid <= 0:
        raise Failure(f"Nothing runs at {layout.data}.", "Start it with `dayfly up`.", exit_code=EXIT_UNREACHABLE)
    before = running.state(layout).get("restart")
    if not isinstance(before, dict):
        raise Failure(
            "The platform that runs is still starting, or of a release that cannot be restarted in place.",
            "Try again in a moment, or `dayfly down` and `dayfly up`.",
            exit_code=EXIT_PLATFORM,
        )
    if before["running"]:
        raise Failure("A restart is under way.", "Wait for it: `dayfly status` shows both generations.", exit_code=EXIT_PLATFORM)
    try:
        supervisor = os.pidfd_open(pid)
    except ProcessLookupError:
        raise Failure(f"Nothing runs at {layout.data} any more.", "Start it with `dayfly up`.", exit_code=EXIT_UNREACHABLE) from None
    try:
        signal.pidfd_send_signal(supervisor, ROLL if rolling else RENEW)
        return _watch(layout, supervisor, before["number"], tell)
    except PermissionError:
        raise Failure(f"You may not restart pid {pid}.", "Ask as the user who started the platform.", exit_code=EXIT_PLATFORM) from None
    finally:
        os.close(supervisor)


def _watch(layout: Layout, supervisor: int, before: int, tell: Callable[[str], None]) -> dict[str, Any]:
    begin_by, said = time.monotonic() + BEGIN_SECONDS_MAX, 0
    while True:
        ended = bool(select.select([supervisor], [], [], LOOK_SECONDS)[0])
        seen = running.state(layout).get("restart", {})
        if seen.get("number", 0) > before:
            for step in seen["steps"][said:]:
                tell(step)
            said = len(seen["steps"])
            if not seen["running"]:
                break
        elif time.monotonic() > begin_by:
            raise Failure("The supervisor did not begin the restart.", "Its log may say why.", fault="platform", exit_code=EXIT_PLATFORM)
        if ended:
            raise Failure(
                "The platform ended during the restart.",
                "Its log says why; `dayfly up` starts it again.",
                fault="platform",
                exit_code=EXIT_PLATFORM,
                code="start_failed",
            )
    if seen["error"]:
        raise Failure(
            f"The restart failed: {seen['error']}.",
            "What was not replaced serves on. Read the log, correct the cause, and restart again.",
            fault="platform",
            exit_code=EXIT_PLATFORM,
            code="start_failed",
        )
    return dict(seen)
