"""A reward server for tests, that answers as it is told and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """`body` is sent as it is; `drop` closes the connection in its place."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False


def scores(values: list[Any], **changes: Any) -> Answer:
    return Answer(json.dumps({"scores": values}).encode(), **changes)


def lengths(request: dict[str, Any]) -> Answer:
    return scores([float(len(response)) for response in request["responses"]])


@dataclass
class Served:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)  # bodies
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[dict[str, Any]], Answer], port: int = 0) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            served.requests.append(request)
            served.headers.append(dict(self.headers))
            given = answer(request)
            time.sleep(given.delay)
            if given.drop:
                self.connection.close()
                return
            self.send_response(given.status)
            for name, value in given.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in given.headers:
                self.send_header("Content-Length", str(len(given.body)))
            self.end_headers()
            self.wfile.write(given.body)

        def do_GET(self) -> None:
            served.requests.append({"method": "GET"})
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the client has gone

    server = Server(("127.0.0.1", port), Handler)
    served = Served(url=f"http://127.0.0.1:{server.server_address[1]}/score")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
