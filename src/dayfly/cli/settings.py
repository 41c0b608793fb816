"""Where the platform's settings come from: defaults < dayfly.toml [platform] < DAYFLY_* environment < flags of `dayfly up`.

`resolve` is pure but for reading the one file. Every value is converted and bounded by msgspec from the annotations of `Settings`,
whatever its source, and an error names the setting, the source and what was expected. Only `dayfly up|down|status|doctor` call it.
"""

import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as shapes

from dayfly.cli import database
from dayfly.cli.failure import Failure
from dayfly.core.decide.callback import allowed_ranges
from dayfly.core.decide.forwarded import Proxies
from dayfly.core.model import egress
from dayfly.core.model.settings import Settings
from dayfly.core.wire import caddy

FILE = "dayfly.toml"
FILE_BYTES_MAX = 1024 * 1024
NOT_SETTINGS = ("url", "token", "namespace", "config_dir", "config")  # DAYFLY_* variables of the command line itself


class Resolved:
    """Complete settings (data and run filled in by `resolve` and `directories.prepare`), and where each value came from."""

    def __init__(self, settings: Settings, sources: dict[str, str], unknown: list[str]) -> None:
        self.settings = settings
        self.sources = sources  # name → "flag --port", "DAYFLY_PORT", "/x/dayfly.toml"; absent = default
        self.unknown = unknown  # DAYFLY_* variables that are no setting


def default_data(euid: int, environ: Mapping[str, str]) -> str:
    """/var/lib/dayfly for root, the user's data directory otherwise."""
    if euid == 0:
        return "/var/lib/dayfly"
    base = environ.get("XDG_DATA_HOME") or str(Path("~/.local/share").expanduser())
    return f"{base}/dayfly"


def resolve(flags: Mapping[str, str], environ: Mapping[str, str], *, config: str = "", euid: int | None = None) -> Resolved:
    """All sources into one `Settings`, its `data` absolute. Raises Failure naming key and source."""
    uid = os.geteuid() if euid is None else euid
    from_flags = {name: (value, f"flag --{name.replace('_', '-')}") for name, value in flags.items()}
    from_environ, unknown = _environment(environ)
    named = config or environ.get("DAYFLY_CONFIG", "")
    values: dict[str, tuple[Any, str]] = {}
    if named:
        values |= _file(Path(named), must_exist=True)
    data = next((s["data"][0] for s in (from_flags, from_environ, values) if "data" in s), "") or default_data(uid, environ)
    data = str(Path(str(data)).expanduser().absolute())
    if not named:
        path = Path(data) / FILE
        values |= _file(path, must_exist=False)
        if "data" in values:
            raise Failure(
                f"{path} sets `data`, but it was found in that directory.", "Remove `data` there, or name the file with --config."
            )
    values |= from_environ
    values |= from_flags
    converted = {name: convert(Settings, name, value, source) for name, (value, source) in values.items()}
    settings = Settings(**converted | {"data": data})
    try:
        egress.reach(settings)
    except ValueError as error:
        raise Failure(f"`egress_allow` or `egress_deny`: {error}.", "Write ranges, separated by commas, as in 10.0.0.0/8.") from error
    try:
        Proxies(settings.trusted_proxies)
    except ValueError as error:
        raise Failure(f"`trusted_proxies`: {error}.", "Write ranges, separated by commas, as in 10.0.0.0/8, 127.0.0.1.") from error
    try:
        allowed_ranges(settings.callback_allow)
    except ValueError as error:
        raise Failure(f"`callback_allow`: {error}.", "Write ranges, separated by commas, as in 10.1.0.0/16.") from error
    try:
        caddy.domains_of(settings)
    except ValueError as error:
        raise Failure(f"`domain`: {error}.", "Write names, separated by commas, as in example.org,www.example.org.") from error
    if settings.database:
        database.checked(settings, values["database"][1])
    if settings.run:
        settings = msgspec.structs.replace(settings, run=str(Path(settings.run).expanduser().absolute()))
    return Resolved(settings, {name: source for name, (_, source) in values.items()}, unknown)


def convert(struct: type, name: str, value: Any, source: str) -> Any:
    """One value as the struct's field wants it; text from flags and environment is read leniently ("8080" is a number)."""
    field = {f.name: f for f in msgspec.structs.fields(struct)}.get(name)
    if field is None:
        raise Failure(f"{name!r} ({source}) is no setting.", "docs/configuration.md lists them; `dayfly up --help` too.")
    try:
        result = msgspec.convert(value, field.type, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        raise Failure(f"`{name}` = {value!r} ({source}): {_expectation(str(error))}.", f"Correct it; {_about(field.type)}") from error
    if isinstance(result, float) and not math.isfinite(result):
        raise Failure(f"`{name}` = {value!r} ({source}): expected a finite number.", f"Correct it; {_about(field.type)}")
    return result


def _environment(environ: Mapping[str, str]) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    found: dict[str, tuple[Any, str]] = {}
    unknown: list[str] = []
    for key in sorted(environ):
        name = key.removeprefix("DAYFLY_").lower()
        if not key.startswith("DAYFLY_") or name in NOT_SETTINGS:
            continue
        if name in Settings.__struct_fields__:
            found[name] = (environ[key], key)
        else:
            unknown.append(key)
    return found, unknown


def _file(path: Path, *, must_exist: bool) -> dict[str, tuple[Any, str]]:
    """The [platform] table of a TOML file."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if must_exist:
            raise Failure(f"{path} does not exist.", "Correct --config or DAYFLY_CONFIG.") from None
        return {}
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.", "Make it readable, or start as the user who owns it.") from error
    if len(raw) > FILE_BYTES_MAX:
        raise Failure(f"{path} is over {FILE_BYTES_MAX} bytes.", "This is no configuration file.")
    try:
        table = tomllib.loads(raw.decode("utf-8")).get("platform", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Failure(f"{path} is no valid TOML: {error}.", "Correct that place.") from error
    if not isinstance(table, dict):
        raise Failure(f"`platform` in {path} is no table.", "Write [platform] on a line of its own, settings below it.")
    return {name: (value, str(path)) for name, value in table.items()}


def _expectation(text: str) -> str:
    """msgspec's message without its type names' capital letters: 'expected `int` <= 65535'."""
    return text[:1].lower() + text[1:]


def _about(kind: Any) -> str:
    shape = shapes.type_info(kind)
    text = (shape.extra_json_schema or {}).get("description", "") if isinstance(shape, shapes.Metadata) else ""
    return f"what it is: {text}" if text else "see docs/configuration.md."
