"""The handler of stream-100m: sends as many bytes as the query asks for, or says how many it got."""

import base64

PIECE = b"x" * 65_536


def handler(event, context):
    wanted = int((event.get("queryStringParameters") or {}).get("bytes", 0))
    if not wanted:
        body = event.get("body") or ""
        size = len(base64.b64decode(body)) if event["isBase64Encoded"] else len(body)
        yield {"statusCode": 200, "headers": {"content-type": "text/plain"}}
        yield str(size)
        return
    yield {"statusCode": 200, "headers": {"content-type": "application/octet-stream"}}
    for _ in range(wanted // len(PIECE)):
        yield PIECE
    yield PIECE[: wanted % len(PIECE)]
