"""An API server by script, for what a real one does not do on demand: each request gets the next step of its list.

`Cluster` answers by what it stores instead: a small API server of any age.
"""

from __future__ import annotations

import http.server
import json
import queue
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.phonehome.peer import WAIT


class Step(NamedTuple):
    """`chunks` are sent one after another; then the stream ends, properly or with `cut` in the middle, or goes on in silence
    until the test ends (`hold`)."""

    status: int = 200
    chunks: Iterable[bytes] = ()
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    hold: bool = False


def listing(*items: dict[str, Any], version: str = "10", token: str = "") -> Step:
    meta = {"resourceVersion": version, **({"continue": token} if token else {})}
    return Step(chunks=[json.dumps({"kind": "List", "metadata": meta, "items": list(items)}).encode()])


def event(kind: str, found: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": found}).encode() + b"\n"


def bookmark(version: str) -> bytes:
    return event("BOOKMARK", {"kind": "Node", "metadata": {"resourceVersion": version}})


def gone() -> bytes:
    return event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})


def status(code: int, message: str = "", **headers: str) -> Step:
    document = {"kind": "Status", "code": code, "message": message}
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Step(code, [json.dumps(document).encode()], pairs)


def node(name: str, version: str = "1") -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": version}, "status": {"addresses": []}}


class Scripted:
    """After the last step it goes on with `rest` for every request. `requests` are (path, query) as they come."""

    def __init__(self, *steps: Step, rest: Step | None = None) -> None:
        self.requests: queue.Queue[tuple[str, dict[str, str]]] = queue.Queue()
        self.tokens: list[str] = []
        self.count = 0
        self._steps = list(steps)
        self._rest = rest or Step(chunks=[bookmark("99")], hold=True)
        self._lock = threading.Lock()
        self._end = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                outer.handle(self)

            do_GET = do_PATCH = do_POST = handle_any  # noqa: N815  names that http.server looks for

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def handle(self, request: http.server.BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        text = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            self.count += 1
            self.tokens.append(request.headers.get("Authorization", ""))
        step = self.step(request.command, url.path, query, json.loads(text) if text else {})
        self.requests.put((url.path, query))
        try:
            request.send_response(step.status)
            for name, value in (*step.headers, ("Transfer-Encoding", "chunked"), ("Connection", "close")):
                request.send_header(name, value)
            request.end_headers()
            for chunk in step.chunks:
                request.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                request.wfile.flush()
            if step.hold:
                self._end.wait(WAIT * 3)
            if not step.cut:
                request.wfile.write(b"0\r\n\r\n")
        except OSError:
            pass  # the caller gave up, as some tests want it to
        request.close_connection = True

    def step(self, method: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Step:  # noqa: ARG002
        with self._lock:
            return self._steps.pop(0) if self._steps else self._rest

    def next(self) -> dict[str, str]:
        """The query of the next request."""
        return self.requests.get(timeout=WAIT)[1]

    def close(self) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT)


Serve = Callable[..., Scripted]
