"""Durable calls, control's side: accepted, handed to gateways, settled.

(The signature comes first, for those who build on it.)
"""

from collections.abc import Sequence

from dayfly.core.model.durable import Accepted, NewCall


class Calls:
    """Verbs on durable calls."""

    async def accept(self, calls: Sequence[NewCall]) -> list[Accepted]:
        """Write the calls down; when this returns they are durable, in one transaction.

        Raises Refusal function_not_found, chain_too_deep, bad_request, async_full (too many wait), and storage_full or data_unusable when
        the store cannot take them: then none of them was taken.
        """
        raise NotImplementedError
