"""What a function depends on: requirements.txt or pyproject.toml → one canonical text, and the digest of its layer.

Only what can be installed from an index is taken: no other files, no editable or local paths, because the installer sees this
text and nothing else of the bundle. Order and comments do not matter, so that they build nothing anew. Called by control.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

from dayfly.core.model.errors import Refusal

REQUIREMENTS_BYTES_MAX = 256 * 1024
OPTIONS = ("--index-url", "-i", "--extra-index-url", "--pre", "--only-binary", "--require-hashes", "--prefer-binary")

_LOCAL = re.compile(r"(?i)^(?:\.|/|~|file:|[a-z]:\\)|\.(?:whl|zip|tar\.gz|tar|tgz)$|@\s*(?:file:|/|\.)")
_COMMENT = re.compile(r"(?:^|\s)#.*$")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?(?=$|[\s\[<>=!~;@(,])")


def canonical(text: str, where: str = "requirements.txt") -> str:
    """One requirement a line, sorted, without comments; options first, in their order. "" when there is none.

    Raises Refusal bad_config naming file and line.
    """
    if len(text.encode("utf-8", "replace")) > REQUIREMENTS_BYTES_MAX:
        raise Refusal("bad_config", f"{where} is over {REQUIREMENTS_BYTES_MAX} bytes.")
    options: list[str] = []
    requirements: set[str] = set()
    for number, line in _logical_lines(text):
        if line.startswith("-"):
            options.append(_checked_option(line, f"{where}:{number}"))
        else:
            requirements.add(_checked_requirement(line, f"{where}:{number}"))
    return "\n".join([*options, *sorted(requirements)]) + "\n" if requirements else ""


def from_pyproject(table: Mapping[str, object]) -> str:
    """The canonical text of [project] dependencies; "" when there are none."""
    project = table.get("project", {})
    listed = project.get("dependencies", []) if isinstance(project, Mapping) else []
    if not isinstance(listed, list) or not all(isinstance(item, str) and "\n" not in item for item in listed):
        raise Refusal("bad_config", "pyproject.toml: project.dependencies must be a list of requirements.")
    if any(item.lstrip().startswith("-") for item in listed):
        raise Refusal("bad_config", "pyproject.toml: project.dependencies holds no installer options.")
    return canonical("\n".join(listed), "pyproject.toml project.dependencies")


def layer_digest(requirements: str, runtime: str, installer: str, platform: str) -> str:
    """sha256 that names a layer: the same text, interpreter, installer and platform give the same folder."""
    parts = ("dayfly-layer-1", requirements, runtime, installer, platform)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _logical_lines(text: str) -> Iterable[tuple[int, str]]:
    """(number of the first line, text) with continuations joined, comments and blanks gone."""
    held, start = "", 0
    for number, raw in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        line = _COMMENT.sub("", raw).strip()
        start = start or number
        if line.endswith("\\"):
            held += line[:-1] + " "
            continue
        joined = " ".join((held + line).split())
        if joined:
            yield start, joined
        held, start = "", 0
    if held.strip():
        yield start, " ".join(held.split())


def _checked_option(line: str, where: str) -> str:
    option = re.split(r"[\s=]", line, maxsplit=1)[0]
    if option not in OPTIONS or "file:" in line.lower():
        raise Refusal("bad_config", f"{where}: {option!r} is not supported; allowed: {', '.join(OPTIONS)}.")
    return line


def _checked_requirement(line: str, where: str) -> str:
    bare = line.split(" --hash", 1)[0].strip()
    if _LOCAL.search(bare) and "://" not in bare.replace("file:", ""):
        raise Refusal("bad_config", f"{where}: {bare[:80]!r} is a local path; put the code into the folder, or name a package.")
    if not _NAME.match(bare) and not bare.startswith("https://"):
        raise Refusal("bad_config", f"{where}: {bare[:80]!r} is no requirement (name, optionally with a version).")
    if "file:" in bare.lower():
        raise Refusal("bad_config", f"{where}: {bare[:80]!r} names a local file.")
    return line
