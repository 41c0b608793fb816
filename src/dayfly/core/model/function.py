"""Function, version, alias: what a user deploys and what a gateway must know to run it.

A *function* is a name in a namespace. Each deploy makes an immutable, numbered *version*; an *alias* (`live` by default)
points at one version, or at two with weights. `docs/functions.md` documents every setting of `FunctionConfig`.
"""

from typing import Literal

import msgspec

from dayfly.core.model.durable import Async
from dayfly.core.model.limits import NO_LIMITS, Limits
from dayfly.core.model.scale import BY_DEMAND, Scale
from dayfly.core.model.schedule import Schedule

Egress = Literal["none", "internet", "all"]
Auth = Literal["token", "none"]
Snapshot = Literal["auto", "off"]
KeepAlive = Literal["auto", "fixed"]


class Provisioned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A window in which more instances are kept ready: from each time `cron` says, in `timezone`, for `duration_seconds`."""

    cron: str  # minute hour day month weekday
    duration_seconds: float
    min_instances: int
    timezone: str = "UTC"


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An address of a function's own beside /function/NAME. What it may hold: core/manifest/route.py; who wins: core/decide/routes.py."""

    host: str = ""  # "shop.example.com", "*.example.com"; "" = every host that no route names
    path: str = ""  # "/users/{id}", "/files/{rest+}"; "" = every path
    methods: tuple[str, ...] = ()  # () = all

    @property
    def text(self) -> str:
        """For people: `GET,POST shop.example.com/users/{id}`."""
        return f"{','.join(self.methods) or 'ANY'} {self.host}{self.path or ('/' if self.host else '')}"


class Cors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which pages of other origins may call a function from a browser, and how. What it may hold: core/manifest/cors.py."""

    origins: tuple[str, ...]  # "https://app.example.com"; "*" = all
    methods: tuple[str, ...] = ()  # beyond those that need no permission
    headers: tuple[str, ...] = ()
    expose: tuple[str, ...] = ()
    credentials: bool = False
    max_age: int = 0  # seconds


class FunctionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one version, as `dayfly.toml` and the command line give them. Bounds: core/manifest/settings.py."""

    handler: str = "handler.handler"  # module.function; slashes allowed before the last dot; module:application for ASGI and WSGI
    runtime: str = ""  # "python3.11" …; empty = the platform's default interpreter
    memory_mb: int = 128
    cpu: float = 0.0  # most processor time at once, in cores; 0 = no ceiling, only a share by memory
    tmp_mb: int = 64  # size of /tmp; counts against memory_mb where cgroups are there
    timeout_seconds: float = 30.0
    env: dict[str, str] = {}
    secrets: tuple[str, ...] = ()
    concurrency: int = 1  # calls at once in one instance; above 1 needs an async handler
    min_instances: int = 0
    provisioned: tuple[Provisioned, ...] = ()
    max_instances: int = 100
    keep_alive: KeepAlive = "auto"  # "fixed" when keep_alive_seconds was given and this was not: an explicit number is a promise
    keep_alive_seconds: float = 60.0
    queue_max: int = 1000
    limits: Limits = NO_LIMITS  # who is over them gets 429
    egress: Egress | tuple[str, ...] = "none"  # or a list of hosts (core/model/egress.py)
    auth: Auth = "token"
    route: tuple[Route, ...] = ()
    websocket: bool = False  # whether /function/NAME may be upgraded to one
    cors: Cors | None = None  # None: the function speaks CORS itself, or not at all
    snapshot: Snapshot = "auto"  # whether instances may be forked from a template that has run init
    scale: Scale = BY_DEMAND  # how many instances there are, between min_instances and max_instances
    cpu_weight: float = 1.0  # of processor time beside other functions, where there is too little for all
    durable: Async = msgspec.field(default=Async(), name="async")  # how calls that nobody waits for are tried again
    schedule: tuple[Schedule, ...] = ()  # what the clock calls it by, while this version is live

    @property
    def is_application(self) -> bool:
        """Whether it is a web application (ASGI or WSGI) and no handler of events."""
        return ":" in self.handler


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable deploy: config + code + dependency layer, all by digest."""

    namespace: str
    function: str
    number: int
    config: FunctionConfig
    code_digest: str  # sha256 of the canonical bundle; names the folder DATA/code/DIGEST
    layer_digest: str = ""  # "" = no dependencies; names the folder DATA/layers/DIGEST
    created_at: float = 0.0  # epoch seconds

    @property
    def key(self) -> tuple[str, str, int]:
        """What a pool is found by."""
        return (self.namespace, self.function, self.number)


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """A moving name: one or two (version number, weight) pairs; weights sum to 1."""

    name: str
    weights: tuple[tuple[int, float], ...]


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalog streams to gateways for one function: all it takes to route and start it.

    `versions` holds every kept version (any can be called by its number), then the one being proved. `secrets` holds the *values* this
    function's versions asked for; it never leaves the machine's memory and is never logged (`repr` hides it). `floors` holds, by version
    number, what windows of `provisioned` ask for now; control changes it when a window begins or ends.
    """

    namespace: str
    name: str
    aliases: tuple[Alias, ...]
    versions: tuple[Version, ...]
    secrets: dict[str, bytes] = {}
    floors: dict[int, int] = {}

    @property
    def named(self) -> frozenset[int]:
        """Numbers that an alias points at: those versions are kept warm as their settings ask, others start when they are called."""
        return frozenset(number for alias in self.aliases for number, _ in alias.weights)

    def __repr__(self) -> str:
        return f"<Function {self.name}.{self.namespace} versions={[v.number for v in self.versions]}>"


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A bearer token as gateways know it: never its text, only sha256 of its secret half.

    Text form: ``dfy_<id>_<secret>``. `namespaces` may hold "*"; verbs: invoke, read, deploy, admin ("admin" implies all).
    """

    id: str
    digest: bytes
    namespaces: tuple[str, ...]
    verbs: tuple[str, ...]
    name: str = ""
    created_at: float = 0.0


class Packed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A `Function` as small as it can be kept (core/wire/packed.py)."""

    namespace: str
    name: str
    data: bytes


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """A whole snapshot: what a gateway needs to route calls without asking anybody."""

    revision: int
    functions: tuple[Packed, ...]
    tokens: tuple[Token, ...]
    limits: dict[str, Limits] = {}  # of namespaces that have some
