"""A load balancer to call: a real HTTP server on loopback that records what it is asked and answers as told."""

from __future__ import annotations

import http.server
import json
import queue
import ssl
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from phonehome.settings import Settings, parse

WAIT = 10.0  # seconds until a test that waits for something has failed


class Call(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def state(self) -> str:
        return str(self.body.get("state"))


class Answer(NamedTuple):
    status: int = 200
    document: object = None
    headers: tuple[tuple[str, str], ...] = ()
    raw: bytes | None = None


def accepted(result: str = "unchanged", *, generation: int = 1, **extra: Any) -> Answer:
    placed = {"port": 443, "address": "203.0.113.7", "target_port": 30443, "reachable": "yes"}
    document = {
        "result": result,
        "generation": generation,
        "durable": True,
        "lease": {"ttl": 60, "expires_in": 60},
        "frontends": [placed],
        **extra,
    }
    return Answer(201 if result == "created" else 200, document)


def refused(status: int, error: str, detail: str = "", hint: str = "", **headers: str) -> Answer:
    pairs = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Answer(status, {"error": error, "detail": detail, "hint": hint}, pairs)


class LoadBalancer:
    """`calls` is filled as they arrive; `answer` decides what each gets and may block to play a slow server."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.calls: queue.Queue[Call] = queue.Queue()
        self.answer: Callable[[Call], Answer] = lambda _: accepted()
        self.released = threading.Event()  # set at the end of the test: blocked answers go on
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length)) if length else {}
                headers = {name.lower(): value for name, value in self.headers.items()}
                call = Call(self.command, self.path, headers, body)
                outer.calls.put(call)
                answer = outer.answer(call)
                raw = json.dumps(answer.document).encode() if answer.raw is None else answer.raw
                try:
                    self.send_response(answer.status)
                    for name, value in (*answer.headers, ("content-length", str(len(raw)))):
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(raw)
                except OSError:
                    pass  # the caller gave up waiting, as some tests want it to

            do_GET = do_PUT = do_DELETE = handle_any  # noqa: N815  names that http.server looks for

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self.scheme = "https" if context else "http"
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def next(self) -> Call:
        return self.calls.get(timeout=WAIT)

    def next_of(self, state: str) -> Call:
        while (call := self.next()).state != state:
            pass
        return call

    def hold(self, answer: Answer) -> Answer:
        """Blocks until the end of the test."""
        assert self.released.wait(WAIT * 3)
        return answer

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(WAIT)


TOKEN = "correct-horse-battery-staple"
ENVIRON = {
    "PYLB_URL": "http://127.0.0.1:9000",
    "PYLB_TOKEN": TOKEN,
    "PYLB_NAME": "mosquitto",
    "PYLB_FRONTENDS": "443:30443",
}


def no_files(path: str) -> str:
    raise FileNotFoundError(2, "No such file or directory")


def settings_for(*urls: str, **environ: str) -> Settings:
    """Valid settings for these load balancers, with `environ` on top."""
    values = {**ENVIRON, "PYLB_INSTANCE": "pod-1", **environ}
    if urls:
        values["PYLB_URL"] = ",".join(urls)
    return parse(values, hostname="pod-1", read_file=no_files)
