"""The JSON of asynchronous calls' routes, as msgspec structs, and how a call of control becomes it. Times are epoch seconds."""

import base64
from typing import Any

import msgspec

from dayfly.api.shapes import Answer
from dayfly.control.calls import Seen, is_callback
from dayfly.core.decide import meter
from dayfly.core.model.durable import Attempt, split_lane
from dayfly.core.model.settings import Settings
from dayfly.store.queue import Item

SHOWN_BYTES_MAX = 64 * 1024  # of a result inside a call's JSON; /result has it whole


class CallSummary(Answer):
    """A call in a list. `function` is `@callback` for an HTTP callback, which is tried again as calls are."""

    id: str
    namespace: str
    function: str
    state: str
    reason: str
    attempts: int
    accepted_at: float
    due: float
    expires: float
    settled_at: float
    priority: int
    group: str
    tag: str


class CallList(Answer):
    """`next` is the `before` of the page behind; "" when there is none."""

    calls: list[CallSummary]
    next: str


class AttemptAnswer(Answer):
    """One attempt. `outcome`: ok, status, error, timeout, crashed, init_failed, throttled, platform, gone, cancelled, returned, lost."""

    number: int
    outcome: str
    code: str
    detail: str
    status: int
    version: int
    gateway: str
    instance: str
    cold: bool
    leased_at: float
    began_at: float
    ended_at: float
    exec_ms: float
    counted: bool
    again_at: float


class ResultAnswer(Answer):
    """The last answer: `body` where it is JSON or text, `body_base64` where it is neither; neither when it has more than 64 KiB."""

    ok: bool
    status: int
    headers: dict[str, str]
    bytes: int
    body: Any = None
    body_base64: str = ""
    truncated: bool = False


class CallAnswer(CallSummary):
    """A call, whole. `cost` by the tariff, for all its attempts; `logs` is the address of what it printed."""

    qualifier: str
    kind: str
    source: str
    callback: str
    cancelling: bool
    keep_until: float
    lineage: dict[str, Any]
    body_bytes: int
    tries: list[AttemptAnswer]
    result: ResultAnswer | None
    cost: float
    logs: str


class LaneAnswer(Answer):
    """How many calls of a function are in which state."""

    namespace: str
    function: str
    waiting: int
    leased: int
    done: int
    dead: int


class LaneList(Answer):
    queues: list[LaneAnswer]


class CallsOrder(msgspec.Struct, forbid_unknown_fields=True):
    """Which calls: by their ids, or all dead ones of a function (at most 1,000 at once)."""

    ids: list[str] = []
    function: str = ""


class CallsChanged(Answer):
    """What became of each call; `more` says that the function has dead ones beyond these."""

    calls: dict[str, str]
    more: bool = False


class CallbackKey(Answer):
    """What a namespace's callbacks are signed with: HMAC-SHA256 with this key (hexadecimal) of X-Dayfly-Timestamp, a dot and the body."""

    key: str


def summary_of(item: Item) -> dict[str, Any]:
    """A queue's item as fields of a CallSummary."""
    namespace, function = split_lane(item.lane)
    return {
        "id": item.id,
        "namespace": namespace,
        "function": function,
        "state": item.state,
        "reason": item.reason,
        "attempts": item.attempt,
        "accepted_at": item.accepted_at,
        "due": item.due,
        "expires": item.expires,
        "settled_at": item.settled_at,
        "priority": item.priority,
        "group": item.group,
        "tag": item.tag,
    }


def call_of(seen: Seen, body: bytes, settings: Settings) -> CallAnswer:
    """A call as JSON has it. `body` is its result's."""
    item, stored = seen.item, seen.stored
    namespace, function = split_lane(item.lane)
    mb_ms = sum(meter.billed(it.exec_us, it.memory_mb, settings.tariff_round_ms) for it in seen.attempts if it.memory_mb and it.began_at)
    ran = sum(1 for it in seen.attempts if it.began_at and it.memory_mb)
    return CallAnswer(
        **summary_of(item),
        qualifier=stored.qualifier,
        kind=stored.kind,
        source=stored.source,
        callback=stored.callback,
        cancelling=item.cancelling,
        keep_until=item.keep_until,
        lineage={"root": stored.lineage.root, "parent": stored.lineage.parent, "depth": stored.lineage.depth},
        body_bytes=stored.size,
        tries=[_try(it) for it in seen.attempts],
        result=_result(seen, body),
        cost=meter.cost(ran, mb_ms, settings.tariff_per_million_calls, settings.tariff_per_gb_second),
        logs="" if is_callback(item) else f"/api/v1/logs?namespace={namespace}&function={function}&call={item.id}",
    )


def _try(it: Attempt) -> AttemptAnswer:
    return AttemptAnswer(
        number=it.number,
        outcome=it.outcome,
        code=it.code,
        detail=it.detail,
        status=it.status,
        version=it.version,
        gateway=it.gateway,
        instance=it.instance,
        cold=it.cold,
        leased_at=it.leased_at,
        began_at=it.began_at,
        ended_at=it.ended_at,
        exec_ms=it.exec_us / 1000,
        counted=it.counted,
        again_at=it.again_at,
    )


def _result(seen: Seen, body: bytes) -> ResultAnswer | None:
    result = seen.result
    if result is None:
        return None
    answer = ResultAnswer(ok=result.ok, status=result.status, headers=headers_of(result.headers), bytes=result.size)
    if len(body) > SHOWN_BYTES_MAX:
        answer.truncated = True
        return answer
    try:
        answer.body = msgspec.json.decode(body) if body else None
    except (msgspec.DecodeError, RecursionError):
        try:
            answer.body = body.decode()
        except UnicodeDecodeError:
            answer.body_base64 = base64.b64encode(body).decode()
    return answer


def headers_of(block: bytes) -> dict[str, str]:
    """Header lines as a table; of repeated ones the values are joined."""
    found: dict[str, str] = {}
    for line in block.split(b"\r\n"):
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            name = name.lower()
            found[name] = f"{found[name]}, {value.strip()}" if name in found else value.strip()
    return found
