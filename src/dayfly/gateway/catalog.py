"""What this gateway knows without asking: functions and tokens, as control last streamed them.

Functions are packed (core/wire/packed.py) until somebody calls them; a bounded number of those that were called are unpacked here. Changed
between two awaits, read by every call. Never touches a store or a socket.
"""

from dayfly.core.decide.access import parse_token, verified
from dayfly.core.decide.routes import Routes
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Catalog, Function, Token
from dayfly.core.wire.packed import Functions, unpack

REMEMBERED_TOKENS_MAX = 4096
UNPACKED_MAX = 2048  # functions; a warm call needs none (gateway/dispatch.py), a first one and one after a change do


class CatalogMirror:
    """Functions by (namespace, name), tokens by id. `revision` grows with every change; -1 = nothing was ever received."""

    def __init__(self) -> None:
        self.revision = -1
        self.changes = 0  # counted here: a control that was started anew counts revisions anew
        self.functions = Functions()
        self.routes = Routes()
        self._unpacked: dict[tuple[str, str], Function] = {}  # the longest unpacked first
        self._tokens: dict[str, Token] = {}
        self._verified: dict[bytes, Token | None] = {}

    @property
    def known(self) -> bool:
        """Whether a snapshot has arrived: before it, "not found" would be a lie."""
        return self.revision >= 0

    def replace(self, catalog: Catalog) -> list[tuple[str, str]]:
        """All is as a snapshot says. Returns which functions are new or different. What is as it was is not even unpacked: a control that
        comes back may say so of ten thousand."""
        same = {(packed.namespace, packed.name) for packed in catalog.functions if self.functions.same(packed)}
        for key in self.functions.keys() - same:
            self._forget(key)  # all of them first: a route may have gone from one to another
        different = [packed for packed in catalog.functions if (packed.namespace, packed.name) not in same]
        for packed in different:
            self.functions.take(packed)
            self.routes.put(unpack(packed.data))
        self.set_tokens(catalog.revision, catalog.tokens)
        return [(packed.namespace, packed.name) for packed in different]

    def set_function(self, revision: int, function: Function) -> None:
        self.revision = revision
        self.changes += 1
        self._put(function)

    def remove_function(self, revision: int, namespace: str, name: str) -> None:
        self.revision = revision
        self.changes += 1
        self._forget((namespace, name))

    def _put(self, function: Function) -> None:
        key = (function.namespace, function.name)
        self._unpacked.pop(key, None)
        self.routes.put(function, self.functions.get(key))
        self.functions[key] = function

    def _forget(self, key: tuple[str, str]) -> None:
        self._unpacked.pop(key, None)
        before = self.functions.pop(key, None)
        if before is not None:
            self.routes.remove(before)

    def set_tokens(self, revision: int, tokens: tuple[Token, ...]) -> None:
        self.revision = revision
        self.changes += 1
        self._tokens = {token.id: token for token in tokens}
        self._verified.clear()

    def function(self, namespace: str, name: str) -> Function:
        """Raises Refusal function_not_found, or control_unavailable while nothing is known yet."""
        key = (namespace, name)
        found = self._unpacked.get(key)
        if found is not None:
            return found
        found = self.functions.get(key)
        if found is not None:
            if len(self._unpacked) >= UNPACKED_MAX:
                del self._unpacked[next(iter(self._unpacked))]
            self._unpacked[key] = found
            return found
        if not self.known:
            raise Refusal("control_unavailable", "This gateway has not received its catalog yet.", retry_after_seconds=1.0)
        raise Refusal("function_not_found", f"There is no function {name!r} in namespace {namespace!r}.")

    def names(self, key: tuple[str, str, int]) -> bool:
        """Whether an alias names this version: then its instances stay."""
        found = self._unpacked.get(key[:2]) or self.functions.get(key[:2])
        return found is not None and key[2] in found.named

    def bearer(self, authorization: bytes) -> Token | None:
        """The token an Authorization header proves, or None. Remembered per header value: a warm call hashes nothing."""
        try:
            return self._verified[authorization]
        except KeyError:
            pass
        token = self._verify(authorization)
        if token is not None:  # garbage is not remembered, so nobody can push the good ones out
            if len(self._verified) >= REMEMBERED_TOKENS_MAX:
                self._verified.clear()
            self._verified[authorization] = token
        return token

    def _verify(self, authorization: bytes) -> Token | None:
        scheme, _, text = authorization.decode("latin-1").partition(" ")
        parsed = parse_token(text.strip()) if scheme.lower() == "bearer" else None
        if parsed is None:
            return None
        token_id, secret = parsed
        return verified(self._tokens.get(token_id), secret)
