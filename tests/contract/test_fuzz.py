"""The webhook under whatever bytes arrive: no 5xx, no growth, nothing changed, and an honest call is answered meanwhile.

`python -m tests.contract.test_fuzz MINUTES` (make fuzz-webhook) is the long run; the test is a few seconds of it.
"""

import json
import random
import re
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.contract.instance import Pylb, secret, token, wants
from tests.support.ports import free_port
from tests.support.processes import Processes

MANY = 1_000_000
GROWTH = 16 << 20  # bytes of resident memory between the first tenth of a run and its end
HONEST = 1.0  # seconds for an honest call
GREETING = 3  # lines: where it listens, its config, what it serves; every other one is an error
BEAT = 0.5  # seconds between two of them
PLAIN = {"frontends": [{"port": 20000, "target_port": 30443, "weight": 1}], "address": None, "ttl": 60, "state": "ready"}
ODD = [
    *("443 ", 443.0, True, -1, 0, 65536, 1e400, None, "", [], {}, "\x00", "\ud800", "é" * 300, 10**40, "127.0.0.1", "::1"),
    *("169.254.169.254", "0.0.0.0", "tcp", {"http": "/"}, [[[[[[]]]]]], "NaN", "'; rm -rf /", "../../etc/passwd"),
]
PATHS = [
    *("/v1/registrations/app/one", "/v1/registrations/a%2Fb/%00", "/v1/registrations//", "/v1/whoami", "/hooks/update-haproxy"),
    *(
        "/openapi.json",
        "/",
        "*",
        "//",
        "/v1/registrations/" + "x" * 3000 + "/y",
        "/%ff",
        "/v1/../v1/whoami",
        "http://x/v1/whoami",
    ),
]
METHODS = ["PUT", "POST", "GET", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE", "put", "P\x00T", ""]


class Fuzz:
    """Requests of one seed. The token that some carry is valid, and may be used from nowhere: all are refused."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def request(self) -> bytes:
        draw = self.random
        body = self.body()
        method, version = draw.choice(METHODS[:4] * 4 + METHODS), draw.choice(["1.1"] * 8 + ["1.0", "2", "9.9", ""])
        lines = [f"{method} {draw.choice(PATHS)} HTTP/{version}"]
        length = draw.choice([len(body)] * 6 + [0, 1, -1, 10**9, "x", ""])
        headers = [
            f"Host: {draw.choice(['lb', '', 'a b', '[::1]'])}",
            f"Authorization: {draw.choice(['Bearer ', 'bearer  ', ''])}{secret('nowhere')}",
            f"X-Funkypenguin-Token:{secret('nowhere')}",
            f"X-Forwarded-For: {draw.choice(ODD)!r}",
            *("Expect: 100-continue", "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Connection: keep-alive, close"),
            *(
                f"Content-Length: {length}",
                "A" * draw.choice([10, 5000]) + ": b",
                ": x",
                "\x00",
                "Content-Type: application/json",
            ),
        ]
        lines += [line for line in headers[:3] if draw.random() < 0.8]
        lines += [line for line in headers[3:] if draw.random() < 0.15]
        if draw.random() < 0.8:
            lines.append(f"Content-Length: {len(body)}")
        raw = "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body
        return self.mutated(raw) if draw.random() < 0.3 else raw

    def body(self) -> bytes:
        draw = self.random
        kind = draw.randrange(8)
        if kind == 0:
            return draw.randbytes(draw.choice([0, 1, 100, 4096, 4097, 70_000]))
        if kind == 1:
            return draw.choice([b"[" * 5000, b'{"a":' * 2000, b'{"frontends":[],"frontends":[]}', b"NaN", b'"\xff"', b"null"])
        if kind == 2:
            keys = ("dst-ip", "frontend-port", "backend-port", "action", "name", "send-proxy")
            legacy = {key: draw.choice([*ODD, "20000", "add"]) for key in keys}
            return json.dumps(legacy).encode("utf-8", "surrogatepass")
        found: dict[str, Any] = json.loads(json.dumps(PLAIN))
        for _ in range(draw.randrange(4)):
            inner = found["frontends"][:1] if isinstance(found.get("frontends"), list) else []
            place: Any = draw.choice([found, *(one for one in inner if isinstance(one, dict))])
            place[draw.choice([*place, "port", "health", "ttl", "extra"])] = draw.choice(ODD)
            if found.get("frontends") is not None and not isinstance(found["frontends"], list):
                break
        return json.dumps(found).encode("utf-8", "surrogatepass")

    def mutated(self, raw: bytes) -> bytes:
        draw, data = self.random, bytearray(raw)
        for _ in range(draw.randrange(1, 8)):
            place = draw.randrange(len(data) + 1)
            match draw.randrange(4):
                case 0:
                    data[place:place] = draw.randbytes(draw.randrange(1, 9))
                case 1:
                    del data[place : place + draw.randrange(1, 40)]
                case 2 if place < len(data):
                    data[place] ^= 1 << draw.randrange(8)
                case _:
                    data += data[place : place + draw.randrange(1, 200)]
        return bytes(data)


def exchange(port: int, raw: bytes, wait: float = 2.0) -> bytes:
    """What came back until the other side closed, or fell silent: it may wait for more of the request."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as sock, suppress(OSError):
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        while more := sock.recv(65536):
            got += more
    return got


def memory(pid: int) -> int:
    """Resident bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def state(pylb: Pylb) -> Any:
    table = pylb.get("/v1/table").json
    return table["generation"], table["frontends"], sorted(pylb.registrations())


def fuzz(processes: Processes, folder: Path, seconds: float, seed: int) -> int:
    """How many requests were sent. Raises AssertionError for whatever must not happen."""
    pylb = Pylb(processes, folder)
    limits = {"burst": MANY, "rate": MANY, "lockout": MANY}
    nowhere = token("nowhere", sources=["192.0.2.1/32"])
    listener = {"listen": f"127.0.0.1:{pylb.webhook}", "limits": limits}
    pylb.configure(webhook=listener, tokens=[token("app"), nowhere], log={"level": "error", "calls": "changes"})
    pylb.start()
    body = wants((free_port(), 30443), ttl=None)
    assert pylb.put("honest/one", body).status == 201
    time_of = time.monotonic
    fuzzed, before, sent, early = Fuzz(seed), state(pylb), 0, 0
    began = beat = time_of()
    while (elapsed := time_of() - began) < seconds:
        for _ in range(100):
            raw = fuzzed.request()
            answers = exchange(pylb.webhook, raw)
            found = [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3})", answers)]
            assert all(status < 500 for status in found), (raw, answers)
            sent += 1
        assert len(said := pylb.running.text().splitlines()) <= GREETING, "\n".join(said[GREETING:])
        asked = time_of()
        if asked - beat >= BEAT:
            beat, answer = asked, pylb.put("honest/one", body)
            assert (answer.status, answer.json["result"]) == (200, "unchanged")
            assert time_of() - asked < HONEST
        if not early and elapsed > seconds / 10:
            early = memory(pylb.running.pid)
    now = state(pylb)
    assert now[1:] == before[1:], "a refused call has changed something"
    assert memory(pylb.running.pid) - (early or 1 << 62) < GROWTH
    return sent


@pytest.mark.timeout(90)
def test_a_few_seconds_of_whatever_bytes(processes: Processes, tmp_path: Path) -> None:
    assert fuzz(processes, tmp_path, 6.0, seed=1) >= 100


def main(minutes: float, seed_text: str = "") -> None:
    seed = int(seed_text) if seed_text else random.randrange(1 << 32)
    sys.stdout.write(f"seed {seed}, {minutes:g} minutes\n")
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        began = time.monotonic()
        sent = fuzz(processes, Path(folder), minutes * 60, seed)
        sys.stdout.write(f"{sent} requests in {time.monotonic() - began:.0f} s: no 5xx, no growth, nothing changed\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:3])
