"""What the setting `database` may say, and how it is shown: an address without its password. Reads no file and knows no driver.

"" is SQLite in the data directory; `postgresql://…` an address as libpq reads it; `file:/PATH` a file that holds such an address.
"""

from urllib.parse import parse_qsl, urlsplit

SCHEMES = ("postgresql", "postgres")
FILE = "file:"
URL_BYTES_MAX = 4096


def checked(text: str) -> str:
    """`text` when it is one of the three. Raises ValueError with a sentence that repeats nothing of it: it may hold a password."""
    if not text or (text.startswith(FILE) and text.removeprefix(FILE).startswith("/")):
        return text
    return checked_url(text)


def checked_url(text: str) -> str:
    """`text` when it has the shape of an address; libpq looks at the rest. Raises ValueError without repeating it."""
    if len(text.encode()) > URL_BYTES_MAX or not text.isprintable() or not text.startswith(tuple(f"{it}://" for it in SCHEMES)):
        raise ValueError("expected postgresql://USER@HOST/DATABASE, file:/PATH of a file that holds such an address, or nothing")
    return text


def has_password(text: str) -> bool:
    """Whether an address carries a password, where everybody who sees it would see that, too."""
    try:
        parts = urlsplit(text)
        return parts.password is not None or any(name == "password" for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    except ValueError:
        return ":" in text.rpartition("@")[0].partition("://")[2]
