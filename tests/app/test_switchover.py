"""Two database nodes of which one is primary, as Patroni says by HTTP: pylb beside a real haproxy, on the same servers."""

import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Self

import pytest

from tests.app.instance import Instance
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

INTERVAL_MS, RISE, FALL = 500, 2, 2
PROXIES = ("pylb", "haproxy")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


class Node:
    """A database that greets with its name, and its role by HTTP: 200 for the primary, 503 for a replica."""

    def __init__(self, name: str, *, primary: bool) -> None:
        self.name, self.primary, self.db_port = name, primary, free_port()
        self.said: dict[str, Counter[int]] = {proxy: Counter() for proxy in PROXIES}  # answers to the checks of each, by status
        self._role = Server(("127.0.0.1", 0), self._role_handler())
        self.role_port = self._role.server_address[1]
        self._db: Server | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self._role.serve_forever, args=(0.02,)).start()
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._role.shutdown()
        self._role.server_close()

    def accept(self) -> None:
        node = self

        class Greets(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(node.name.encode())

        self._db = Server(("127.0.0.1", self.db_port), Greets)
        threading.Thread(target=self._db.serve_forever, args=(0.02,)).start()

    def refuse(self) -> None:
        """Connects to the database are refused from now on; the role is as it was."""
        if self._db is not None:
            self._db.shutdown()
            self._db.server_close()
            self._db = None

    def become(self, *, primary: bool) -> None:
        self.primary = primary
        for said in self.said.values():
            said.clear()

    def _role_handler(self) -> type[BaseHTTPRequestHandler]:
        node = self

        class Role(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status = 200 if node.primary else 503
                self.send_response(status)
                self.end_headers()
                node.said[self.path.removeprefix("/primary/")][status] += 1

            def log_message(self, *_: object) -> None:
                pass

        return Role


class Pair:
    """Both proxies in front of both nodes."""

    def __init__(self, pylb: Instance, folder: Path, processes: Processes, one: Node, two: Node) -> None:
        self.nodes = (one, two)
        self.pylb = pylb
        self.ports = {"pylb": pylb.port, "haproxy": free_port()}
        check = {"http": "/primary/pylb", "expect": 200}
        servers = [{"address": f"127.0.0.1:{node.db_port}", "health": {"port": node.role_port}} for node in self.nodes]
        health = {"check": check, "interval": f"{INTERVAL_MS}ms", "rise": RISE, "fall": FALL, "when_all_down": "refuse"}
        frontend = {"name": "pg", "listen": f"127.0.0.1:{pylb.port}", "servers": servers, "health": health}
        pylb.configure(frontends=[frontend])
        pylb.start()
        config = folder / "haproxy.cfg"
        lines = "\n".join(
            f"  server n{number} 127.0.0.1:{node.db_port} check port {node.role_port}" for number, node in enumerate(self.nodes)
        )
        config.write_text(
            "defaults\n  mode tcp\n  retries 1\n  option redispatch\n"
            "  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"listen pg\n  bind 127.0.0.1:{self.ports['haproxy']}\n  option httpchk GET /primary/haproxy\n"
            f"  http-check expect status 200\n  default-server inter {INTERVAL_MS}ms rise {RISE} fall {FALL}\n{lines}\n"
        )
        processes.start("haproxy", (need("haproxy"), "-db", "-f", str(config)))
        for proxy in PROXIES:
            self.settled(proxy, primary=next(node for node in self.nodes if node.primary))

    def new(self, proxy: str) -> str:
        """Who greets a new connection; "" if it is refused or ended without a word."""
        try:
            with socket.create_connection(("127.0.0.1", self.ports[proxy]), timeout=10) as sock:
                return sock.recv(16).decode()
        except ConnectionError:
            return ""

    def settled(self, proxy: str, *, primary: Node | None) -> None:
        name = primary.name if primary else ""
        eventually(lambda: [self.new(proxy) for _ in range(3)] == [name] * 3, within=20, what=f"{proxy}: {name or 'nobody'}")


@pytest.fixture
def pair(pylb: Instance, processes: Processes, tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        one, two = (stack.enter_context(Node(name, primary=name == "one")) for name in ("one", "two"))
        yield Pair(pylb, tmp_path, processes, one, two)


def test_new_connections_go_to_the_new_primary_within_two_checks_and_none_to_a_replica(pair: Pair) -> None:
    one, two = pair.nodes
    assert {(proxy, pair.new(proxy)) for proxy in PROXIES for _ in range(10)} == {(proxy, "one") for proxy in PROXIES}
    one.become(primary=False)
    two.become(primary=True)
    for proxy in PROXIES:
        pair.settled(proxy, primary=two)
    # The nodes count what they said: two answers were enough, and how long those take is test_checks_in_time's matter.
    found = {proxy: (two.said[proxy][200] >= RISE, one.said[proxy][503] >= FALL) for proxy in PROXIES}
    assert found == dict.fromkeys(PROXIES, (True, True))
    assert {(proxy, pair.new(proxy)) for proxy in PROXIES for _ in range(30)} == {(proxy, "two") for proxy in PROXIES}


def test_the_first_connections_after_a_second_good_check_are_the_new_primarys(pair: Pair) -> None:
    one, two = pair.nodes
    one.become(primary=False)
    for proxy in PROXIES:
        pair.settled(proxy, primary=None)
    two.become(primary=True)
    served = dict.fromkeys(PROXIES, 0)
    for proxy in PROXIES:
        eventually(lambda proxy=proxy: pair.new(proxy) == "two", within=20, what=f"{proxy} serves again")
        served[proxy] = two.said[proxy][200]
    assert served["pylb"] >= RISE
    assert served["haproxy"] >= RISE


def test_with_no_primary_nobody_is_served_and_no_retry_lands_on_a_replica(pair: Pair) -> None:
    one, _ = pair.nodes
    one.refuse()  # still primary by its word; the replica would accept
    for proxy, tries in (("pylb", 20), ("haproxy", 3)):  # haproxy waits a second before it tries again
        assert [pair.new(proxy) for _ in range(tries)] == [""] * tries, proxy
    one.accept()
    for proxy in PROXIES:
        pair.settled(proxy, primary=one)
    one.become(primary=False)
    for proxy in PROXIES:
        pair.settled(proxy, primary=None)
        assert [pair.new(proxy) for _ in range(20)] == [""] * 20, proxy


def test_a_restart_neither_opens_a_closed_door_nor_closes_an_open_one(pair: Pair) -> None:
    one, two = pair.nodes
    pair.pylb.running.signal(15)
    pair.pylb.running.wait()
    pair.pylb.start()
    assert pair.new("pylb") == "one"  # at once: it had passed its check before
    one.become(primary=False)
    pair.settled("pylb", primary=None)
    pair.pylb.running.signal(15)
    pair.pylb.running.wait()
    pair.pylb.start()
    assert [pair.new("pylb") for _ in range(10)] == [""] * 10
    two.become(primary=True)
    pair.settled("pylb", primary=two)
