"""What a function depends on: requirements.txt or pyproject.toml → one canonical text, and the digest of its layer.

The installer has the host's network, so what a user writes says *what* to install and never *where from*: names, versions, markers
and hashes pass, by a grammar of what is allowed; no index, no URL, no path. The administrator sets the index in the platform's
environment. Order and comments do not matter, so that they build nothing anew. Called by control.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping

from dayfly.core.model.errors import Refusal

REQUIREMENTS_BYTES_MAX = 256 * 1024
OPTIONS = ("--pre", "--only-binary", "--require-hashes", "--prefer-binary")
PLACES = (
    "-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--trusted-host", "--no-index", "--proxy", "--index", "--default-index",
)  # fmt: skip
_ADMINISTRATOR = (
    "packages come from the index that the platform's administrator sets (UV_DEFAULT_INDEX and the like in the platform's environment)"
)

_COMMENT = re.compile(r"(?:^|\s)#.*$")
_OPTION = re.compile(r"--(?:pre|require-hashes|prefer-binary|only-binary[ =][A-Za-z0-9.,:_-]+)")
_URL = re.compile(r"(?i)[a-z][a-z0-9+.-]*://|@|^(?:git|hg|svn|bzr)\+|^file:|^//")
_FILE = re.compile(r"(?i)^(?:\.|/|~|[a-z]:\\)|\.(?:whl|zip|tar\.gz|tar|tgz)$")
# PEP 508 without URLs, then pip's hashes. No "@", no ":" or "/" but in a hash, no "$" (variables), no second option on the line.
_VERSION = r"(?:===|~=|==|!=|<=|>=|<|>) ?[A-Za-z0-9._*+!-]+"
_VERSIONS = rf"{_VERSION}(?: ?, ?{_VERSION})*,?"
_REQUIREMENT = re.compile(
    r"(?!.*--(?!hash))"
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
    r"(?: ?\[[A-Za-z0-9._, -]*\])?"
    rf"(?: ?(?:{_VERSIONS}|\( ?{_VERSIONS} ?\)))?"
    r"(?: ?;(?:(?!--)[A-Za-z0-9 ._<>=!~'\"()*+-])+)?"
    r"(?: --hash[ =][a-z0-9]+:[0-9A-Fa-f]+)*"
)


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
    if not isinstance(listed, list) or not all(isinstance(item, str) and len(item.splitlines()) < 2 for item in listed):
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
    option = next((name for name in PLACES if line.startswith(name)), "")
    if option:
        raise Refusal("bad_config", f"{where}: {option} is not for a function to set: {_ADMINISTRATOR}.")
    if not _OPTION.fullmatch(line):
        option = re.split(r"[\s=]", line, maxsplit=1)[0][:40]
        raise Refusal("bad_config", f"{where}: {option!r} is not supported so; allowed: {', '.join(OPTIONS)}, one a line.")
    return line


def _checked_requirement(line: str, where: str) -> str:
    """The line, unchanged. A refusal shows no more of it than stands before an "@" or "://": addresses may hold passwords."""
    bare = line.split(" --", 1)[0]
    if found := _URL.search(line):
        name = line[: found.start()].strip()[:40]
        said = f"{name} names" if name else "this is"
        raise Refusal("bad_config", f"{where}: {said} a URL or a path, which a function may not say: {_ADMINISTRATOR}.")
    if _FILE.search(bare):
        raise Refusal("bad_config", f"{where}: {bare[:80]!r} is a local path; put the code into the folder, or name a package.")
    if not _REQUIREMENT.fullmatch(line):
        raise Refusal("bad_config", f"{where}: {bare[:80]!r} is no requirement (name, optionally with versions, a marker, hashes).")
    return line
