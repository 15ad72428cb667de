"""The calls of the registrations scenario as they look on the wire."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bench.processes import Address, BenchError
from bench.registrations import Caller


class Webhook(HTTPServer):
    """Answers every call with `status` and keeps what it was sent."""

    status = 201

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.calls: list[tuple[str, str, str, bytes]] = []


class Answer(BaseHTTPRequestHandler):
    server: Webhook

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.calls.append((self.command, self.path, self.headers["Authorization"], body))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b'{"error":"port_owned","detail":"held by mqtt"}')

    do_PUT = do_DELETE = answer  # noqa: N815 - names that http.server looks for

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_registration_names_its_frontend_and_carries_the_token(webhook):
    caller = Caller(Address("127.0.0.1", webhook.server_port), token="secret", target=Address("127.0.0.1", 21000))

    assert 0 < caller.put("app-20000", 20000) < 10
    assert 0 < caller.delete("app-20000") < 10

    put, delete = webhook.calls
    assert put[:3] == ("PUT", "/v1/registrations/app-20000/bench", "Bearer secret")
    assert json.loads(put[3]) == {"frontends": [{"port": 20000, "target_port": 21000}], "address": "127.0.0.1", "ttl": 3600}
    assert delete == ("DELETE", "/v1/registrations/app-20000/bench", "Bearer secret", b"")


def test_a_webhook_that_is_not_there_ends_the_scenario_too(wiring):
    with pytest.raises(BenchError, match=r"DELETE of registration app-1 got no answer: ConnectionRefusedError"):
        Caller(wiring.webhook, token="secret", target=Address("127.0.0.1", 21000)).delete("app-1")


def test_a_refused_call_ends_the_scenario_with_the_reason_that_was_given(webhook):
    webhook.status = 409
    caller = Caller(Address("127.0.0.1", webhook.server_port), token="secret", target=Address("127.0.0.1", 21000))

    with pytest.raises(BenchError, match=r"PUT of registration app-1 was answered 409(.|\n)*held by mqtt"):
        caller.put("app-1", 20001)
