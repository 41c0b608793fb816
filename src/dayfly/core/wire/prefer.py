"""How long a caller is ready to wait: `Prefer: wait=SECONDS` (RFC 7240 §4.3), read leniently.

The RFC knows whole seconds; a fraction is understood, too. What cannot be read is no preference, as the RFC wants it.
Called by gateway/reply.py, and only for calls that found no free instance.
"""

import re

_WAIT = re.compile(rb"(?i)(?:^|[,;])\s*wait\s*=\s*\"?([0-9]{1,9}(?:\.[0-9]{1,9})?)\"?\s*(?:[,;]|$)")


def wait_preferred(value: bytes) -> float | None:
    """Seconds of a Prefer header's `wait`, None when it has none."""
    found = _WAIT.search(value)
    return float(found[1]) if found else None
