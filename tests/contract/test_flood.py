"""Cases 28, 29 and 37 together: a flood of wrong tokens, silent and slow connections; honest calls take less than a second."""

import http.client
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.contract.instance import Pylb, call, wants
from tests.support.ports import free_port
from tests.support.processes import Processes

FLOODER, SILENT = "127.0.0.66", "127.0.0.67"
FLOOD_THREADS, SILENT_CONNECTIONS, SLOW_CONNECTIONS = 3, 300, 30
BEATS, BEAT, HONEST = 20, 0.25, 1.0  # calls, seconds between two, seconds for each


class Flood(threading.Thread):
    """Wrong tokens without a pause, from one address."""

    def __init__(self, port: int, over: threading.Event) -> None:
        super().__init__(name="flood")
        self.port, self.over = port, over
        self.answers: dict[int, int] = {}

    def run(self) -> None:
        headers = {"Authorization": "Bearer not-a-secret-that-is-known"}
        while not self.over.is_set():
            try:
                status = call(self.port, "PUT", "/v1/registrations/a/b", b"{}", headers, source=FLOODER).status
            except (OSError, http.client.HTTPException):
                status = 0  # cut: its address is over its share
            self.answers[status] = self.answers.get(status, 0) + 1


@pytest.mark.timeout(120)
def test_honest_calls_are_answered_within_a_second_whatever_a_flooder_does(processes: Processes, tmp_path: Path) -> None:
    pylb = Pylb(processes, tmp_path, log={"level": "error"}).start()
    body = wants((free_port(), 30443))
    over = threading.Event()
    floods = [Flood(pylb.webhook, over) for _ in range(FLOOD_THREADS)]
    slowest = 0.0
    with ExitStack() as stack:
        stack.callback(over.set)
        for flood in floods:
            flood.start()
        for number in range(SILENT_CONNECTIONS + SLOW_CONNECTIONS):
            sock = stack.enter_context(socket.socket())
            sock.bind((SILENT, 0))
            sock.settimeout(5)
            sock.connect(("127.0.0.1", pylb.webhook))
            if number >= SILENT_CONNECTIONS:
                sock.sendall(b"PUT /v1/registrations/a/b HTTP/1.1\r\nHost: lb\r\n")
        for number in range(BEATS):
            asked = time.monotonic()
            answer = pylb.put("honest/one", body, source="127.0.0.1" if number % 2 else FLOODER)
            slowest = max(slowest, time.monotonic() - asked)
            assert answer.status in (200, 201), answer.body
            over.wait(BEAT)  # the pace of the beats, not a wait for something
        over.set()
        for flood in floods:
            flood.join(15)
    assert slowest < HONEST
    answers = {status: sum(flood.answers.get(status, 0) for flood in floods) for status in (0, 200, 401, 429)}
    assert answers[200] == 0
    assert answers[401] <= 20 + 20  # the burst, and what a minute adds at most
    assert answers[429] > 100
