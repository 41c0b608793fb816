"""Cases about where a message ends: lengths, codings, chunks, trailers, keep-alive, pipelines, expectations. RFC 9112 §6, §7 and §9."""

from tests.http.case import HOST, PROBE, Case, chunked, get, post, refused, served

LENGTHS = [
    served("a length", "§6.2", post(b"content-length: 5\r\n", b"hello"), bodies=(b"hello",)),
    served("a length of nothing", "§6.2", post(b"content-length: 0\r\n"), bodies=(b"",)),
    served("a length with zeros in front", "§6.2", post(b"content-length: 0005\r\n", b"hello"), bodies=(b"hello",)),
    served("a length and white space", "§5.1", post(b"content-length: \t5 \t\r\n", b"hello"), bodies=(b"hello",)),
    served("a body that looks like a request", "§6.2", post(b"content-length: %d\r\n" % len(PROBE), PROBE), bodies=(PROBE,)),
    served("a header that only looks like a length", "§6.2", post(b"content_length: 5\r\n"), bodies=(b"",)),
    *(
        refused(f"length {value!r}", "§6.3 (5)", post(b"content-length: " + value + b"\r\n", b"hello"))
        for value in (b"", b"+5", b"-5", b"5.0", b"0x5", b"5e0", b"5,5", b"5, 6", b"5 5", b"five", b'"5"', b"5;", b"1_0", b"\xb2", b"5\x0b",
                      b"18446744073709551616", b"99999999999999999999999", b"9" * 5000)
    ),
    refused("two lengths", "§6.3 (5)", post(b"content-length: 5\r\ncontent-length: 6\r\n", b"hello!")),
    refused("the same length twice", "§6.3 (5)", post(b"content-length: 5\r\ncontent-length: 5\r\n", b"hello")),
    refused("a body over body_bytes_max, refused by its length", "9110 §15.5.14", post(b"content-length: 7000000\r\n"), 413, ours=True),
]  # fmt: skip

CODINGS = [
    served("chunked", "§7.1", chunked(b"5\r\nhello\r\n0\r\n\r\n"), bodies=(b"hello",), without=(b"transfer-encoding",)),
    served("chunked in capitals", "§7", post(b"transfer-encoding: CHUNKED\r\n", b"0\r\n\r\n")),
    refused("coding and length", "§6.1", post(b"transfer-encoding: chunked\r\ncontent-length: 5\r\n", b"0\r\n\r\n")),
    refused("length and coding", "§6.1", post(b"content-length: 5\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("length 0 and coding", "§6.1", post(b"content-length: 0\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("coding in HTTP/1.0", "§6.1", post(b"transfer-encoding: chunked\r\n", b"0\r\n\r\n", b"HTTP/1.0")),
    refused("coding in HTTP/1.0 that asks to be kept", "§6.1",
            post(b"connection: keep-alive\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n", b"HTTP/1.0")),
    *(refused(f"coding {value.decode()}", "§6.1", post(b"transfer-encoding: " + value + b"\r\n", b"0\r\n\r\n"), 501)
      for value in (b"gzip, chunked", b"identity, chunked", b"x, chunked")),
    refused("two coding lines, the last chunked", "§6.1",
            post(b"transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"), 501),
    *(
        refused(f"coding {value!r}", "§6.3 (4)", post(b"transfer-encoding: " + value + b"\r\n", b"0\r\n\r\n"))
        for value in (b"gzip", b"identity", b"chunked, gzip", b"chunked, identity", b"chunked, chunked", b"xchunked", b"chunkedx",
                      b"chunked;q=1", b'"chunked"', b"'chunked'", b"chunked,", b"\x0bchunked", b"", b"chun ked", b"cow")
    ),
    refused("chunked twice on two lines", "§6.1", post(b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("a coding with a space in its name", "§5.1", post(b"transfer-encoding : chunked\r\n", b"0\r\n\r\n")),
    served("a header that only looks like a coding", "§6.1", post(b"transfer_encoding: chunked\r\ncontent-length: 2\r\n", b"hi"),
           bodies=(b"hi",)),
]  # fmt: skip

CHUNKS = [
    served("several chunks", "§7.1", chunked(b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"), bodies=(b"abc",)),
    served("no chunk but the last", "§7.1", chunked(b"0\r\n\r\n"), bodies=(b"",)),
    served("sizes in both cases, zeros in front", "§7.1", chunked(b"000A\r\n0123456789\r\na\r\n0123456789\r\n0000\r\n\r\n"),
           bodies=(b"0123456789" * 2,)),
    served("extensions are ignored", "§7.1.1", chunked(b'2;a;b=c;d="e;f"\r\nhi\r\n0;last\r\n\r\n'), bodies=(b"hi",)),
    served("a chunk that looks like the end", "§7.1", chunked(b"5\r\n0\r\n\r\n\r\n0\r\n\r\n"), bodies=(b"0\r\n\r\n",)),
    served("trailers are read away", "§7.1.2", chunked(b"2\r\nhi\r\n0\r\nx-t: 1\r\nx-u: 2\r\n\r\n"), bodies=(b"hi",),
           without=(b"x-t", b"x-u")),
    served("trailers make nobody somebody", "9110 §6.5.1",
           chunked(b"0\r\nauthorization: x\r\nx-forwarded-for: 192.0.2.1\r\nhost: other\r\n\r\n"),
           lines=(b"host: t",), without=(b"authorization", b"x-forwarded-for")),
    served("trailers of a request that waits its turn", "9110 §6.5.1", get() + chunked(b"0\r\nx-call-id: x\r\n\r\n"), answers=(200, 200)),
    *(
        refused(f"chunk size {size!r}", "§7.1", chunked(size + b"\r\nhello\r\n0\r\n\r\n"))
        for size in (b"", b"0x5", b"+5", b"-5", b" 5", b"5 ", b"5\t", b"5 ;a", b"g", b"5g", b"5,5", b"5.", b"1_0", b"\x005",
                     b"ffffffffffffffffff", b"10000000000000000", b"5;\x00", b"5;a\x7f", b"5;a=\x0b")
    ),
    refused("bare LF behind a size", "§7.1", chunked(b"5\nhello\r\n0\r\n\r\n")),
    refused("bare CR behind a size", "§7.1", chunked(b"5\rhello\r\n0\r\n\r\n")),
    refused("bare LF in an extension", "§7.1.1", chunked(b"5;a\nhello\r\n0\r\n\r\n")),
    refused("bare CR in an extension", "§7.1.1", chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n")),
    refused("bare LF behind a chunk", "§7.1", chunked(b"5\r\nhello\n0\r\n\r\n")),
    refused("nothing behind a chunk", "§7.1", chunked(b"5\r\nhello0\r\n\r\n")),
    refused("a chunk longer than its size", "§7.1", chunked(b"4\r\nhello\r\n0\r\n\r\n")),
    refused("a chunk shorter than its size", "§7.1", chunked(b"6\r\nhello\r\n0\r\n\r\n")),
    refused("bare LF behind the last size", "§7.1", chunked(b"0\n\r\n")),
    refused("bare LF as the end", "§7.1", chunked(b"0\r\n\n")),
    refused("bare LF behind a trailer", "§7.1.2", chunked(b"0\r\nx-t: 1\n\r\n")),
    refused("a folded trailer", "§5.2", chunked(b"0\r\nx-t: 1\r\n 2\r\n\r\n")),
    refused("space before a trailer's colon", "§5.1", chunked(b"0\r\nx-t : 1\r\n\r\n")),
    refused("NUL in a trailer", "§7.1.2", chunked(b"0\r\nx-t: \x00\r\n\r\n")),
    refused("a length among the trailers", "9110 §6.5.1", chunked(b"0\r\ncontent-length: 5\r\n\r\n")),
    refused("a coding among the trailers", "9110 §6.5.1", chunked(b"0\r\ntransfer-encoding: chunked\r\n\r\n")),
    refused("a chunk larger than body_bytes_max", "9110 §15.5.14", chunked(b"700000\r\n" + bytes(0x700000) + b"\r\n0\r\n\r\n"), 413,
            ours=True),
    refused("an extension without an end", "§7.1.1", chunked(b"1;" + b"a" * 200_000), ours=True, whole=False),
    refused("extensions that outweigh the content", "§7.1.1", chunked((b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 3000 + b"0\r\n\r\n"),
            ours=True),
    refused("trailers without an end", "§7.1.2", chunked(b"0\r\n" + b"x-t: 1\r\n" * 20_000), ours=True, whole=False),
    refused("a trailer without an end", "§7.1.2", chunked(b"0\r\nx-t: " + b"1" * 200_000), ours=True, whole=False),
]  # fmt: skip

CONNECTIONS = [
    served("kept by default", "§9.3", get()),
    served("kept when asked to", "§9.3", get(headers=b"connection: keep-alive\r\n"), without=(b"connection",)),
    served("closed when asked to", "§9.6", get(headers=b"connection: close\r\n"), kept=False),
    served("three in one go", "§9.3.2", get() * 3, answers=(200, 200, 200)),
    served("bodies of all kinds in one go", "§9.3.2",
           post(b"content-length: 1\r\n", b"a") + chunked(b"1\r\nb\r\n0\r\n\r\n") + get() + post(b"content-length: 1\r\n", b"c"),
           answers=(200, 200, 200, 200), bodies=(b"a", b"b", b"", b"c")),
    served("more in one go than wait at once", "§9.3.2", get() * 40, answers=(200,) * 40),
    served("thousands in one go, which need no function", "§9.3.2", get() + b"GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n" * 4000,
           answers=(200,) * 4001, ours=True),
    served("thousands in one go, which are refused", "§9.3.2", get() + get(b"/function/nobody") * 3000,
           answers=(200,) + (404,) * 3000, ours=True),
    served("thousands of upgrades in one go", "9110 §7.8", get(b"/healthz", b"connection: upgrade\r\nupgrade: x\r\n") * 2000,
           answers=(200,) * 2000, ours=True),
    served("nothing behind close is answered", "§9.6", get(headers=b"connection: close\r\n") + get(), kept=False),
    refused("good requests before a bad one are answered", "§9.3.2", get() + get() + get(headers=b"x : 1\r\n") + get(),
            answers=(200, 200, 400)),
    refused("a bad body behind a good request", "§9.3.2", get() + chunked(b"z\r\n") + get(), answers=(200, 400)),
    refused("a bad method behind a good request", "§9.3.2", get() + b"BREW / HTTP/1.1\r\n" + HOST + b"\r\n", answers=(200, 501)),
    served("a function that is not there keeps the connection", "9110 §15.5.5", get(b"/function/nobody"), answers=(404,), ours=True),
    served("100-continue", "9110 §10.1.1", post(b"expect: 100-continue\r\ncontent-length: 2\r\n", b"hi"), answers=(100, 200),
           bodies=(b"hi",), without=(b"expect",)),
    served("100-continue and no body yet", "9110 §10.1.1", post(b"expect: 100-continue\r\ncontent-length: 2\r\n"), answers=(100, 400),
           kept=False,
           whole=False),
    served("100-continue, refused at once", "9110 §10.1.1", post(b"expect: 100-continue\r\ncontent-length: 7000000\r\n"), answers=(413,),
           kept=False,
           ours=True),
    served("100-continue in HTTP/1.0 is ignored", "9110 §10.1.1",
           post(b"expect: 100-continue\r\ncontent-length: 2\r\n", b"hi", b"HTTP/1.0"), kept=False,
           bodies=(b"hi",)),
    served("100-continue without a body", "9110 §10.1.1", get(headers=b"expect: 100-continue\r\n")),
    served("an expectation nobody knows", "9110 §10.1.1", post(b"expect: miracles\r\ncontent-length: 2\r\n", b"hi"), bodies=(b"hi",),
           ours=True),
    served("a client that sends no more is answered", "§9.6", get(), kept=False, whole=False),
    served("a client that sends no more is answered everything", "§9.6", get() * 3, answers=(200, 200, 200), kept=False, whole=False),
    refused("half a head", "§8", b"GET /function/hello HTTP/1.1\r\nhost", whole=False),
    refused("half a body", "§8", post(b"content-length: 5\r\n", b"hel"), whole=False),
    refused("half a chunked body", "§8", chunked(b"5\r\nhel"), whole=False),
    refused("a chunked body without its end", "§8", chunked(b"5\r\nhello\r\n"), whole=False),
    refused("half a request behind a whole one", "§8", get() + b"GET /func", answers=(200, 400), whole=False),
    served("nothing at all", "§8", b"", answers=(), kept=False, whole=False),
]  # fmt: skip

CASES: list[Case] = [*LENGTHS, *CODINGS, *CHUNKS, *CONNECTIONS]
