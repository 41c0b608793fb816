"""Answer headers: from what a handler returned to the header block of runtime/frames.py, checked so that none can split the answer.

Names are checked once and remembered (bounded). Must never let a CR, LF or NUL, or a name that is no token, through.
Used by contracts/http.py and contracts/web.py.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

NAMES_MAX = 256
LENGTH_DIGITS_MAX = 18
TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")  # RFC 9110, 5.6.2, in lower case
DROPPED = frozenset(
    (
        *("connection", "content-length", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "trailers", "transfer-encoding", "upgrade"),
    )
)
_names: dict[str, str] = {}  # as given → in lower case, or "" when it must not leave


def _name(given: object) -> str:
    if not isinstance(given, str):
        raise ValueError(f"A header's name must be text, not {type(given).__name__}.")
    name = given.lower()
    if not name or not TOKEN.issuperset(name):
        raise ValueError(f"{given[:80]!r} is no valid header name.")
    if len(_names) >= NAMES_MAX:
        _names.clear()
    _names[str(given)] = name = "" if name in DROPPED else name
    return name


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    raise ValueError(f"A header's value must be text or a number, not {type(value).__name__}.")


def block(headers: "Mapping[str, Any]", multi: "Mapping[str, Any]", cookies: "Any") -> bytes:
    """The header block: every header, those of `multi` (name → values) instead of `headers`' own, a set-cookie line per cookie.

    Raises ValueError, in words for the function's author, when anything in it is no header.
    """
    lines = []
    known = _names
    if not isinstance(headers, dict) or not isinstance(multi, dict) or not isinstance(cookies, list | tuple):
        raise ValueError("headers and multiValueHeaders must be objects, cookies a list.")
    instead = {_name(name) for name in multi} if multi else ()
    for given, value in headers.items():
        name = known.get(given)
        if name is None:
            name = _name(given)
        if name and name not in instead:
            lines.append(f"{name}: {value if isinstance(value, str) else _text(value)}\r\n")
    for given, values in multi.items():
        name = _name(given)
        for value in values if isinstance(values, list | tuple) else (values,):
            if name:
                lines.append(f"{name}: {value if isinstance(value, str) else _text(value)}\r\n")
    for cookie in cookies:
        if not isinstance(cookie, str):
            raise ValueError(f"A cookie must be text, not {type(cookie).__name__}.")
        lines.append(f"set-cookie: {cookie}\r\n")
    return _checked("".join(lines), len(lines))


def pairs_block(pairs: "Iterable[tuple[str, str]]") -> tuple[bytes, int]:
    """The header block of a web application's (name, value) pairs, which are ISO 8859-1, and the content-length among them or -1.

    Raises ValueError or TypeError when anything in it is no header.
    """
    lines, length = [], -1
    for given, value in pairs:
        name = _names.get(given)
        if name is None:
            name = _name(given)
        if name:
            lines.append(f"{name}: {value}\r\n")
        elif given.lower() == "content-length":
            if not value.isdecimal() or not value.isascii() or len(value) > LENGTH_DIGITS_MAX:
                raise ValueError(f"content-length must be a number, not {value[:40]!r}.")
            length = int(value)
    return _checked("".join(lines), len(lines), "latin-1"), length


def _checked(text: str, count: int, encoding: str = "utf-8") -> bytes:
    """Each line has exactly the line end that `block` gave it, so no value brought one along."""
    if text.count("\n") != count or text.count("\r") != count or "\0" in text:
        raise ValueError("A header's value must not contain line ends or NUL.")
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        raise ValueError("A header's value must be valid Unicode text.") from None


def content_type_of(headers: "Mapping[str, Any] | None", multi: "Mapping[str, Any] | None") -> bool:
    """Whether the answer names its content type itself."""
    for given in (headers, multi):
        if given and ("content-type" in given or "Content-Type" in given or any(name.lower() == "content-type" for name in given)):
            return True
    return False
