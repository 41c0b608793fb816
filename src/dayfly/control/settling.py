"""From how an attempt ended to what is written down about it: the settlement, its record and result, and whom else it concerns.

Asks core/decide/retry.py what becomes of the call, and makes the rows: a destination's event and a callback are items of the same
transaction, so that a call is settled with them or not at all. Their ids follow from the call's lease, so that nothing is told twice
when a settlement is tried again. Never touches the queue. Called by control/leasing.py.
"""

import base64
import uuid
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import structlog

from dayfly.control.catalog import Catalog
from dayfly.control.spill import Spill
from dayfly.core.decide.retry import Again, Dead, Done, Facts, Policy, failed, resolved, verdict
from dayfly.core.decide.rollout import live_config
from dayfly.core.model.durable import CALLBACK, Async, Attempt, Lineage, Ran, Result, Stored, lane_of, map_seed, split_lane
from dayfly.core.model.errors import BY_CODE
from dayfly.core.model.function import Function
from dayfly.core.model.settings import Settings
from dayfly.core.wire.durable import onwards
from dayfly.store.queue import NewItem, Settlement

CALLBACK_POLICY = Policy(
    attempts=8, backoff_seconds=2, backoff_max_seconds=600, jitter="full", retry_on=(), max_age_seconds=86_400.0
)  # eight tries within half an hour or so
CALLBACK_STATUS_LOST = 503  # what OpenFaaS tells of a function that gave no answer
DETAIL_MAX = 2_000
MAP_KEEP_SECONDS = 1e9  # an item of a map goes when its map goes
RULES_MAX = 10_000  # remembered
_IDS = uuid.UUID("5b1f6d0a-8f36-4b7e-9b8e-6a1d9f0c2e44")
_CONDITIONS = {"retries_exhausted": "RetriesExhausted", "expired": "EventAgeExceeded"}
_encode = msgspec.msgpack.Encoder().encode

log = structlog.get_logger()


class Hand(msgspec.Struct, kw_only=True):
    """A lease that somebody has: what its settlement needs to know. `gateway` is "" while nobody has it."""

    id: str
    epoch: int
    attempt: int
    lane: str
    accepted_at: float
    expires: float
    stored: Stored
    leased_at: float
    gateway: str = ""
    size: int = 0
    grouped: bool = False
    cancelled: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return (self.id, self.epoch)


class Callback(msgspec.Struct, frozen=True, kw_only=True):
    """What an HTTP callback is, beside its body: the meta of its item."""

    url: str
    call_id: str
    headers: list[tuple[str, str]] = []
    content_type: str = "application/json"


class _Rules(NamedTuple):
    """What holds for a lane's calls, while its function is this one."""

    function: Function | None
    config: Async
    policy: Policy


class Settler:
    """Makes settlements."""

    def __init__(self, settings: Settings, catalog: Catalog, spill: Spill) -> None:
        self._settings, self._catalog, self._spill = settings, catalog, spill
        self._rules: dict[str, _Rules] = {}  # by lane, as long as its function stays the same

    def config(self, lane: str) -> Async:
        """`[async]` of a lane's function as it is live; the defaults for one that is gone."""
        return self._of(lane).config

    def policy(self, lane: str) -> Policy:
        return self._of(lane).policy

    def _of(self, lane: str) -> "_Rules":
        function = self._catalog.functions.opened(split_lane(lane))
        rules = self._rules.get(lane)
        if rules is None or rules.function is not function:
            config = live_config(function).durable if function is not None else Async()
            if len(self._rules) >= RULES_MAX:
                self._rules.clear()
            policy = CALLBACK_POLICY if lane.endswith(CALLBACK) else resolved(config)
            rules = self._rules[lane] = _Rules(function, config, policy)
        return rules

    async def settlement(self, hand: Hand, ran: Ran, now: float, die: float) -> Settlement:
        """What to write down. Raises Refusal storage_full when a large result cannot be."""
        policy = self.policy(hand.lane)
        outcome = failed(ran, policy)
        facts = Facts(hand.attempt, hand.epoch, hand.expires, now, die)
        found = verdict(outcome, ran.retry_after_seconds, policy, facts)
        if outcome == "gone" and ran.code:
            found = Dead(ran.code)
        if hand.cancelled and isinstance(found, Again):
            found = Dead("cancelled")
        record = _encode(
            Attempt(
                number=hand.attempt,
                outcome=outcome,
                leased_at=hand.leased_at,
                began_at=ran.began_at,
                ended_at=ran.ended_at or now,
                code=ran.code,
                detail=ran.detail[:DETAIL_MAX],
                status=ran.status,
                version=ran.version,
                gateway=hand.gateway,
                instance=ran.instance,
                cold=ran.cold,
                exec_us=ran.exec_us,
                memory_mb=ran.memory_mb,
                counted=not isinstance(found, Again) or found.counted,
                again_at=found.at if isinstance(found, Again) else 0.0,
            )
        )
        if isinstance(found, Again):
            unbegun = outcome == "returned"  # nobody had room: no record, or a busy day fills a call's history
            return Settlement(
                id=hand.id,
                epoch=hand.epoch,
                now=now,
                state="waiting",
                due=found.at,
                counted=found.counted,
                record=b"" if unbegun else record,
            )
        return await self._end(hand, ran, found, record, now)

    async def expired(self, hand: Hand, now: float) -> Settlement:
        """Of a call that nobody has run in time."""
        ran = Ran(id=hand.id, epoch=hand.epoch, outcome="throttled", code="expired", detail="Nobody could run it in time.", ended_at=now)
        return await self._end(hand, ran, Dead("expired"), b"", now)

    async def _end(self, hand: Hand, ran: Ran, found: Done | Dead, record: bytes, now: float) -> Settlement:
        ok = isinstance(found, Done)
        config = self.config(hand.lane)
        blob = await self._spill.out(f"{hand.id}~{hand.epoch}", ran.body)
        result = Result(ok=ok, status=ran.status, headers=ran.headers, body=b"" if blob else ran.body, blob=blob, size=len(ran.body))
        if ok:
            keep = config.result_keep_seconds if config.result_keep_seconds is not None else self._settings.async_result_keep_seconds
        else:
            keep = self._settings.async_dead_keep_seconds
        if map_seed(hand.lane):
            keep = MAP_KEEP_SECONDS
        return Settlement(
            id=hand.id,
            epoch=hand.epoch,
            now=now,
            state="done" if ok else "dead",
            reason=found.reason if isinstance(found, Dead) else "",
            record=record,
            result=_encode(result),
            keep_until=now + keep,
            items=await self._told(hand, ran, found, now),
        )

    # ---- who else is told ------------------------------------------------------------------------------------------------------

    async def _told(self, hand: Hand, ran: Ran, found: Done | Dead, now: float) -> tuple[NewItem, ...]:
        if hand.stored.kind == "callback" or map_seed(hand.lane) or (isinstance(found, Dead) and found.reason == "cancelled"):
            return ()
        config, (namespace, _) = self.config(hand.lane), split_lane(hand.lane)
        items = []
        destination = config.on_success if isinstance(found, Done) else config.on_failure
        lineage = onwards(hand.stored.lineage, hand.id)
        if destination and lineage.depth > self._settings.async_depth_max:
            log.warning("destination_chain_too_deep", call=hand.id, root=lineage.root, destination=destination)
        elif destination:
            payload = msgspec.json.encode(await self._record(hand, ran, found, now))
            if "://" in destination:
                order = Callback(url=destination, call_id=hand.id)
                items.append(await self._callback(hand, order, payload, now, "destination"))
            else:
                stored = Stored(source="destination", lineage=lineage)
                items.append(await self._item(hand, lane_of(namespace, destination), stored, payload, now, "destination"))
        if hand.stored.callback:
            items.append(await self._callback(hand, _callback_of(hand, ran), ran.body, now, "callback"))
        return tuple(items)

    async def _callback(self, hand: Hand, order: Callback, body: bytes, now: float, which: str) -> NewItem:
        lane = lane_of(split_lane(hand.lane)[0], CALLBACK)
        stored = Stored(kind="callback", meta=_encode(order), source="callback", lineage=Lineage(root=hand.id, parent=hand.id))
        return await self._item(hand, lane, stored, body, now, which)

    async def _item(self, hand: Hand, lane: str, stored: Stored, body: bytes, now: float, which: str) -> NewItem:
        id_ = str(uuid.uuid5(_IDS, f"{hand.id}:{hand.epoch}:{which}"))
        return NewItem(
            id=id_,
            lane=lane,
            body=await self._spill.stored(id_, stored, body),
            accepted_at=now,
            due=now,
            expires=now + self.policy(lane).max_age_seconds,
            tag=f"from:{hand.id}",
        )

    async def _record(self, hand: Hand, ran: Ran, found: Done | Dead, now: float) -> dict[str, Any]:
        """Lambda's destination record (facts: lambda.md §3.1)."""
        namespace, function = split_lane(hand.lane)
        condition = "Success" if isinstance(found, Done) else _CONDITIONS.get(found.reason, found.reason)
        context: dict[str, Any] = {"statusCode": 200, "executedVersion": str(ran.version) if ran.version else "$LATEST"}
        if isinstance(found, Dead):
            context["functionError"] = "Unhandled"
        return {
            "version": "1.0",
            "timestamp": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "requestContext": {
                "requestId": hand.id,
                "functionArn": f"arn:aws:lambda:local:000000000000:function:{function}:$LATEST",
                "condition": condition,
                "approximateInvokeCount": max(1, hand.attempt),
                "dayfly": {"namespace": namespace, "function": function, "code": ran.code},
            },
            "requestPayload": await self._request(hand),
            "responseContext": context,
            "responsePayload": _payload(ran.body),
        }

    async def _request(self, hand: Hand) -> Any:
        body = await self._spill.body(hand.stored)
        if hand.stored.kind == "direct":
            return _payload(body)
        method, path, query, *_ = hand.stored.meta.split(b"\n", 3)
        return {"method": _text(method), "rawPath": _text(path), "rawQueryString": _text(query), "body": _payload(body)}


def _callback_of(hand: Hand, ran: Ran) -> Callback:
    """OpenFaaS's headers (facts: openfaas.md §4), and the answer's own."""
    headers, content_type = [], "application/octet-stream"
    for line in ran.headers.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if name.lower() == b"content-type":
            content_type = _text(value.strip())
        elif colon and name.lower() not in (b"set-cookie", b"content-length"):
            headers.append((_text(name), _text(value.strip())))
    if hand.stored.kind == "direct":
        content_type = "application/json"
    status = ran.status or (BY_CODE[ran.code].status if ran.code in BY_CODE else CALLBACK_STATUS_LOST)
    namespace, function = split_lane(hand.lane)
    headers += [
        ("X-Call-Id", hand.id),
        ("X-Function-Name", f"{function}.{namespace}"),
        ("X-Function-Status", str(status)),
        ("X-Duration-Seconds", f"{ran.exec_us / 1e6:.6f}"),
    ]
    return Callback(url=hand.stored.callback, call_id=hand.id, headers=headers, content_type=content_type)


def _payload(body: bytes) -> Any:
    """As JSON where it is some, else as text, else as base64."""
    if not body:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


def _text(raw: bytes) -> str:
    return raw.decode("latin-1")
