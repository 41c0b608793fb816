"""Messages between control and a gateway: MessagePack, each behind a 4-byte big-endian length, on a Unix stream socket.

Control listens at RUN/link.sock; a gateway connects, says `Hello`, and gets a `Snapshot`, then changes as they happen, each
of which it confirms with `Applied`.
When the link breaks the gateway keeps its last catalog and connects again.
"""

import msgspec

from dayfly.core.model.durable import LeasedCall, NewCall, Ran
from dayfly.core.model.function import Catalog, Function, Token
from dayfly.core.model.limits import Consumed, Limits
from dayfly.core.model.records import GatewayStatistics, LogRecord, UsageSum

LENGTH_BYTES = 4
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of a gateway. `slot`: which of how many it is."""

    gateway: str
    pid: int
    slot: int = 0
    gateways: int = 1


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    catalog: Catalog


class FunctionChanged(msgspec.Struct, frozen=True, tag="function"):
    """A function is new or different. Pools of versions it no longer lists must drain."""

    revision: int
    function: Function


class FunctionRemoved(msgspec.Struct, frozen=True, tag="removed"):
    revision: int
    namespace: str
    name: str


class TokensChanged(msgspec.Struct, frozen=True, tag="tokens"):
    revision: int
    tokens: tuple[Token, ...]


class LimitsChanged(msgspec.Struct, frozen=True, tag="limits"):
    """A namespace has these limits now, or none."""

    revision: int
    namespace: str
    limits: Limits


class UsedToday(msgspec.Struct, frozen=True, tag="used"):
    """What was used so far on `day` (counted from 1970, UTC) of what has a quota. All of it before every snapshot, what concerns a change
    before it, and each second what is different now. No change of the catalog: it is not confirmed."""

    day: int
    consumed: list[Consumed]


class Prove(msgspec.Struct, frozen=True, tag="prove"):
    """Start one instance of `function.versions[-1]` and say whether init ran. `function` is complete, as in a change."""

    request: int
    function: Function
    number: int


class Proved(msgspec.Struct, frozen=True, tag="proved"):
    """Answer to `Prove`. On failure `error` is {"errorType", "errorMessage", "stackTrace"} of the user's code, or has
    errorType "Sandbox.Failure" when the platform could not start it, with "code" (core/model/errors.py) where that is not start_failed;
    `log` is what init printed."""

    request: int
    ok: bool
    init_us: int = 0
    start_us: int = 0
    error: dict[str, object] = {}
    log: str = ""
    walls: tuple[str, ...] = ()  # isolation that holds for this instance, e.g. ("pidns", "mountns", "seccomp", …)
    missing: tuple[str, ...] = ()  # isolation that could not be had here
    is_async: bool = True  # whether the handler is; only such a one runs several calls at once in one instance


class Applied(msgspec.Struct, frozen=True, tag="applied"):
    """A gateway decides by this revision of the catalog from now on. Whoever made the change is answered only after that."""

    revision: int


class Usage(msgspec.Struct, frozen=True, tag="usage"):
    """What was used since the message before. While control is away it goes on adding up."""

    sums: list[UsageSum]


class Logs(msgspec.Struct, frozen=True, tag="logs"):
    records: list[LogRecord]
    dropped: int = 0


class Statistics(msgspec.Struct, frozen=True, tag="statistics"):
    statistics: GatewayStatistics


class Accept(msgspec.Struct, frozen=True, tag="accept"):
    """Durable calls that came in one turn of a gateway's loop. `request` is unique in the gateway's life; one that was sent before, and not
    answered when the link broke, is sent again with the calls' ids as they were."""

    request: int
    calls: list[NewCall]


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """To one call of an `Accept`: durable under `id` (`code` is ""), or refused with a code of core/model/errors.py."""

    id: str
    duplicate: bool = False
    code: str = ""
    detail: str = ""
    retry_after_seconds: float = 0.0


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """Answer to an `Accept`, call by call in its order."""

    request: int
    answers: list[Answered]


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Leases: the gateway runs these and says so with `Outcomes`."""

    calls: list[LeasedCall]


class CancelRun(msgspec.Struct, frozen=True, tag="cancel"):
    """Somebody cancelled these leases (id, epoch): drop those not begun, end those that can be ended."""

    leases: list[tuple[str, int]]


class Heard(msgspec.Struct, frozen=True, tag="heard"):
    """The outcomes of these leases are written down, or were not believed: the gateway need not keep them any longer."""

    leases: list[tuple[str, int]]


class Holding(msgspec.Struct, frozen=True, tag="holding"):
    """After `Hello`: leases that this gateway has from a control before; it takes no more when `closing`."""

    leases: list[tuple[str, int]]
    closing: bool = False


class Outcomes(msgspec.Struct, frozen=True, tag="outcomes"):
    """What became of leases. Kept by the gateway, and said again to the next control, until `Heard`."""

    ran: list[Ran]


ToGateway = (
    Snapshot | FunctionChanged | FunctionRemoved | TokensChanged | LimitsChanged | UsedToday | Prove | Accepted | Run | CancelRun | Heard
)
ToControl = Hello | Proved | Applied | Usage | Logs | Statistics | Accept | Holding | Outcomes

_encoder = msgspec.msgpack.Encoder()
_to_gateway: msgspec.msgpack.Decoder[ToGateway] = msgspec.msgpack.Decoder(ToGateway)
_to_control: msgspec.msgpack.Decoder[ToControl] = msgspec.msgpack.Decoder(ToControl)


def encode(message: ToGateway | ToControl) -> bytes:
    """One message with its length in front."""
    body = _encoder.encode(message)
    if len(body) > MESSAGE_BYTES_MAX:
        raise ValueError(f"link message of {len(body)} bytes is over {MESSAGE_BYTES_MAX}")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def decode_to_gateway(body: bytes) -> ToGateway:
    """Raises msgspec.ValidationError when the bytes are no message for a gateway."""
    return _to_gateway.decode(body)


def decode_to_control(body: bytes) -> ToControl:
    """Raises msgspec.ValidationError when the bytes are no message for control."""
    return _to_control.decode(body)
