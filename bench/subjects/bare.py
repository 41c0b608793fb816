"""The limit: a handler behind its own socket, one process, epoll and httptools, and nothing else: no token, no limits, no log.

`python bare.py FILE.py direct|event PORT`. Started as a baseline by bench/contenders.py, with whatever Python has httptools.
"""

import importlib.util
import json
import select
import socket
import sys
from urllib.parse import parse_qsl

import httptools


class Connection:
    """One client: parses, calls the handler, collects answers until the caller sends them in one piece."""

    def __init__(self, client, handle):
        self.client = client
        self.handle = handle
        self.parser = httptools.HttpRequestParser(self)
        self.answers = []

    def on_message_begin(self):
        self.url, self.body, self.headers = b"", b"", {}

    def on_url(self, url):
        self.url += url

    def on_header(self, name, value):
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.answers.append(self.handle(self))


def answer(status, headers, body):
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} OK\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body


def direct(handler):
    def handle(request):
        result = handler(json.loads(request.body), None)
        return answer(200, {"content-type": "application/json"}, json.dumps(result).encode())

    return handle


def event(handler):
    def handle(request):
        path, _, query = request.url.decode().partition("?")
        http = {"method": request.parser.get_method().decode(), "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"}
        result = handler(
            {
                "version": "2.0",
                "routeKey": "$default",
                "rawPath": path,
                "rawQueryString": query,
                "headers": request.headers,
                "queryStringParameters": dict(parse_qsl(query)),
                "requestContext": {"http": http, "requestId": "0"},
                "body": request.body.decode(),
                "isBase64Encoded": False,
            },
            None,
        )
        return answer(result["statusCode"], result["headers"], result["body"].encode())

    return handle


def serve(port, handle):
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    connections = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[client.fileno()] = Connection(client, handle)
                epoll.register(client, select.EPOLLIN)
                continue
            connection = connections[fd]
            if not serve_one(connection):
                epoll.unregister(fd)
                del connections[fd]
                connection.client.close()


def serve_one(connection):
    """Take what has come and answer it; False when the client has left."""
    try:
        data = connection.client.recv(65536)
        if not data:
            return False
        connection.parser.feed_data(data)
        if connection.answers:
            connection.client.sendall(b"".join(connection.answers))
            connection.answers.clear()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("subject", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    serve(int(sys.argv[3]), {"direct": direct, "event": event}[sys.argv[2]](module.handler))
