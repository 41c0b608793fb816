"""`dayfly.toml` of a function folder, and the same keys from an API call → a checked FunctionConfig. Touches no file.

The table comes parsed (tomllib, json); everything in it is a stranger's. All problems are found at once, each naming the key,
the value and what is allowed. Keys from the API (the command line's flags) win over the file's; `env` is merged name by name.
Called by control/deploy.py. docs/functions.md documents every key.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

import msgspec

from dayfly.core.decide.egress import refusal
from dayfly.core.manifest.cors import checked_cors
from dayfly.core.manifest.durable import checked_async
from dayfly.core.manifest.limits import checked_limits
from dayfly.core.manifest.provisioned import checked_windows
from dayfly.core.manifest.route import checked_routes
from dayfly.core.manifest.scale import checked_scale
from dayfly.core.manifest.schedule import checked_schedules
from dayfly.core.model.egress import RULES_MAX, Reach, parsed, policy
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import FunctionConfig
from dayfly.core.model.names import ENV_NAME, HANDLER, SECRET_NAME

ENV_BYTES_MAX = 32 * 1024
ENV_COUNT_MAX = 256
SECRETS_MAX = 64
HANDLER_LENGTH_MAX = 256
RESERVED_ENV = ("AWS_", "DAYFLY_", "_")
SHELL_KEYS = frozenset({"name", "namespace"})  # the command line's business: control gets both in the address
PLATFORM_TABLE = "platform"  # the platform's own settings may stand in the same file
RUNTIME = re.compile(r"python3\.[0-9]{1,2}")

# key → (type, lowest, highest, unit). The widest values that a machine or Lambda's contract allows.
NUMBERS: dict[str, tuple[type, float, float, str]] = {
    "memory_mb": (int, 32, 10_240, "MB"),
    "cpu": (float, 0, 1_024, "cores"),
    "tmp_mb": (int, 1, 10_240, "MB"),
    "timeout_seconds": (float, 0.1, 900, "seconds"),
    "concurrency": (int, 1, 255, "calls at once"),
    "min_instances": (int, 0, 1_000, "instances"),
    "max_instances": (int, 1, 10_000, "instances"),
    "keep_alive_seconds": (float, 0, 86_400, "seconds"),
    "queue_max": (int, 0, 100_000, "waiting calls"),
    "cpu_weight": (float, 0.01, 100, "times the share of another function"),
}
CHOICES: dict[str, tuple[str, ...]] = {"auth": ("token", "none"), "keep_alive": ("auto", "fixed"), "snapshot": ("auto", "off")}
EGRESS = ("none", "internet", "all")
KEYS = tuple(field.encode_name for field in msgspec.structs.fields(FunctionConfig))

# Folders: the first of these that is there decides; a folder with one Python file may name it as it likes.
DEFAULT_HANDLERS: tuple[tuple[str, str], ...] = (
    ("handler.py", "handler.handler"),
    ("main.py", "main.handler"),
    ("app.py", "app.handler"),
    ("lambda_function.py", "lambda_function.lambda_handler"),
)


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What a config is checked against: interpreters found on this machine, secrets of the namespace, files of the bundle."""

    runtimes: Collection[str]
    default_runtime: str
    secrets: Collection[str]
    files: Collection[str]
    reach: Reach = Reach()


def checked_config(table: Mapping[str, object], overrides: Mapping[str, object], around: Surroundings) -> FunctionConfig:
    """The config of a new version. Raises Refusal bad_config; its `extra` lists every problem found."""
    problems: list[str] = []
    merged = _merged(_own_keys(table), _own_keys(overrides))
    values = {key: value for key, value in merged.items() if _known(key, problems)}
    _check_numbers(values, problems)
    _check_words(values, problems)
    _check_egress(values, around.reach, problems)
    _check_env(values.get("env", {}), problems)
    _check_secrets(values.get("secrets", ()), around.secrets, problems)
    values["provisioned"] = checked_windows(values.get("provisioned", ()), problems)
    values["cors"] = checked_cors(values.get("cors"), problems)
    values["route"] = checked_routes(values.get("route", ()), problems)
    values["limits"] = checked_limits(values.get("limits", {}), problems)
    values["scale"] = checked_scale(values.get("scale", {}), problems)
    values["async"] = checked_async(values.get("async", {}), problems)
    values["schedule"] = checked_schedules(values.get("schedule", ()), problems)
    if "keep_alive_seconds" in values:
        values.setdefault("keep_alive", "fixed")  # an explicit number is a promise
    _check_runtime(values.setdefault("runtime", around.default_runtime), around, problems)
    if "handler" not in values and not problems:
        values["handler"] = default_handler(around.files)
    if not problems:
        _check_together(values, problems)
    if problems:
        raise Refusal("bad_config", " ".join(problems[:3]), extra={"problems": problems})
    return msgspec.convert(values, FunctionConfig)


def default_handler(files: Iterable[str]) -> str:
    """Which handler a bundle means that names none, from its file names alone. Raises Refusal bad_config."""
    top = sorted(name for name in files if "/" not in name and name.endswith(".py"))
    for name, handler in DEFAULT_HANDLERS:
        if name in top:
            return handler
    if len(top) == 1:
        module = top[0].removesuffix(".py")
        if HANDLER.fullmatch(module):
            return f"{module}.handler"
        raise Refusal("bad_config", f"{top[0]!r} is no importable module name: rename the file (letters, digits, '_').")
    found = f"{len(top)} Python files at the top and none of" if top else "none of"
    names = ", ".join(name for name, _ in DEFAULT_HANDLERS)
    raise Refusal("bad_config", f'Which function to call is unclear ({found} {names}): set handler = "module.function".')


def _own_keys(table: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in table.items() if key not in SHELL_KEYS and key != PLATFORM_TABLE}


def _merged(table: dict[str, object], overrides: dict[str, object]) -> dict[str, object]:
    merged = table | overrides
    env, more = table.get("env"), overrides.get("env")
    if isinstance(env, Mapping) and isinstance(more, Mapping):
        merged["env"] = {**env, **more}
    return merged


def _known(key: str, problems: list[str]) -> bool:
    if key in KEYS:
        return True
    known = sorted((*KEYS, *SHELL_KEYS))
    near = next((name for name in known if name.startswith(f"{key.replace('-', '_')}_")), None)
    close = [near] if near else difflib.get_close_matches(key.replace("-", "_"), known, 1)
    problems.append(f"Unknown key {key!r}{f'; did you mean {close[0]!r}?' if close else '.'}")
    return False


def _check_numbers(values: dict[str, object], problems: list[str]) -> None:
    for key, (kind, low, high, unit) in NUMBERS.items():
        value = values.get(key)
        if value is None and key not in values:
            continue
        right = isinstance(value, int | float) and not isinstance(value, bool) and (kind is float or isinstance(value, int))
        if not right or not low <= value <= high:  # type: ignore[operator]  # (false for NaN, too)
            what = "a whole number" if kind is int else "a number"
            problems.append(f"{key} = {_shown(value)}: must be {what} from {low:g} to {high:g} ({unit}).")
        elif kind is float:
            values[key] = float(value)  # type: ignore[arg-type]


def _check_words(values: dict[str, object], problems: list[str]) -> None:
    for key, allowed in CHOICES.items():
        if key in values and values[key] not in allowed:
            problems.append(f"{key} = {_shown(values[key])}: must be one of {', '.join(map(repr, allowed))}.")
    handler = values.get("handler", "a.b")
    split = re.split(r"[./:]", handler) if isinstance(handler, str) else []
    if not isinstance(handler, str) or len(handler) > HANDLER_LENGTH_MAX or not HANDLER.fullmatch(handler) or len(split) < 2:
        problems.append(
            f"handler = {_shown(handler)}: must be 'module.function', as in 'hello.handler', or 'module:application' (ASGI or WSGI)."
        )


def _check_egress(values: dict[str, object], reach: Reach, problems: list[str]) -> None:
    """A word, or a list of hosts, with no rule that the administrator's settings would never let work."""
    egress = values.get("egress", "none")
    if egress == "all" and not reach.private:
        problems.append("egress = 'all': this platform's administrator does not allow private networks (egress_max).")
    if isinstance(egress, str) and egress in EGRESS:
        return
    if not isinstance(egress, list | tuple) or not 0 < len(egress) <= RULES_MAX or not all(isinstance(rule, str) for rule in egress):
        problems.append(f"egress = {_shown(egress)}: must be one of {', '.join(map(repr, EGRESS))}, or a list of 1 to {RULES_MAX} hosts.")
        return
    for text in egress:
        try:
            rule = parsed(text)
        except ValueError as error:
            problems.append(f"egress: {_shown(str(error))}.")
            continue
        if rule.network is not None and (why := refusal(rule.network[0], rule.port or 1, False, policy("list", (text,), reach))):
            problems.append(f"egress: {_shown(text)} is out of reach here ({why}); see egress_max and egress_allow of the platform.")


def _check_env(env: object, problems: list[str]) -> None:
    if not isinstance(env, Mapping) or not all(isinstance(name, str) and isinstance(text, str) for name, text in env.items()):
        problems.append("env: must be a table of names and texts.")
        return
    for name, text in env.items():
        if not ENV_NAME.fullmatch(name):
            problems.append(f"env: {_shown(name)} is no name for a variable (letters, digits, '_').")
        elif name.upper().startswith(RESERVED_ENV):
            problems.append(f"env: {name} is reserved; names must not begin with {', '.join(RESERVED_ENV)}.")
        if "\0" in text or (not text.isprintable() and not _encodable(text)):
            problems.append(f"env: the value of {_shown(name)} holds NUL or is not valid UTF-8.")
    size = sum(len(name) + len(text.encode("utf-8", "replace")) for name, text in env.items())
    if size > ENV_BYTES_MAX or len(env) > ENV_COUNT_MAX:
        problems.append(f"env: {len(env)} names and {size} bytes; at most {ENV_COUNT_MAX} and {ENV_BYTES_MAX} are allowed.")


def _check_secrets(secrets: object, existing: Collection[str], problems: list[str]) -> None:
    if not isinstance(secrets, list | tuple) or not all(isinstance(name, str) for name in secrets):
        problems.append("secrets: must be a list of names.")
        return
    if len(secrets) > SECRETS_MAX or len(set(secrets)) != len(secrets):
        problems.append(f"secrets: at most {SECRETS_MAX} different names.")
    for name in secrets:
        if not SECRET_NAME.fullmatch(name):
            problems.append(f"secrets: {_shown(name)} is not a valid secret name.")
        elif name not in existing:
            problems.append(f"secrets: there is no secret {name!r} in this namespace; `dayfly secret set {name}` makes it.")


def _check_runtime(runtime: object, around: Surroundings, problems: list[str]) -> None:
    if runtime not in around.runtimes or not isinstance(runtime, str) or not RUNTIME.fullmatch(runtime):
        there = ", ".join(sorted(around.runtimes)) or "none"
        problems.append(f"runtime = {_shown(runtime)}: not found on this machine; found: {there}.")


def _check_together(values: dict[str, object], problems: list[str]) -> None:
    config = msgspec.convert(values, FunctionConfig)
    if config.min_instances > config.max_instances:
        problems.append(f"min_instances = {config.min_instances}: must not be above max_instances = {config.max_instances}.")
    for window in config.provisioned:
        if window.min_instances > config.max_instances:
            problems.append(
                f"provisioned: min_instances = {window.min_instances} must not be above max_instances = {config.max_instances}."
            )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a huge number"
    return text if len(text) <= 80 else text[:77] + "…"
