"""Names that users choose, and the one place that says which are valid. Used by every face, never trusted twice."""

import re

from dayfly.core.model.errors import Refusal

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
SECRET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
HANDLER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:[./][A-Za-z_][A-Za-z0-9_]*)*(?::[A-Za-z_][A-Za-z0-9_]*)?")
CALL_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
HOST = re.compile(r"(\*\.(?=.*\.))?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")  # or all below one
HOST_LENGTH_MAX = 253
DIGEST = re.compile(r"[0-9a-f]{64}")

DEFAULT_NAMESPACE = "default"
LIVE = "live"


def checked_name(name: str, what: str = "function") -> str:
    """Return `name` when it is valid for a function, namespace, alias or token; raise `Refusal` bad_name otherwise."""
    if not NAME.fullmatch(name):
        raise Refusal("bad_name", f"{name!r} is not a valid {what} name.")
    return name


def split_qualified(text: str) -> tuple[str, str]:
    """`name.namespace` or `name` → (namespace, name), as OpenFaaS writes it: the last dot splits."""
    name, dot, namespace = text.rpartition(".")
    return (namespace, name) if dot else (DEFAULT_NAMESPACE, text)
