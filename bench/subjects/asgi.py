"""The same handlers as routes of a Starlette application, called in its own process; SUBJECT names the module. Under uvicorn."""

import importlib
import os

from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

handler = importlib.import_module(os.environ["SUBJECT"]).handler
PIECE = b"x" * 65_536


async def direct(request):
    return JSONResponse(handler(await request.json(), None))


async def event(request):
    http = {"method": request.method, "path": request.url.path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"}
    result = handler(
        {
            "version": "2.0",
            "routeKey": "$default",
            "rawPath": request.url.path,
            "rawQueryString": request.url.query,
            "headers": dict(request.headers),
            "queryStringParameters": dict(request.query_params),
            "requestContext": {"http": http, "requestId": "0"},
            "isBase64Encoded": False,
        },
        None,
    )
    return Response(result["body"], result["statusCode"], result["headers"])


async def down(request):
    wanted = int(request.query_params["bytes"])

    async def pieces():
        for _ in range(wanted // len(PIECE)):
            yield PIECE
        yield PIECE[: wanted % len(PIECE)]

    return StreamingResponse(pieces(), media_type="application/octet-stream")


async def up(request):
    size = 0
    async for piece in request.stream():
        size += len(piece)
    return PlainTextResponse(str(size))


app = Starlette(
    routes=[
        Route("/", direct, methods=["POST"]),
        Route("/stream", down),
        Route("/stream", up, methods=["POST"]),
        Route("/{path:path}", event),
    ]
)
