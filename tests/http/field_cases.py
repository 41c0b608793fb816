"""Cases about header fields: their syntax, Host, what reaches a function and what does not. RFC 9112 §3.2 and §5, RFC 9110 §5 and §7."""

from tests.http.case import Case, get, post, refused, served


def head(fields: bytes) -> bytes:
    """A GET with exactly these header lines."""
    return b"GET /function/hello HTTP/1.1\r\n" + fields + b"\r\n"


SYNTAX = [
    served("a name in any case", "9110 §5.1", get(headers=b"X-MiXeD: Value\r\n"), lines=(b"x-mixed: Value",)),
    served("no space behind the colon", "§5.1", get(headers=b"x-a:1\r\n"), lines=(b"x-a: 1",)),
    served("white space around a value", "§5.1", get(headers=b"x-a: \t 1 \t \r\n"), lines=(b"x-a: 1",)),
    served("white space inside a value", "9110 §5.5", get(headers=b"x-a: 1 \t 2\r\n"), lines=(b"x-a: 1 \t 2",)),
    served("an empty value", "9110 §5.5", get(headers=b"x-a:\r\nx-b:  \r\n"), lines=(b"x-a: ", b"x-b: ")),
    served("a value with colons", "9110 §5.5", get(headers=b"x-a: a:b::c\r\n"), lines=(b"x-a: a:b::c",)),
    served(
        "every character that may stand in a name",
        "9110 §5.6.2",
        get(headers=b"!#$%&'*+-.^_`|~9aZ: 1\r\n"),
        lines=(b"!#$%&'*+-.^_`|~9az: 1",),
    ),
    served("bytes above ASCII in a value", "9110 §5.5", get(headers=b"x-a: caf\xe9\r\n"), lines=(b"x-a: caf\xe9",)),
    served("a repeated header stays two lines", "9110 §5.3", get(headers=b"x-a: 1\r\nx-a: 2\r\n"), lines=(b"x-a: 1", b"x-a: 2")),
    served(
        "cookies stay as they came",
        "6265 §5.4",
        get(headers=b"cookie: a=1; b=2\r\ncookie: c=3\r\n"),
        lines=(b"cookie: a=1; b=2", b"cookie: c=3"),
    ),
    *(
        refused(f"byte {b:#04x} in a value", "9110 §5.5", get(headers=b"x-a: 1" + bytes([b]) + b"2\r\n"))
        for b in (0, 1, 8, 11, 12, 0x1F, 0x7F)
    ),
    *(
        refused(f"byte {b:#04x} in a name", "9110 §5.1", get(headers=b"x" + bytes([b]) + b"a: 1\r\n"))
        for b in (0, 1, 0x20, 0x22, 0x28, 0x2C, 0x2F, 0x3D, 0x40, 0x5B, 0x7B, 0x7F, 0x80, 0xFF)
    ),
    refused("space before the colon", "§5.1", get(headers=b"x-a : 1\r\n")),
    refused("tab before the colon", "§5.1", get(headers=b"x-a\t: 1\r\n")),
    refused("space before the colon of a length", "§5.1", post(b"content-length : 2\r\n", b"hi")),
    refused("no name", "§5", get(headers=b": 1\r\n")),
    refused("no colon", "§5", get(headers=b"x-a\r\n")),
    refused("a folded line", "§5.2", get(headers=b"x-a: 1\r\n 2\r\n")),
    refused("a folded line with a tab", "§5.2", get(headers=b"x-a: 1\r\n\t2\r\n")),
    refused("a folded line behind an empty value", "§5.2", get(headers=b"x-a:\r\n 2\r\n")),
    refused("a folded length", "§5.2", post(b"content-length:\r\n 2\r\n", b"hi")),
    refused("a folded coding", "§5.2", post(b"transfer-encoding:\r\n chunked\r\n", b"0\r\n\r\n")),
    refused("white space before the first header", "§2.2", head(b" host: t\r\n")),
    refused("a line of white space", "§2.2", get(headers=b" \r\n")),
    refused("bare LF behind a header", "§2.2", head(b"host: t\nx-a: 1\r\n")),
    refused("bare LF as the empty line", "§2.2", b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\n"),
    refused("bare CR inside a value", "§2.2", get(headers=b"x-a: 1\rx-b: 2\r\n")),
    refused("bare CR behind a header", "§2.2", head(b"host: t\rx-a: 1\r\n")),
    refused("bare CR as the empty line", "§2.2", b"GET /function/hello HTTP/1.1\r\nhost: t\r\n\r"),
]

HOSTS = [
    *(
        served(f"Host {host.decode()}", "§3.2", head(b"host: " + host + b"\r\n"), lines=(b"host: " + host,))
        for host in (b"example.org", b"example.org:8080", b"127.0.0.1", b"[::1]", b"[2001:db8::1]:80", b"a_b.example", b"a,b",
                     b"xn--bcher-kva.example", b"t:")
    ),
    served("an empty Host is allowed", "§3.2", head(b"host:\r\n")),
    refused("no Host", "§3.2", head(b"x-a: 1\r\n")),
    refused("two Hosts", "§3.2", head(b"host: a\r\nhost: b\r\n")),
    refused("the same Host twice", "§3.2", head(b"host: a\r\nhost: a\r\n")),
    *(
        refused(f"Host {host!r}", "§3.2", head(b"host: " + host + b"\r\n"))
        for host in (b"a b", b"a/b", b"a?b", b"u@a", b"a:b", b"a:80:80", b"[::1", b"::1", b"[a]b", b"http://a", b"a\xe9", b"<a>",
                     b"a\\b", b"a#b")
    ),
]  # fmt: skip

HOPS = [
    served("headers of this hop are dropped", "9110 §7.6.1",
           get(headers=b"te: trailers\r\nkeep-alive: timeout=5\r\nproxy-connection: keep-alive\r\n"
                       b"proxy-authorization: Basic eA==\r\ntrailer: x-t\r\n"),
           without=(b"te", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"trailer")),
    served("headers that Connection names are dropped", "9110 §7.6.1",
           get(headers=b"connection: X-Hop, keep-alive\r\nx-hop: 1\r\nx-other: 2\r\n"), lines=(b"x-other: 2",), without=(b"x-hop",
           b"connection")),
    served("Connection on two lines, badly spaced", "9110 §7.6.1",
           get(headers=b"x-hop: 1\r\nconnection:x-hop ,,\r\nconnection:\tX-Also\r\nx-also: 1\r\n"), without=(b"x-hop", b"x-also")),
    served("Connection cannot take content headers away", "9110 §7.6.1",
           post(b"connection: content-length, content-type, host, authorization, x-call-id\r\ncontent-type: text/plain\r\n"
                b"authorization: Basic eA==\r\nx-call-id: c1\r\ncontent-length: 2\r\n", b"hi"),
           lines=(b"content-type: text/plain", b"content-length: 2", b"host: t", b"authorization: Basic eA==",
                  b"x-call-id: c1"),
           bodies=(b"hi",)),
    served("Connection cannot take the coding away", "9110 §7.6.1",
           post(b"connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n", b"2\r\nhi\r\n0\r\n\r\n"), bodies=(b"hi",)),
    served("close among other words", "§9.6", get(headers=b"connection: x-hop, Close\r\nx-hop: 1\r\n"), kept=False, without=(b"x-hop",)),
    served("what a stranger says of whom he stands for is not passed on", "7239 §8.1",
           get(headers=b"x-forwarded-for: 192.0.2.1\r\nx-forwarded-host: a\r\nx-forwarded-proto: https\r\nforwarded: for=192.0.2.1\r\n"),
           lines=(b"127.0.0.1",), without=(b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"forwarded")),
    served("an upgrade nobody speaks is ignored", "9110 §7.8", get(headers=b"connection: upgrade\r\nupgrade: websocket\r\n"),
           without=(b"upgrade",)),
    served("an upgrade with a body", "9110 §7.8",
           post(b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA\r\ncontent-length: 2\r\n", b"hi"),
           bodies=(b"hi",), without=(b"upgrade", b"http2-settings")),
    served("an upgrade with a chunked body", "9110 §7.8",
           post(b"connection: upgrade\r\nupgrade: h2c\r\ntransfer-encoding: chunked\r\n", b"2\r\nhi\r\n0\r\n\r\n"), bodies=(b"hi",)),
    served("two upgrades in one go", "9110 §7.8", get(headers=b"connection: upgrade\r\nupgrade: h2c\r\n") * 2, answers=(200, 200)),
    served("compressed content is left alone", "9110 §8.4",
           post(b"content-encoding: gzip\r\naccept-encoding: br, gzip\r\ncontent-length: 4\r\n", b"\x1f\x8b\x08\x00"),
           lines=(b"content-encoding: gzip", b"accept-encoding: br, gzip"), bodies=(b"\x1f\x8b\x08\x00",)),
    served("a range is the function's to read", "9110 §14.2", get(headers=b"range: bytes=0-1\r\n"), lines=(b"range: bytes=0-1",)),
    served("conditions are the function's to read", "9110 §13.1", get(headers=b'if-none-match: "x"\r\n'), lines=(b'if-none-match: "x"',)),
]  # fmt: skip

LIMITS = [
    served("an address of just under url_bytes_max", "§3", get(b"/function/hello?" + b"a" * 8000), ours=True),
    refused("an address over url_bytes_max", "§3", get(b"/function/hello?" + b"a" * 9000), 414, ours=True),
    refused("an address without an end", "§3", b"GET /function/hello?" + b"a" * 100_000, 414, ours=True, whole=False),
    refused("a header over header_bytes_max", "9110 §5.4", get(headers=b"x-a: " + b"a" * 40_000 + b"\r\n"), 431, ours=True),
    refused("a header without an end", "9110 §5.4", b"GET /function/hello HTTP/1.1\r\nx-a: " + b"a" * 100_000, 431, ours=True, whole=False),
    refused("a header's name without an end", "9110 §5.4", b"GET /function/hello HTTP/1.1\r\n" + b"a" * 100_000, 431, ours=True,
            whole=False),
    refused("more headers than headers_max", "9110 §5.4", get(headers=b"x-a: 1\r\n" * 200), 431, ours=True),
    refused("too large a head behind another request", "9110 §5.4", get() + get(headers=b"x-a: " + b"a" * 40_000 + b"\r\n"), answers=(200,
            431), ours=True),
    refused("empty lines without an end", "§2.2", b"\r\n" * 50_000, 431, ours=True, whole=False),
]  # fmt: skip

CASES: list[Case] = [*SYNTAX, *HOSTS, *HOPS, *LIMITS]
