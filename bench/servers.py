"""More baselines: what people put in front of Python who have no platform. Started, called and ended like those of contenders.py."""

import os
import tempfile
from pathlib import Path
from typing import ClassVar

from bench.contenders import Bare, Baseline, baselines, baselines_python, free_port

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/log crit; worker_rlimit_nofile 4096;
events {{ worker_connections 2048; }}
http {{
  access_log off; keepalive_requests 100000000; client_max_body_size 8m; client_body_buffer_size 64k; proxy_buffers 16 16k;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  upstream worker {{ server 127.0.0.1:{worker}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=512;
    location / {{ proxy_pass http://worker; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


class Starlette(Baseline):
    """The handler within the server: uvicorn on uvloop and httptools, one process, nothing between."""

    name = "uvicorn + Starlette"
    flags: ClassVar[list[str]] = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]

    def command(self, port: int) -> list[str]:
        return [baselines_python(), "-m", "uvicorn", "asgi:app", "--host", "127.0.0.1", "--port", str(port), *self.flags]

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | {"SUBJECT": self.kind}


class Nginx(Baseline):
    """A proxy that keeps its connections to the bare handler: what a hop through C costs."""

    name = "nginx → bare handler"

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.worker = Bare(kind)
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def command(self, port: int) -> list[str]:
        assert self.folder is not None
        text = NGINX.format(folder=self.folder.name, worker=self.worker.address[1], port=port)
        configuration = Path(self.folder.name) / "nginx.conf"
        configuration.write_text(text)
        return [nginx(), "-p", self.folder.name, "-c", str(configuration)]

    def begin(self, port: int = 0) -> float:
        self.folder = tempfile.TemporaryDirectory(prefix="nginx-")
        self.worker.start()
        return super().begin(port or free_port())

    def roots(self) -> list[int]:
        return [*super().roots(), *self.worker.roots()]

    def stop(self) -> None:
        super().stop()
        self.worker.stop()
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None


def nginx() -> str:
    """Its program; scripts/bench fetches it where Debian's archive can be had."""
    return os.environ.get("DAYFLY_BENCH_NGINX", "")


def more_baselines(kind: str) -> list[Baseline]:
    """Those of contenders.py and these, as far as they can be run here."""
    found = baselines(kind)
    if baselines_python():
        found.append(Starlette(kind))
        if nginx():
            found.append(Nginx(kind))
    return found


def missing() -> dict[str, str]:
    """For the report: which of them could not be had."""
    if baselines_python() and not nginx():
        return {"without": "nginx (apt-get could not fetch it)"}
    return {}
