"""A stranger cannot make pylb remember: its memory stays where it was under streams of every kind, on every listener."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contract.instance import Pylb
from tests.contract.malformed import CONTROL, HTTP, RUNTIME, TLS, Client, Stream, tcp, tls, unix
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

GROWTH = 40 << 20  # bytes
SHORT, LONG = 3.0, 60.0  # seconds: for all kinds together, and for each alone
FEW, MANY = 2, 8  # clients of each. One that floods a TLS connection fills the loop's 256 KiB for it, as long as it is there
LOOK = 0.05

DOORS = ("webhook", "tls", "inside tls", "admin", "metrics", "control.sock", "haproxy.sock")
KINDS: dict[str, dict[str, Stream]] = dict.fromkeys(DOORS, HTTP) | {
    "tls": TLS,
    "control.sock": CONTROL,
    "haproxy.sock": RUNTIME,
}


class Target:
    def __init__(self, processes: Processes, folder: Path) -> None:
        secure, metrics = free_port(), free_port()
        scraped = {"listen": f"127.0.0.1:{metrics}", "allow": ["127.0.0.1/32"]}
        self.pylb = Pylb(processes, folder, log={"level": "error"}, metrics=scraped)
        plain = {"listen": f"127.0.0.1:{self.pylb.webhook}"}
        self.pylb.configure(webhook=[plain, {"listen": f"127.0.0.1:{secure}", "tls": "self-signed"}])
        self.pylb.start()
        state = self.pylb.state_dir
        self.ways: dict[str, Callable[[], socket.socket]] = {
            "webhook": tcp(self.pylb.webhook),
            "tls": tcp(secure),
            "inside tls": tls(secure),
            "admin": tcp(self.pylb.admin),
            "metrics": tcp(metrics),
            "control.sock": unix(state / "control.sock"),
            "haproxy.sock": unix(state / "haproxy.sock"),
        }

    def rss(self) -> int:
        """Bytes (proc(5))."""
        lines = Path(f"/proc/{self.pylb.running.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) << 10

    def grows_by(self, door: str, streams: list[Stream], seconds: float, count: int) -> int:
        """The most, above what it had before."""
        before = most = self.rss()
        end = time.monotonic() + seconds
        clients = [Client(self.ways[door], stream, end) for stream in streams for _ in range(count)]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            most = max(most, self.rss())
            clients[0].join(LOOK)
            if not clients[0].is_alive():
                for client in clients:
                    client.join(30)
        assert all(sum(one.sent for one in clients if one._stream is stream) for stream in streams)
        eventually(lambda: self.pylb.get("/livez").status == 200, what="an honest call is answered")
        return most - before


@pytest.mark.timeout(120)
@pytest.mark.parametrize("door", DOORS)
def test_memory_stays_where_it_was_under_malformed_streams(door: str, processes: Processes, tmp_path: Path) -> None:
    target = Target(processes, tmp_path)
    assert target.grows_by(door, list(KINDS[door].values()), SHORT, FEW) < GROWTH


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("door", "kind"), [(door, kind) for door, kinds in KINDS.items() for kind in kinds])
def test_memory_stays_where_it_was_under_a_minute_of_each(door: str, kind: str, processes: Processes, tmp_path: Path) -> None:
    target = Target(processes, tmp_path)
    assert target.grows_by(door, [KINDS[door][kind]], LONG, MANY) < GROWTH
