"""docs/configuration.md and the flags' help texts, from the structs themselves: Settings and FunctionConfig.

`python -m dayfly.cli.reference` writes the page; a test compares it. Bounds and descriptions of Settings stand in its annotations;
FunctionConfig travels into the catalog and carries none, so its descriptions stand here and a test wants one for every field.
"""

import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect as shapes

from dayfly.core.manifest.function import NUMBERS
from dayfly.core.model.durable import Async
from dayfly.core.model.function import FunctionConfig
from dayfly.core.model.limits import NO_LIMITS
from dayfly.core.model.scale import BY_DEMAND
from dayfly.core.model.settings import Settings

FUNCTION_ABOUT = {
    "handler": "`module.function`, slashes allowed before the last dot; a deployed single file defaults to its own module.",
    "runtime": "Interpreter, `python3.11` and so on.",
    "memory_mb": "Memory limit of one instance in MB; what a call is billed by.",
    "cpu": "Ceiling of processor time in cores (0.5 is half of one); 0: none, only a share by memory when others want it too.",
    "tmp_mb": "Size of the private, writable /tmp in MB.",
    "timeout_seconds": "Longest time one call may run; over it the caller gets 504 and the instance ends.",
    "env": "Environment variables, a table (`-e KEY=VALUE` on the command line).",
    "secrets": "Names of secrets mounted read-only below /run/secrets (`--secret NAME` on the command line).",
    "concurrency": "Calls at once in one instance; above 1 needs an `async def` handler.",
    "min_instances": "Instances kept ready even when nobody calls.",
    "provisioned": "Windows with more instances: `cron`, `duration`, `min_instances`, `timezone`; see [functions.md](functions.md).",
    "max_instances": "Instances at most; further calls wait.",
    "keep_alive": "auto learns from the function's idle times; fixed keeps to keep_alive_seconds, as does giving that alone.",
    "keep_alive_seconds": "How long an idle instance is kept; with auto, until enough is learned. 0: not at all.",
    "queue_max": "Calls waiting at most; further ones get 429.",
    "limits": "Rate, calls inside, size of bodies, quotas by the day: a table; see [functions.md](functions.md#limits).",
    "async": "How asynchronous calls are tried again, and who is told how they ended: a table; see [async.md](async.md#policies).",
    "egress": "Network of the function: `none`, `internet`, `all` (private networks, too, if `egress_max` lets it), or a list of hosts.",
    "route": "Addresses beside /function/NAME, by host, path and methods; see [functions.md](functions.md#routes).",
    "websocket": "May be upgraded to a WebSocket: events for a handler, a scope for ASGI; see [functions.md](functions.md#websockets).",
    "cors": "Which pages of other origins may call it from a browser; the gateway answers for it; see [functions.md](functions.md#cors).",
    "snapshot": "auto: instances may be forked from a template that has run init (docs/functions.md, Snapshots); off: each runs it.",
    "scale": "By what instances are counted, if not by demand: a table; see [scaling.md](scaling.md#a-target-instead-of-demand).",
    "cpu_weight": "Its part of the processors beside other functions, where there is too little for all; 2: twice as much.",
    "schedule": "What the clock calls it by: `cron`, `rate` or `at`, and more; see [schedules.md](schedules.md).",
    "auth": "Who may call `/function/NAME`: holders of a token with the invoke verb, or anybody.",
}
FILE_ONLY = {
    "provisioned": "[[provisioned]]",
    "route": "[[route]]",
    "cors": "[cors]",
    "limits": "[limits]",
    "scale": "[scale]",
    "async": "[async]",
    "schedule": "[[schedule]]",
}  # tables, which no flag can say
EMPTY_MEANS = {"handler": "searched for (see [functions.md](functions.md))", "runtime": "the platform's own"}
KINDS: dict[type, str] = {shapes.IntType: "number", shapes.FloatType: "number", shapes.StrType: "text", shapes.BoolType: "true/false"}


class Field:
    """One setting: name, kind in a word, default as text, bounds as text, description."""

    def __init__(self, name: str, kind: str, default: str, bounds: str, about: str) -> None:
        self.name = name
        self.kind = kind
        self.default = default
        self.bounds = bounds
        self.about = about


def fields_of(struct: type) -> list[Field]:
    """The fields of Settings or FunctionConfig in their order."""
    shape = shapes.type_info(struct)
    assert isinstance(shape, shapes.StructType)
    return [_field(field) for field in shape.fields]


def _field(field: Any) -> Field:
    name = field.encode_name
    about = FUNCTION_ABOUT.get(name, "")
    inner = field.type
    if isinstance(inner, shapes.Metadata):
        about = str((inner.extra_json_schema or {}).get("description", about))
        inner = inner.type
    if field.default is msgspec.NODEFAULT:
        default = "" if field.default_factory is msgspec.NODEFAULT else str(field.default_factory() or "")
    else:
        default = "" if field.default in ("", (), None, NO_LIMITS, BY_DEMAND, Async()) else str(field.default)
    if name in EMPTY_MEANS:
        default = ""
    if isinstance(inner, shapes.UnionType):
        words = [str(value) for part in inner.types if isinstance(part, shapes.LiteralType) for value in part.values]
        numbers = next((part for part in inner.types if isinstance(part, shapes.IntType | shapes.Metadata)), None)
        if words and numbers is not None:
            bounded = numbers.type if isinstance(numbers, shapes.Metadata) else numbers
            return Field(field.name, "|".join([*words, "number"]), default, _bounds(field.name, bounded), about)
        if not words:
            return Field(name, "table", default, "", about)
        return Field(name, "|".join([*words, "list"]), default, "", about)
    if isinstance(inner, shapes.LiteralType):
        return Field(name, "|".join(str(v) for v in inner.values), default, "", about)
    kind = KINDS.get(type(inner), "table" if isinstance(inner, shapes.DictType | shapes.StructType) else "list")
    return Field(name, kind, default, _bounds(name, inner), about)


def _bounds(name: str, kind: Any) -> str:
    """Bounds in words: from core/manifest for a function's settings, from the annotations for the platform's."""
    if name in NUMBERS:
        _, low, high, unit = NUMBERS[name]
        return f"from {low:g} to {high:g} ({unit})"
    signs = (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
    return ", ".join(f"{sign} {value:g}" for key, sign in signs if (value := getattr(kind, key, None)) is not None)


def page() -> str:
    """docs/configuration.md, whole."""
    parts = [HEAD]
    for field in fields_of(Settings):
        flag = field.name.replace("_", "-")
        parts += [_section(field, f"`--{flag}` · `DAYFLY_{field.name.upper()}` · `[platform] {field.name}`")]
    parts += [FUNCTION_HEAD]
    for field in fields_of(FunctionConfig):
        flag = {"env": "-e KEY=VALUE", "secrets": "--secret NAME"}.get(field.name, "--" + field.name.replace("_", "-"))
        said = f"`{FILE_ONLY.get(field.name, field.name)}` in dayfly.toml"
        parts += [_section(field, said if field.name in FILE_ONLY else f"`dayfly deploy {flag}` · {said}")]
    return "\n".join(parts)


def _section(field: Field, where: str) -> str:
    default = f"`{field.default}`" if field.default else EMPTY_MEANS.get(field.name, "empty")
    kind = field.kind.replace("|", " or ")
    return f"### {field.name}\n\n{field.about}  \n{where}  \nDefault: {default} · {kind}{' ' + field.bounds if field.bounds else ''}\n"


HEAD = """# Configuration

<!-- Generated from core/model/settings.py and core/model/function.py by `python -m dayfly.cli.reference`. Do not edit. -->

## Platform settings

Sources, weakest first: the defaults below, the `[platform]` table of `dayfly.toml` in the data directory (or of the file that
`--config` or `DAYFLY_CONFIG` names), environment variables `DAYFLY_<NAME>`, flags of `dayfly up`. Every source is checked the same
way; an error names the setting and where it came from.

```toml
[platform]
port = 9000
isolation = "strict"
```

Not settings of the platform but of the command line: `DAYFLY_URL`, `DAYFLY_TOKEN`, `DAYFLY_NAMESPACE`, `DAYFLY_CONFIG_DIR`
(docs/cli.md).
"""

FUNCTION_HEAD = """## Function settings

In a function's own `dayfly.toml`, beside its code, and as flags of `dayfly deploy`; flags win.
"""


def main(words: list[str]) -> None:
    """Write the page to the file that is named, by default to the one in the repository."""
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise SystemExit("usage: python -m dayfly.cli.reference [FILE]   (default: docs/configuration.md)")
    Path(words[0] if words else "docs/configuration.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
