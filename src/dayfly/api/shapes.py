"""The JSON that control's routes take and give, as msgspec structs: what /openapi.json is made from. No behaviour.

Field names are a promise to scripts; docs/api.md shows them. Times are epoch seconds, durations carry their unit.
"""

import msgspec

from dayfly.core.model.function import Alias, FunctionConfig, Version
from dayfly.core.model.limits import Limits
from dayfly.store.usage import UsageDay


class Answer(msgspec.Struct):
    """Base of everything that is sent."""


class Removed(Answer):
    """What a DELETE removed, by its name."""

    removed: str


class AliasAnswer(Answer):
    """An alias: version number (as text) → weight."""

    name: str
    weights: dict[str, float]


class FunctionSummary(Answer):
    """A function in a list; settings are those of the version that gets most of live's calls."""

    namespace: str
    name: str
    url: str
    routes: list[str]
    version: int
    live: dict[str, float]
    runtime: str
    memory_mb: int
    auth: str
    created_at: float
    updated_at: float


class FunctionList(Answer):
    functions: list[FunctionSummary]


class VersionAnswer(Answer):
    """A kept version."""

    number: int
    code_digest: str
    layer_digest: str
    created_at: float
    config: FunctionConfig


class Phase(Answer):
    """A phase of calls since the gateways started, estimated from histograms (within a factor of 1.6)."""

    p50_ms: float
    p99_ms: float
    mean_ms: float


class Statistics(Answer):
    """Running numbers of one function since the gateways started. `cost` by the tariff, for those calls. `template`: of the version that
    was started last: making, ready, or off and why. `idle_times`: how many were seen; after a call the last instance is
    away for `ahead_seconds` and then there for `keep_seconds`. `refusals`: those `rejected`, by the limit or queue that they were over.
    `wanted`: instances by the target of `[scale]`, `panic`: its short window is far above; `held_at`: as many instances as the processors
    can run, while they are pressed and it computes (`cpu_share` of its time); 0: not held, and a `cpu_share` below 0 is unknown."""

    namespace: str
    name: str
    calls: int
    errors: int
    rejected: int
    cold: int
    in_flight: int
    waiting: int
    instances: int
    instances_started: int
    instances_lost: int
    idle_times: int
    ahead_seconds: float
    keep_seconds: float
    memory_mb: int
    bytes_in: int
    bytes_out: int
    cost: float
    phases: dict[str, Phase]
    outcomes: dict[str, int]
    refusals: dict[str, int]
    template: str = ""
    wanted: int = 0
    panic: bool = False
    held_at: int = 0
    cpu_share: float = -1.0


class StatisticsList(Answer):
    functions: list[Statistics]


class UsageAnswer(Answer):
    """One function's day (UTC)."""

    day: str
    namespace: str
    function: str
    calls: int
    errors: int
    cold: int
    exec_ms: float
    billed_ms: int
    gb_seconds: float
    bytes_in: int
    bytes_out: int
    cost: float


class UsageList(Answer):
    """Usage of a span of days, both included, and what it costs."""

    first: str
    last: str
    currency: str
    cost: float
    usage: list[UsageAnswer]


class LimitAnswer(Answer):
    """One limit. `scope`: function or namespace; `limit`: its name in `[limits]`; `used_today` (UTC) of those by the day."""

    scope: str
    limit: str
    value: float
    used_today: float | None = None


class NamespaceLimits(Answer):
    """What all functions of a namespace together may use; what is not in `limits` is not limited."""

    namespace: str
    limits: Limits
    state: list[LimitAnswer]


class FunctionDescription(FunctionSummary):
    """All that is known of one function. `walls` stand around its instances on this machine, `missing` do not, each as "name: why"."""

    config: FunctionConfig
    walls: list[str]
    missing: list[str]
    versions: list[VersionAnswer]
    aliases: dict[str, dict[str, float]]
    statistics: Statistics
    usage_today: UsageAnswer
    limits: list[LimitAnswer]  # of the function and of its namespace


class RollbackOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to: a version number, or nothing for the one before."""

    to: int | None = None


class AliasOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One or two versions; weights sum to 1."""

    weights: dict[int, float]


class SecretAnswer(Answer):
    name: str
    updated_at: float


class SecretList(Answer):
    secrets: list[SecretAnswer]


class SecretSet(Answer):
    secret: str


class NamespaceOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class NamespaceAnswer(Answer):
    name: str


class NamespaceList(Answer):
    namespaces: list[NamespaceAnswer]


class TokenOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token to make. `namespaces` may hold "*"; verbs: invoke, read, deploy, admin."""

    name: str
    namespaces: list[str]
    verbs: list[str]


class TokenAnswer(Answer):
    """A token without its text."""

    id: str
    name: str
    namespaces: list[str]
    verbs: list[str]
    created_at: float


class TokenList(Answer):
    tokens: list[TokenAnswer]


class TokenMade(TokenAnswer):
    """The only time the token's text is shown."""

    token: str


class LogLine(Answer):
    """One record; `level` in logging's numbers, `stream`: stdout, stderr, logging or platform."""

    at: float
    namespace: str
    function: str
    version: int
    instance: str
    call_id: str
    stream: str
    level: int
    text: str


class GatewayAnswer(Answer):
    """A connected gateway."""

    name: str
    pid: int
    connections: int
    requests: int
    cpu_pressure: float = 0.0  # share of the time lately in which a thread waited for a processor


class Status(Answer):
    """The platform as control sees it."""

    version: str
    python: str
    installation_id: str
    isolation: str
    uptime_seconds: float
    node: str  # "ok", or why it does not answer
    gateways: list[GatewayAnswer]
    functions: int
    instances: int
    deploys_running: int
    logs_dropped: int
    usage_dropped: int


class Doctor(Answer):
    """What this machine offers: interpreters, and each isolation feature with true or why it is missing."""

    isolation: str
    runtimes: dict[str, str]
    features: dict[str, bool | str]
    instances: int


def weights_of(alias: Alias) -> dict[str, float]:
    """An alias's weights as JSON has them: keys are text."""
    return {str(number): weight for number, weight in alias.weights}


def version_of(version: Version) -> VersionAnswer:
    """A version as JSON has it."""
    return VersionAnswer(
        number=version.number,
        code_digest=version.code_digest,
        layer_digest=version.layer_digest,
        created_at=version.created_at,
        config=version.config,
    )


def usage_of(day: UsageDay, gb_seconds: float, cost: float) -> UsageAnswer:
    """A day's usage as JSON has it."""
    return UsageAnswer(
        day=day.day,
        namespace=day.namespace,
        function=day.function,
        calls=day.calls,
        errors=day.errors,
        cold=day.cold,
        exec_ms=day.exec_us / 1000,
        billed_ms=day.billed_ms,
        gb_seconds=gb_seconds,
        bytes_in=day.bytes_in,
        bytes_out=day.bytes_out,
        cost=cost,
    )
