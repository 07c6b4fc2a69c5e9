"""A server on the loopback that answers as much of wandb's protocol as a run needs, or refuses, or never answers."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = int | str  # an HTTP status, or "hang"


class WandbServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, graphql: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.graphql = graphql
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, str, bytes]] = []
        self.closing = threading.Event()

    def paths(self) -> set[str]:
        return {path for _, path, _ in self.requests}

    def runs(self) -> set[str]:
        """Ids of the runs that metrics came for."""
        return {path.split("/")[4] for path in self.paths() if path.endswith("/file_stream")}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.server.requests.append((self.command, self.path, body))
        answer = self.server.graphql if self.path == "/graphql" else 200
        if answer == "hang":
            self.server.closing.wait()
            return
        data = json.dumps({"data": self._data(json.loads(body))} if self.path == "/graphql" else {}).encode()
        self.send_response(int(answer))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815  (names that http.server asks for)

    def _data(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        if "upsertBucket" in query:
            project = {"id": "p", "name": "tests", "entity": {"id": "e", "name": "somebody"}}
            bucket = {"id": "b", "name": variables.get("name"), "displayName": "d", "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.server.url}/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        return {}

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def wandb_server(*, graphql: Answer = 200) -> Iterator[WandbServer]:
    """`graphql` answers what begins and describes a run."""
    server = WandbServer(graphql)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
