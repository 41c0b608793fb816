"""What is left of a call once it was answered: usage, log lines, and running statistics. Gateways send sums and batches."""

import msgspec


class Answered(msgspec.Struct, frozen=True, gc=False):
    """One answered call, as it is counted. Times in microseconds. `outcome`: "ok", or a code of core/model/errors.py."""

    outcome: str
    finished_at: float  # epoch seconds
    cold: bool
    queue_us: int
    start_us: int  # sandbox and process, of the instance this call waited for; 0 when warm
    init_us: int  # the user's module import; 0 when warm
    exec_us: int
    memory_mb: int
    bytes_in: int
    bytes_out: int


class UsageSum(msgspec.Struct, array_like=True):
    """Answered calls of one function on one `day` (counted from 1970, UTC) that are billed, added up. `mb_ms` and `billed_ms`: after
    rounding, call by call."""

    day: int
    namespace: str
    function: str
    calls: int = 0
    errors: int = 0
    cold: int = 0
    exec_us: int = 0
    billed_ms: int = 0
    mb_ms: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class LogRecord(msgspec.Struct, frozen=True, array_like=True):
    """One line (or one block) of output. `call_id` is empty for init and for output between calls."""

    at: float  # epoch seconds
    namespace: str
    function: str
    version: int
    instance: str
    call_id: str
    stream: str  # stdout | stderr | logging | platform
    level: int  # logging's numbers: 10 debug … 50 critical
    text: str


class FunctionStatistics(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One function's running numbers in one gateway. Histograms: core/decide/meter.py BOUNDS_US."""

    namespace: str = ""
    function: str = ""
    since: int = 0  # another number: the gateway has forgotten what it counted before, and begun at zero
    calls: int = 0
    errors: int = 0
    rejected: int = 0
    cold: int = 0
    in_flight: int = 0
    waiting: int = 0
    instances: int = 0
    memory_mb: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    histograms: dict[str, list[int]] = {}  # phase ("queue", "start", "init", "exec", "total") → bucket counts
    sums_us: dict[str, int] = {}
    outcomes: dict[str, int] = {}
    refusals: dict[str, int] = {}  # those of `rejected` by reason: an error's code, or the limit that a call was over
    instances_started: int = 0
    instances_lost: int = 0
    template: str = ""  # of the version called last: making, ready, or "off: why"
    idle_times: int = 0  # seen by keep_alive = "auto"; the windows are those of the pool that was last here, in seconds
    ahead_seconds: float = 0.0
    keep_seconds: float = 0.0
    wanted: int = 0  # instances, by the target of `[scale]`; 0 without one
    panic: bool = False  # of that target
    held_at: int = 0  # instances, while the processors are pressed and the function computes; 0: it is not held
    cpu_share: float = -1.0  # of its time that it computes when nothing keeps it from that; below 0: unknown


class GatewayStatistics(msgspec.Struct, kw_only=True):
    """All of one gateway, sent to control every second; `functions`: those that are not as they were when it was sent last."""

    gateway: str
    at: float
    connections: int = 0
    requests: int = 0
    cpu_pressure: float = 0.0  # share of the time lately in which a thread waited for a processor
    functions: list[FunctionStatistics] = []
