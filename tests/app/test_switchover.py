"""Two database nodes of which one is primary, as Patroni says by HTTP: pylb beside a real haproxy, on the same servers."""

import select
import socket
import socketserver
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
STANDBY = 6  # intervals before a switch: by then a program that asks a replica less and less often is far behind
PATIENCE = 60.0  # seconds a check may take: no check fails because the machine is busy
PROXIES = ("pylb", "haproxy")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self._lock, self._open = threading.Lock(), 0
        threading.Thread(target=self.serve_forever, args=(0.02,)).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def get_request(self) -> tuple[socket.socket, object]:
        with self._lock:
            accepted = super().get_request()
            self._open += 1
            return accepted

    def shutdown_request(self, request: object) -> None:
        super().shutdown_request(request)  # type: ignore[arg-type]
        with self._lock:
            self._open -= 1

    def has_answered_all(self) -> bool:
        with self._lock:
            return self._open == 0 and not select.select([self.socket], [], [], 0)[0]


class Node:
    """A database that greets with its name, and its role by HTTP: 200 for the primary, 503 for a replica."""

    def __init__(self, name: str, *, primary: bool) -> None:
        self.name, self.primary, self.db_port = name, primary, free_port()
        self.said: dict[str, Counter[int]] = {proxy: Counter() for proxy in PROXIES}  # answers to the checks of each, by status
        self.before_answer: Callable[[], None] = lambda: None  # to a check of haproxy's
        self._roles = {proxy: Server(0, self._role_handler(proxy)) for proxy in PROXIES}
        self.role_ports = {proxy: role.server_address[1] for proxy, role in self._roles.items()}
        self._db: Server | None = None

    def __enter__(self) -> Self:
        self.accept()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        for role in self._roles.values():
            role.stop()

    def accept(self) -> None:
        node = self

        class Greets(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(node.name.encode())

        self._db = Server(self.db_port, Greets)

    def refuse(self) -> None:
        """Connects to the database are refused from now on; the role is as it was."""
        if self._db is not None:
            self._db.stop()
            self._db = None

    def become(self, *, primary: bool) -> None:
        self.primary = primary
        for said in self.said.values():
            said.clear()

    def has_answered_pylb(self) -> bool:
        return self._roles["pylb"].has_answered_all()

    def _role_handler(self, proxy: str) -> type[BaseHTTPRequestHandler]:
        node = self

        class Role(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if proxy == "haproxy":
                    node.before_answer()
                status = 200 if node.primary else 503
                self.send_response(status)
                self.end_headers()
                node.said[proxy][status] += 1

            def log_message(self, *_: object) -> None:
                pass

        return Role


class Pair:
    """Both proxies in front of both nodes."""

    def __init__(self, pylb: Instance, folder: Path, processes: Processes, one: Node, two: Node) -> None:
        self.nodes = (one, two)
        self.pylb = pylb
        self.ports = {"pylb": pylb.port, "haproxy": free_port()}
        check = {"http": "/primary", "expect": 200}
        servers = [{"address": f"127.0.0.1:{node.db_port}", "health": {"port": node.role_ports["pylb"]}} for node in self.nodes]
        health = {"check": check, "interval": f"{INTERVAL_MS}ms", "rise": RISE, "fall": FALL, "when_all_down": "refuse"}
        health["timeout"] = f"{PATIENCE:g}s"
        frontend = {"name": "pg", "listen": f"127.0.0.1:{pylb.port}", "servers": servers, "health": health}
        pylb.configure(frontends=[frontend])
        pylb.start()
        config = folder / "haproxy.cfg"
        lines = "\n".join(
            f"  server n{number} 127.0.0.1:{node.db_port} check port {node.role_ports['haproxy']}"
            for number, node in enumerate(self.nodes)
        )
        config.write_text(
            "defaults\n  mode tcp\n  retries 1\n  option redispatch\n"
            f"  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  timeout check {PATIENCE:g}s\n"
            f"listen pg\n  bind 127.0.0.1:{self.ports['haproxy']}\n  option httpchk GET /primary\n"
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

    def pylb_has_done_all_that_was_due(self) -> bool:
        """It sleeps, and each question of its is answered. The order matters: what was answered before it was found asleep
        it has read, and what was due then it has asked."""
        answered = all(node.has_answered_pylb() for node in self.nodes)
        threads = Path(f"/proc/{self.pylb.running.pid}/task").glob("*/stat")
        asleep = all(thread.read_text().rpartition(")")[2].split()[0] == "S" for thread in threads)
        return answered and asleep and all(node.has_answered_pylb() for node in self.nodes)

    def settled(self, proxy: str, *, primary: Node | None) -> None:
        name = primary.name if primary else ""
        eventually(lambda: [self.new(proxy) for _ in range(3)] == [name] * 3, within=20, what=f"{proxy}: {name or 'nobody'}")


@pytest.fixture
def pair(pylb: Instance, processes: Processes, tmp_path: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        one, two = (stack.enter_context(Node(name, primary=name == "one")) for name in ("one", "two"))
        yield Pair(pylb, tmp_path, processes, one, two)


class Switch:
    """`old` and `new` change their roles after STANDBY intervals. The clock is haproxy's own check of `new`.

    An interval is over when haproxy asks again and pylb has done what was due until then: while a busy machine lets pylb wait,
    the clock waits too, since `new` answers haproxy only afterwards. No bound here is broken by a slow machine.
    """

    def __init__(self, pair: Pair, old: Node, new: Node) -> None:
        self._pair, self._old, self._new = pair, old, new
        self._intervals, self._last = -1, 0.0
        self.replica_asked = 0  # by pylb, in the STANDBY intervals
        self.after: list[str] = []  # where a new client of pylb's is, by intervals after the switch
        new.before_answer = self._asked_by_haproxy

    def _asked_by_haproxy(self) -> None:
        if time.monotonic() < self._last + 0.98 * INTERVAL_MS / 1000:
            return  # asked late the last time
        eventually(self._pair.pylb_has_done_all_that_was_due, within=PATIENCE, what="pylb has done what was due")
        self._last, self._intervals = time.monotonic(), self._intervals + 1
        if self._intervals == 0:
            self._new.said["pylb"].clear()
        if self._intervals == STANDBY:
            self.replica_asked = self._new.said["pylb"][503]
            self._old.become(primary=False)
            self._new.become(primary=True)
        if self._intervals >= STANDBY:
            self.after.append(self._pair.new("pylb"))


@pytest.mark.timeout(300)  # 6 s, as long as the machine lets it run
def test_new_connections_go_to_the_new_primary_within_two_intervals_and_none_to_a_replica(pair: Pair) -> None:
    assert {(proxy, pair.new(proxy)) for proxy in PROXIES for _ in range(10)} == {(proxy, "one") for proxy in PROXIES}
    one, two = pair.nodes
    switch = Switch(pair, one, two)

    def is_over() -> bool:
        # pylb asks again only when it has read the last answer: after one more than FALL (RISE) it knows.
        out, is_in = one.said["pylb"][503] > FALL, two.said["pylb"][200] > RISE
        name = pair.new("pylb")
        if out and (name == "one" or (is_in and name != "two")):
            pytest.fail(f"a new client is at {name or 'nobody'} after {one.said} and {two.said}")
        return len(switch.after) > RISE + 1

    eventually(is_over, within=2 * PATIENCE, what="haproxy has asked the new primary often enough")
    two.before_answer = lambda: None
    assert switch.replica_asked >= STANDBY - 1
    # Two intervals after the switch, and before haproxy asks once more:
    assert switch.after[RISE + 1] == "two", switch.after
    pair.settled("haproxy", primary=two)
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
