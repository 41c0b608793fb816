"""Who may do what: a token's text taken apart, its secret compared, its scopes asked. Nothing here finds a token.

Both doors use it: the gateway for invocations, control's API for everything else. Only sha256 of the secret half is ever
kept; the secret is 256 random bits, so a slow password hash would buy nothing and cost the warm path milliseconds.
"""

import hashlib
import hmac
import re

from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Token

VERBS: tuple[str, ...] = ("invoke", "read", "deploy", "admin")
ALL_NAMESPACES = "*"
TOKEN_BYTES_MAX = 128

_TEXT = re.compile(r"dfy_([a-z0-9]{8,24})_([A-Za-z0-9]{32,80})")
_NOBODY = b"\0" * 32  # no secret has this digest; unknown ids are compared with it, so that they take as long


def parse_token(text: str) -> tuple[str, str] | None:
    """(id, secret) of a token's text ``dfy_<id>_<secret>``, or None when it has another form."""
    match = _TEXT.fullmatch(text) if len(text) <= TOKEN_BYTES_MAX else None
    return (match[1], match[2]) if match else None


def token_text(token_id: str, secret: str) -> str:
    """The inverse of `parse_token`."""
    return f"dfy_{token_id}_{secret}"


def digest(secret: str) -> bytes:
    """What is kept of a token's secret half: 32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


def verified(token: Token | None, secret: str) -> Token | None:
    """`token` when `secret` is its secret, else None. The same work is done for None, an id nobody has."""
    kept = token.digest if token is not None else _NOBODY
    return token if hmac.compare_digest(digest(secret), kept) else None


def allowed(token: Token | None, verb: str, namespace: str) -> bool:
    """Whether the bearer may use `verb` in `namespace`. "admin" implies every verb; no token may do nothing.

    Ask with namespace "*" for what concerns the whole platform (tokens, namespaces): only a token of all namespaces may.
    """
    if token is None:
        return False
    return (verb in token.verbs or "admin" in token.verbs) and (namespace in token.namespaces or ALL_NAMESPACES in token.namespaces)


def visible(token: Token, verb: str, namespaces: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `namespaces` where the bearer may use `verb`: what a list over namespaces may show."""
    return tuple(name for name in namespaces if allowed(token, verb, name))


def checked_scopes(namespaces: tuple[str, ...], verbs: tuple[str, ...]) -> None:
    """Raise `Refusal` bad_request unless a token may be made with these scopes. Names' form is checked elsewhere."""
    if not namespaces:
        raise Refusal("bad_request", 'A token needs at least one namespace, or "*" for all.')
    if not verbs:
        raise Refusal("bad_request", f"A token needs at least one verb of {', '.join(VERBS)}.")
    unknown = sorted(set(verbs) - set(VERBS))
    if unknown:
        raise Refusal("bad_request", f"{unknown[0]!r} is no verb; there are {', '.join(VERBS)}.")
