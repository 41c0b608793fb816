"""The application of stream-100m: says how many bytes it got, or sends as many as the query asks for."""

PIECE = b"x" * 65_536


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    query = scope["query_string"].decode()
    wanted = int(query.removeprefix("bytes=")) if query else 0
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/octet-stream")]})
    if not wanted:
        await send({"type": "http.response.body", "body": b"%d" % size})
        return
    for _ in range(wanted // len(PIECE)):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": PIECE[: wanted % len(PIECE)]})
