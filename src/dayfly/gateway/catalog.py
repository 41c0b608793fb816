"""What this gateway knows without asking: functions and tokens, as control last streamed them.

Plain dictionaries, changed between two awaits, read by every call. Never touches a store or a socket.
"""

from dayfly.core.decide.access import parse_token, verified
from dayfly.core.decide.routes import Routes
from dayfly.core.model.errors import Refusal
from dayfly.core.model.function import Catalog, Function, Token

REMEMBERED_TOKENS_MAX = 4096


class CatalogMirror:
    """Functions by (namespace, name), tokens by id. `revision` grows with every change; -1 = nothing was ever received."""

    def __init__(self) -> None:
        self.revision = -1
        self.changes = 0  # counted here: a control that was started anew counts revisions anew
        self.functions: dict[tuple[str, str], Function] = {}
        self.live: set[tuple[str, str, int]] = set()  # keys of all versions that an alias names
        self.routes = Routes()
        self._tokens: dict[str, Token] = {}
        self._verified: dict[bytes, Token | None] = {}

    @property
    def known(self) -> bool:
        """Whether a snapshot has arrived: before it, "not found" would be a lie."""
        return self.revision >= 0

    def replace(self, catalog: Catalog) -> None:
        self.revision = catalog.revision
        self.changes += 1
        self.functions = {(function.namespace, function.name): function for function in catalog.functions}
        self.live = {key for function in catalog.functions for key in live_keys(function)}
        self.routes = Routes()
        for function in catalog.functions:
            self.routes.put(function)
        self.set_tokens(catalog.revision, catalog.tokens)

    def set_function(self, revision: int, function: Function) -> None:
        self.revision = revision
        self.changes += 1
        self._forget(function.namespace, function.name)
        self.functions[function.namespace, function.name] = function
        self.live |= live_keys(function)
        self.routes.put(function)

    def remove_function(self, revision: int, namespace: str, name: str) -> None:
        self.revision = revision
        self.changes += 1
        self._forget(namespace, name)
        self.routes.remove(namespace, name)

    def _forget(self, namespace: str, name: str) -> None:
        before = self.functions.pop((namespace, name), None)
        if before is not None:
            self.live -= live_keys(before)

    def set_tokens(self, revision: int, tokens: tuple[Token, ...]) -> None:
        self.revision = revision
        self.changes += 1
        self._tokens = {token.id: token for token in tokens}
        self._verified.clear()

    def function(self, namespace: str, name: str) -> Function:
        """Raises Refusal function_not_found, or control_unavailable while nothing is known yet."""
        found = self.functions.get((namespace, name))
        if found is not None:
            return found
        if not self.known:
            raise Refusal("control_unavailable", "This gateway has not received its catalog yet.", retry_after_seconds=1.0)
        raise Refusal("function_not_found", f"There is no function {name!r} in namespace {namespace!r}.")

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


def live_keys(function: Function) -> set[tuple[str, str, int]]:
    """Versions whose instances stay: those an alias names."""
    return {version.key for version in function.versions if version.number in function.named}
