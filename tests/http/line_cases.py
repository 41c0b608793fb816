"""Cases about the first line: methods, targets, versions, and what stands before it. RFC 9112 §2 and §3, RFC 9110 §7.1 and §9."""

from tests.http.case import HOST, Case, get, refused, served

F = b"/function/hello"


def line(first: bytes) -> bytes:
    """A head with this first line and a Host."""
    return first + b"\r\n" + HOST + b"\r\n"


METHODS = [
    *(
        served(f"method {m}", "9110 §9.3", line(f"{m} ".encode() + F + b" HTTP/1.1"), lines=(m.encode(),))
        for m in ("GET", "DELETE", "OPTIONS")
    ),
    *(
        served(
            f"method {m} with a length",
            "9110 §9.3",
            f"{m} /function/hello HTTP/1.1\r\nhost: t\r\ncontent-length: 2\r\n\r\nhi".encode(),
            lines=(m.encode(),),
            bodies=(b"hi",),
        )
        for m in ("POST", "PUT", "PATCH", "GET", "DELETE", "OPTIONS")
    ),
    *(
        served(f"method {m} without a length has no body", "§6.3 (7)", line(f"{m} ".encode() + F + b" HTTP/1.1"), bodies=(b"",))
        for m in ("POST", "PUT", "PATCH")
    ),
    served("HEAD: a length and no body", "9110 §9.3.2", line(b"HEAD " + F + b" HTTP/1.1"), heads=(0,), lines=(b"HEAD",)),
    served("HEAD and GET in one go", "9110 §9.3.2", line(b"HEAD " + F + b" HTTP/1.1") + get(), answers=(200, 200), heads=(0,)),
    served("OPTIONS *", "§3.2.4", line(b"OPTIONS * HTTP/1.1"), ours=True),
    served("OPTIONS of an address without a path", "§3.2.4", line(b"OPTIONS http://t HTTP/1.1"), ours=True),
    refused("GET *", "§3.2.4", line(b"GET * HTTP/1.1")),
    refused("TRACE is not served", "9110 §9.3.8", line(b"TRACE " + F + b" HTTP/1.1"), 405),
    refused("CONNECT is not served", "9110 §9.3.6", b"CONNECT t:443 HTTP/1.1\r\nhost: t:443\r\n\r\n", 405),
    refused("CONNECT, and bytes of a tunnel behind it", "9110 §9.3.6", b"CONNECT t:443 HTTP/1.1\r\nhost: t:443\r\n\r\n\x16\x03\x01", 405),
    *(
        refused(f"method {m} is known and not served", "9110 §9.1", line(f"{m} ".encode() + F + b" HTTP/1.1"), 405)
        for m in ("PROPFIND", "PURGE")
    ),
    *(
        refused(f"method {m} is unknown", "9110 §9.1", line(f"{m} ".encode() + F + b" HTTP/1.1"), 501)
        for m in ("BREW", "get", "GETS", "G-T")
    ),
    refused("method with a bracket", "9110 §9.1", line(b"G(T " + F + b" HTTP/1.1")),
    refused("method with a NUL", "9110 §9.1", line(b"GE\x00T " + F + b" HTTP/1.1")),
    refused("no method", "§3", line(b" " + F + b" HTTP/1.1")),
    refused("method and nothing else", "§3", line(b"GET")),
]

TARGETS = [
    served("path below the function", "9110 §4.2", get(F + b"/a/b"), lines=(b"/a/b",)),
    served("escapes stay as they are", "9110 §4.2.3", get(F + b"/a%20b%2Fc%2e%2E/%ff"), lines=(b"/a%20b%2Fc%2e%2E/%ff",)),
    served("dots are the function's to resolve", "9110 §4.2.3", get(F + b"/a/../b/./c"), lines=(b"/a/../b/./c",)),
    served("slashes are not merged", "9110 §4.2.3", get(F + b"//a///b/"), lines=(b"//a///b/",)),
    served("query as it is", "§3.2.1", get(F + b"?a=1&a=2&b=%20+?x/y"), lines=(b"a=1&a=2&b=%20+?x/y",)),
    served("empty query", "§3.2.1", get(F + b"?")),
    served("every character that may stand in a path", "9110 §4.1", get(F + b"/-._~!$&'()*+,;=:@"), lines=(b"/-._~!$&'()*+,;=:@",)),
    served("characters that browsers leave unescaped", "§3.2", get(F + b"/?{|}^`[]"), lines=(b"{|}^`[]",)),
    served("absolute-form", "§3.2.2", get(b"http://t/function/hello/x?y=1"), lines=(b"/x", b"y=1", b"host: t"), without=(b"http",)),
    served("absolute-form wins over Host", "§3.2.2", get(b"http://other:81/function/hello"), lines=(b"host: other:81",)),
    served("absolute-form, scheme in capitals", "§3.2.2", get(b"HTTP://t/function/hello")),
    served("absolute-form of https, as behind a proxy", "§3.2.2", get(b"https://t/function/hello"), ours=True),
    refused("absolute-form without Host", "§3.2.2", b"GET http://t/function/hello HTTP/1.1\r\n\r\n"),
    refused("absolute-form without a host", "9110 §4.2.1", get(b"http:///function/hello")),
    refused("absolute-form with a port alone", "9110 §4.2.1", get(b"http://:80/function/hello")),
    refused("absolute-form with a user", "9110 §4.2.4", get(b"http://u:p@t/function/hello")),
    refused("absolute-form of another scheme", "§3.2.2", get(b"ftp://t/function/hello")),
    refused("authority-form without CONNECT", "§3.2.3", get(b"t:80")),
    refused("target without a slash", "§3.2", get(b"function/hello")),
    refused("fragment", "§3.2", get(F + b"#top")),
    refused("fragment behind a query", "§3.2", get(F + b"?a#top")),
    *(refused(f"byte {b:#04x} in the target", "§3.2", get(F + b"/" + bytes([b]))) for b in (0, 1, 9, 11, 12, 0x1F, 0x7F, 0x80, 0xE9, 0xFF)),
    refused("space in the target", "§3.2", get(F + b"/a b")),
    refused("CR in the target", "§3.2", get(F + b"/a\rb")),
    refused("no target", "§3", line(b"GET HTTP/1.1")),
    refused("no target but its spaces", "§3", line(b"GET  HTTP/1.1")),
]

VERSIONS = [
    served("HTTP/1.0 closes", "§9.3", b"GET /function/hello HTTP/1.0\r\n\r\n", kept=False),
    served("HTTP/1.0 needs no Host", "§3.2", b"GET /function/hello HTTP/1.0\r\nx-a: 1\r\n\r\n", kept=False, lines=(b"x-a: 1",)),
    served("HTTP/1.0 that asks to be kept", "§9.3", b"GET /function/hello HTTP/1.0\r\nconnection: keep-alive\r\n\r\n"),
    served("HTTP/1.0 with a body", "§6.3", b"POST /function/hello HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi", kept=False, bodies=(b"hi",)),
    refused("HTTP/1.0 with two Hosts", "§3.2", b"GET /function/hello HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n"),
    refused("HTTP/0.9, spelled out", "9110 §15.6.6", line(b"GET " + F + b" HTTP/0.9"), 505),
    *(refused(f"HTTP/{v}", "9110 §15.6.6", line(b"GET " + F + b" HTTP/" + v.encode()), 505)
    for v in ("1.2", "1.9", "2.0", "3.0", "9.9", "0.0")),
    refused("the preface of HTTP/2", "9110 §15.6.6", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    *(
        refused(f"version {v!r}", "§2.3", line(b"GET " + F + b" " + v))
        for v in (b"HTTP/1.1.1", b"HTTP/11", b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/01.1", b"HTTP/1.10", b"http/1.1", b"HTTP 1.1",
                  b"HTTP/1,1", b"HTTP/+1.1", b"HTTP/x.y", b"HTTPS/1.1", b"HTP/1.1", b"HTTP/1.1 x", b"HTTP/1.1\x00", b"/HTTP/1.1")
    ),
]  # fmt: skip

AROUND = [
    served("an empty line before a request", "§2.2", b"\r\n" + get()),
    served("empty lines between requests", "§2.2", get() + b"\r\n\r\n" + get(), answers=(200, 200)),
    served("a bare LF before a request is an empty line", "§2.2", b"\n" + get(), ours=True),
    served("two spaces are one", "§3", line(b"GET  " + F + b"  HTTP/1.1")),
    refused("space before the method", "§2.2", b" " + get()),
    refused("tab between the parts", "§3", line(b"GET\t" + F + b" HTTP/1.1")),
    refused("space behind the version", "§3", line(b"GET " + F + b" HTTP/1.1 ")),
    refused("bare LF behind the first line", "§2.2", b"GET /function/hello HTTP/1.1\n" + HOST + b"\r\n"),
    refused("bare LF everywhere", "§2.2", b"GET /function/hello HTTP/1.1\nhost: t\n\n"),
    refused("bare CR behind the first line", "§2.2", b"GET /function/hello HTTP/1.1\r" + HOST + b"\r\n"),
    refused("a first line that begins with a NUL", "§2.2", b"\x00" + get()),
    refused("TLS at the plain port", "§3", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)),
    refused("an answer instead of a request", "§3", b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
    refused("a byte order mark", "§2.2", b"\xef\xbb\xbf" + get()),
]

CASES: list[Case] = [*METHODS, *TARGETS, *VERSIONS, *AROUND]
