"""May a request with this head be followed, and how is it framed? RFC 9110 and 9112, as far as llhttp leaves it open.

llhttp refuses most of what is malformed. What it accepts and we do not: versions other than 1.0 and 1.1, transfer codings beside chunked,
coding and length together in HTTP/1.0's spelling, a Host that is no host, targets with a fragment. `read_head` runs once for each request,
on the warm path: whatever is rare stands behind one comparison. Called by gateway/server.py, before anybody asks what the request means.
"""

import re

from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.gateway.exchange import HOP_BY_HOP, Request

METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
REMEMBERED_HOSTS_MAX = 1024

_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?@]+)(/[^?]*)?(\?.*)?", re.DOTALL)
_REQUEST_LINE = re.compile(rb"(?:^|\r\n)([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}) [^ \r\n]{1,8192} HTTP/1\.[01](?:\r\n|$)")
# A client that lists one of these in Connection does not get it taken away: it says what the content is, for whom, or from whom.
_END_TO_END = re.compile(
    rb"host|content-.*|accept.*|authorization|cookie|cache-control|date|etag|if-.*|range|origin|referer|user-agent|via|"
    rb"forwarded|x-forwarded-.*|x-real-ip|x-call-id|x-amz-.*"
)
_WATCHED = frozenset(  # most headers are none of these
    (b"authorization", b"content-length", b"transfer-encoding", b"host", b"connection", b"expect", b"prefer", b"x-call-id",
     b"x-amz-client-context", b"x-amz-invocation-type", b"x-amz-log-type")
)  # fmt: skip
_PLAIN_CONNECTION = frozenset((b"keep-alive", b"close", b""))

_good_hosts: set[bytes] = set()


def read_head(request: Request, settings: Settings, head_bytes: int) -> Refusal | None:
    """Fill in what the headers say of length, expectation and hop-by-hop headers, and those few that are asked for later. What is returned
    refuses the request. `head_bytes` is how much was read for this head: so much at most, or 0 when it came along with an earlier request
    and nobody knows."""
    if request.method not in METHODS:
        return Refusal("method_not_allowed", f"The method {request.method.decode('latin-1')} is not served here.")
    new = request.version == "1.1"
    if not new and request.version != "1.0":
        return Refusal("version_not_supported", f"HTTP/{request.version} is not spoken here.")
    headers = request.headers
    if len(headers) > settings.headers_max:
        return Refusal("header_too_large", f"The request has more than {settings.headers_max} headers.")
    if not 0 < head_bytes <= settings.header_bytes_max and sum(len(n) + len(v) + 4 for n, v in headers) > settings.header_bytes_max:
        return Refusal("header_too_large", "The request's headers are over header_bytes_max.")
    hosts = 0
    codings: list[bytes] | None = None
    for name, value in headers:
        if name not in _WATCHED:
            continue
        if name == b"host":
            hosts += 1
            if value not in _good_hosts and not _is_host(value):
                return Refusal("bad_request", "The Host header names no host.")
        elif name == b"content-length":
            request.length = int(value)  # digits: llhttp has seen to it
        elif name == b"authorization":
            request.authorization = value
        elif name == b"connection":
            if value not in _PLAIN_CONNECTION:
                request.dropped |= _nominated(value)
        elif name == b"transfer-encoding":
            codings = [*(codings or ()), value]
        elif name == b"expect":
            request.expects = value.lower() == b"100-continue"
        elif name == b"x-call-id":
            request.given_id = value
        elif name == b"prefer":
            request.prefer = value
        else:
            request.x_amz = True
    if hosts != 1 and (hosts or new):
        return Refusal("bad_request", "An HTTP/1.1 request needs exactly one Host header.")
    if codings is not None and (refusal := _check_codings(request, codings)) is not None:
        return refusal
    if request.expects and not (new and (request.length > 0 or codings)):
        request.expects = False  # RFC 9110 §10.1.1
    target = request.target
    if target[0] != 0x2F or b"#" in target:
        return _other_form(request)
    return None


def _is_host(value: bytes) -> bool:
    if not _HOST.fullmatch(value):
        return False
    if len(_good_hosts) >= REMEMBERED_HOSTS_MAX:
        _good_hosts.clear()
    if len(value) < 256:
        _good_hosts.add(value)
    return True


def _nominated(value: bytes) -> frozenset[bytes]:
    """Headers that the client says are for this hop only (RFC 9110 §7.6.1), unless they cannot be."""
    names = frozenset(word.strip(b" \t").lower() for word in value.split(b","))
    return frozenset(name for name in names - HOP_BY_HOP if not _END_TO_END.fullmatch(name))


def _check_codings(request: Request, codings: list[bytes]) -> Refusal | None:
    """RFC 9112 §6.1: chunked, once, and nothing else. llhttp has refused chunked that is not the last, and a length beside it."""
    if request.version == "1.0":
        return Refusal("bad_request", "HTTP/1.0 has no transfer codings.")
    words = [word.strip(b" \t").lower() for value in codings for word in value.split(b",")]
    if words[-1] != b"chunked":
        return Refusal("bad_request", "The last transfer coding of a request must be chunked.")
    if len(words) > 1:
        return Refusal("not_implemented", "Of all transfer codings only chunked, once, is understood here.")
    request.coded = True
    return None


def _other_form(request: Request) -> Refusal | None:
    """absolute-form and asterisk-form (RFC 9112 §3.2): the first becomes a path, and its authority wins over Host."""
    target = request.target
    if b"#" in target:
        return Refusal("bad_request", "A request target has no fragment ('#'): percent-encode it.")
    if target == b"*" and request.method == b"OPTIONS":
        return None
    found = _ABSOLUTE.fullmatch(target)
    if found is None or not _is_host(found[1]) or found[1].startswith(b":"):
        return Refusal("bad_request", "The request target must be a path that begins with '/', or an http address.")
    path = found[2] or (b"*" if request.method == b"OPTIONS" and not found[3] else b"/")
    request.target = path + (found[3] or b"")
    request.headers = [(b"host", found[1]), *((name, value) for name, value in request.headers if name != b"host")]
    return None


def parse_refusal(reason: str, data: bytes) -> Refusal:
    """llhttp stopped at `data`, for this reason: which status is that? The rarer ones take the reader's bytes into account."""
    if reason == "Invalid HTTP version" or reason.startswith("Pause on PRI"):
        return Refusal("version_not_supported", "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    if reason.startswith(("Invalid method", "Expected space after method")):
        unknown = [found[1] for found in _REQUEST_LINE.finditer(data) if found[1] not in METHODS]
        if unknown:
            return Refusal("not_implemented", f"The method {unknown[0].decode('latin-1')} is not known here.")
    return Refusal("bad_request", f"This is not valid HTTP/1.1: {reason}.")
