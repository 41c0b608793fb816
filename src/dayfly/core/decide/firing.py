"""What a schedule's firing looks like as a call: its id, its key, what the function gets. Silent.

Without a payload the function gets what EventBridge sends for a rule with a schedule ("Scheduled Event"); with one, just that, as
EventBridge's Scheduler does. Either way `context.client_context.custom` holds the schedule's name and the due time.
Called by control/firing.py and control/schedules.py.
"""

from datetime import UTC, datetime

import msgspec

from dayfly.core.model.durable import NewCall
from dayfly.core.model.schedule import Kept

ACCOUNT, REGION = "000000000000", "local"  # as in the ARNs that a function's context has
_encode = msgspec.json.Encoder().encode


def tag_of(name: str) -> str:
    """What lists of calls filter by."""
    return f"schedule:{name}"


def slot_of(kept: Kept, due: float) -> str:
    """The key of one due time: who puts it a second time, makes no second call. It has milliseconds because an `at` may."""
    return f"schedule/{kept.name}/{due:.3f}"


def moment_text(moment: float) -> str:
    """2026-11-26T07:00:00Z; with milliseconds where there are some."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    return text.removesuffix(".000") + "Z"


def call_for(kept: Kept, call_id: str, due: float) -> NewCall:
    """The call of one due time."""
    return msgspec.structs.replace(call_now(kept, call_id, due), dedup=slot_of(kept, due))


def call_now(kept: Kept, call_id: str, moment: float) -> NewCall:
    """A call beside the clock."""
    tag = tag_of(kept.name)
    return NewCall(
        id=call_id,
        namespace=kept.namespace,
        function=kept.function,
        meta=_encode({"custom": {"schedule": kept.name, "due": moment_text(moment)}}),
        body=kept.schedule.payload.encode() or event(kept.name, call_id, moment),
        group=tag if kept.schedule.overlap == "queue" else "",
        tag=tag,
        source="schedule",
    )


def event(name: str, call_id: str, moment: float) -> bytes:
    """The event of a firing without a payload."""
    return _encode(
        {
            "version": "0",
            "id": call_id,
            "detail-type": "Scheduled Event",
            "source": "aws.events",
            "account": ACCOUNT,
            "time": datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "region": REGION,
            "resources": [f"arn:aws:events:{REGION}:{ACCOUNT}:rule/{name}"],
            "detail": {},
        }
    )
