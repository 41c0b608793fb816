"""Which offered calls ran out of time, and which instances do not pull? Two questions of core/decide/pool.py at a deadline. Silent."""

from collections.abc import Iterable

from dayfly.core.model.call import READY, Call, Instance


def overdue(offered: Iterable[Call], now: float) -> list[Call]:
    """Those past their deadline. They come in the order of their deadlines: the first that is not late ends the search."""
    late = []
    for call in offered:
        if call.deadline > now:
            break
        late.append(call)
    return late


def stuck(instances: Iterable[Instance], call: Call, last_finish_at: float) -> list[str]:
    """Ids of instances to end when `call` ran out of time on the socket, marked by nobody, although they were there: whoever has finished
    nothing since does not pull. Only when *nothing* finished since that call was offered are the ready ones named."""
    if last_finish_at >= call.submitted_at:
        return []
    return [it.id for it in instances if it.state == READY and it.ready_at < call.submitted_at]
