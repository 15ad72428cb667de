"""Frontends of UDP in a running pylb: from the config or a call to the datagram, the metric, the log line and the next pylb."""

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.app.instance import SECRET, Instance, fetch, token
from tests.support.ports import free_port
from tests.support.waiting import eventually

CHECK = {"send": "are you there?", "expect": "ARE YOU THERE?"}
IP = "127.0.0.1"


class Server:
    """Answers each datagram in capitals; `peers`: how often it heard from each address."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((IP, 0))
        self.port: int = self.sock.getsockname()[1]
        self.peers: dict[tuple[str, int], int] = {}
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while (came := self.sock.recvfrom(2000))[0] != b"end":
            data, source = came
            if data and b"there?" not in data:
                self.peers[source] = self.peers.get(source, 0) + 1
            self.sock.sendto(data.upper(), source)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", (IP, self.port))
        self._thread.join(10)
        self.sock.close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def client(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((IP, port))
    sock.settimeout(10)
    return sock


def exchange(sock: socket.socket, data: bytes = b"ping") -> None:
    sock.send(data)
    assert sock.recv(2000) == data.upper()


def register(pylb: Instance, *frontends: dict[str, object]) -> dict[str, object]:
    body = json.dumps({"frontends": frontends, "ttl": None, "address": IP})
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    answer = fetch((IP, pylb.webhook), "PUT", "/v1/registrations/app/one", body, headers)
    return {"status": answer.status, **answer.json}


def metric(pylb: Instance, name: str) -> float:
    return sum(
        float(line.rpartition(" ")[2]) for line in pylb.get("/metrics").body.decode().splitlines() if line.startswith(name)
    )


def configure(pylb: Instance, server: Server, **more: object) -> None:
    entry = {"name": "game", "protocol": "udp", "listen": f"{IP}:{pylb.port}", "servers": [f"{IP}:{server.port}"]}
    scope = token(ports=["20000-29999", "20000-29999/udp"])
    pylb.configure(frontends=[entry | {"health": {"check": CHECK}}], tokens=[scope], **more)


@pytest.mark.parametrize("workers", [0, 2])
def test_from_the_config_to_the_datagram_the_metric_the_log_and_every_view(
    pylb: Instance, server: Server, workers: int
) -> None:
    configure(pylb, server, workers=workers)
    process = pylb.start()
    with client(pylb.port) as one:
        exchange(one)
        exchange(one, b"x" * 1000)
        eventually(lambda: metric(pylb, "pylb_datagrams_total{") == 4, what="datagrams are counted")
        assert metric(pylb, "pylb_flows ") == metric(pylb, 'pylb_frontend_sessions{frontend="game"}') == 1
        assert metric(pylb, "pylb_datagrams_dropped_total{") == metric(pylb, "pylb_flows_rehomed_total{") == 0
        [row] = pylb.routes()
        assert (row["port"], row["protocol"], row["address"]) == (pylb.port, "udp", f"{IP}:{server.port}/udp")
        assert (row["state"], row["check"]) == ("up", "yes")
        explained = pylb.ask("explain", f"{pylb.port}/udp")
        assert "is open here, and nobody refuses datagrams to its servers, which pass their checks" in explained.stdout
        unknown = pylb.ask("explain", str(pylb.port))  # of TCP nothing is known
        assert (unknown.returncode, f"({pylb.port}/udp is known: pylb explain {pylb.port}/udp)" in unknown.stderr) == (1, True)
        [live] = pylb.get("/v1/sessions?live=1").json["live"]
        assert (live["frontend"], live["state"]) == ("game", "settled")
        assert live["id"] in pylb.ask("explain", live["id"]).stdout
        status = json.loads(pylb.ask("status", "--json").stdout)
        assert (status["flows"], status["sessions"], status["frontends"][0]["sessions"]) == (1, 0, 1)
        assert re.search(r"^game,BACKEND,.*,udp,leastconn", pylb.runtime("show stat\n"), re.MULTILINE)
        assert pylb.ask("ctl", "shutdown", "session", live["id"]).returncode == 0
        eventually(lambda: " KD " in process.text(), what="the end of the flow is logged")
    assert re.search(rf"game game/{IP}:{server.port} 0/0/\d+ 1004 KD ", process.text())


def test_a_port_of_udp_is_registered_beside_the_one_of_tcp_and_released_alone(
    pylb: Instance, server: Server, echo_port: int
) -> None:
    configure(pylb, server)
    pylb.start()
    port = free_port()
    tcp, udp = {"port": port, "target_port": echo_port}, {"port": port, "protocol": "udp", "target_port": server.port}
    answer = register(pylb, tcp, udp)
    assert (answer["status"], [one.get("protocol") for one in answer["frontends"]]) == (201, [None, "udp"])  # type: ignore[attr-defined]
    with client(port) as one, socket.create_connection((IP, port), timeout=10) as stream:
        exchange(one)
        stream.sendall(b"ping")
        assert stream.recv(10) == b"ping"
        done = pylb.ask("release", f"{port}/udp")
        assert (done.returncode, done.stdout) == (0, f"released app/app/one, port {port}/udp\n")
        stream.sendall(b"ping")
        assert stream.recv(10) == b"ping"
        one.send(b"ping")  # the port is closed at once, and the kernel says so
        with pytest.raises(ConnectionRefusedError):
            one.recv(10)
    assert [(row["port"], row.get("protocol")) for row in pylb.routes() if row["frontend"] != "game"] == [(port, None)]


def test_what_a_token_or_udp_itself_does_not_allow_is_refused(pylb: Instance, server: Server) -> None:
    configure(pylb, server)
    pylb.start()
    outside = register(pylb, {"port": 30001, "protocol": "udp", "target_port": server.port})
    assert (outside["status"], outside["error"]) == (403, "port_forbidden")
    assert "may not open port 30001/udp (it may: 20000-29999, 20000-29999/udp)" in str(outside["detail"])
    static = register(pylb, {"port": pylb.port, "protocol": "udp", "target_port": server.port})
    assert (static["status"], static["error"]) == (409, "port_owned")
    v1 = register(pylb, {"port": 20001, "protocol": "udp", "target_port": server.port, "proxy_protocol": "v1"})
    assert (v1["status"], v1["detail"]) == (422, "frontends[0].proxy_protocol: version 1 cannot describe UDP")
    text = register(pylb, {"port": "20001/udp", "target_port": server.port})
    assert (text["status"], '"protocol": "udp" beside it' in str(text["hint"])) == (422, True)


def test_a_refused_call_is_about_the_port_of_its_protocol_only(pylb: Instance, server: Server) -> None:
    configure(pylb, server)
    pylb.start()
    register(pylb, {"port": 30001, "protocol": "udp", "target_port": server.port})
    register(pylb, {"port": 30002, "protocol": "udp", "target_port": "x"})  # refused before anybody knows what it asks for
    for port in (30001, 30002):
        assert f"nobody has port {port}/udp: the last call that wanted it" in pylb.ask("explain", f"{port}/udp").stdout
        assert pylb.ask("explain", str(port)).returncode == 1
    assert [one["ports"] for one in pylb.get("/v1/rejected").json["rejected"]] == [["30001/udp"], ["30002/udp"]]


def test_a_frontend_without_servers_resets_nobody(pylb: Instance) -> None:
    pylb.configure(frontends=[{"name": "empty", "listen": f"{IP}:{pylb.port}/udp"}])
    pylb.start()
    for verb in (("explain", "empty"), ("routes",)):
        assert "what clients send is dropped until a registration joins" in pylb.ask(*verb).stdout


def test_a_registered_server_that_refuses_is_said_and_one_that_says_nothing_is_unknown(pylb: Instance, server: Server) -> None:
    configure(pylb, server)
    pylb.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as none:
        silent.bind((IP, 0))
        none.bind((IP, 0))
        ports = silent.getsockname()[1], none.getsockname()[1]
        none.close()
        answer = register(pylb, *({"port": free_port(), "protocol": "udp", "target_port": port} for port in ports))
    assert [one["reachable"] for one in answer["frontends"]] == ["unknown", "refused"]  # type: ignore[attr-defined]
    states = {row["address"].split(":")[1]: row["state"] for row in pylb.routes()}
    assert [states[f"{port}/udp"] for port in ports] == ["up", "unproven"]


def test_over_an_upgrade_flows_keep_their_servers_and_no_datagram_is_lost(
    pylb: Instance, server: Server, successors: list[int]
) -> None:
    """20 clients, each sends and waits for the answer, over two upgrades: the server sees each from one address."""
    configure(pylb, server)
    process = pylb.start()
    clients = 20
    with ExitStack() as stack:
        socks = [stack.enter_context(client(pylb.port)) for _ in range(clients)]
        for sock in socks:
            exchange(sock)
        counted = clients
        done, lost = threading.Event(), list[str]()

        def traffic() -> None:
            nonlocal counted
            while not done.is_set():
                for sock in socks:
                    try:
                        exchange(sock)
                    except (OSError, AssertionError) as error:
                        lost.append(repr(error))
                    counted += 1

        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            for _ in range(2):
                upgraded = pylb.ask("upgrade")
                assert upgraded.returncode == 0, upgraded.stderr + process.text()
                successors.append(int(upgraded.stdout.split()[1]))
        finally:
            done.set()
            thread.join(30)
        assert lost == []
        assert (len(server.peers), sum(server.peers.values())) == (clients, counted)
        eventually(lambda: metric(pylb, "pylb_flows ") == clients, what="they live in the last one")
        eventually(lambda: metric(pylb, "pylb_datagrams_total{") == 2 * counted, within=15, what="each is counted once")
        assert metric(pylb, "pylb_frontend_sessions_total{") == clients
        assert metric(pylb, "pylb_datagrams_dropped_total{") == 0
        process.wait()  # it has nothing left to do


def test_with_workers_an_upgrade_begins_flows_anew_and_clients_go_on(
    pylb: Instance, server: Server, successors: list[int]
) -> None:
    configure(pylb, server, workers=2)
    pylb.start()
    with client(pylb.port) as one:
        exchange(one)
        upgraded = pylb.ask("upgrade")
        assert upgraded.returncode == 0, upgraded.stderr
        successors.append(int(upgraded.stdout.split()[1]))

        def answers() -> bool:
            one.settimeout(1)
            try:
                exchange(one)
            except TimeoutError:
                return False
            return True

        eventually(answers, what="the client is served again")


def test_check_warns_of_a_server_whose_silent_death_nobody_sees(pylb: Instance) -> None:
    pylb.configure(frontends=[{"name": "stun", "listen": "*:3478/udp", "servers": ["192.0.2.1:30478"]}])
    done = pylb.ask("check")
    assert done.returncode == 0
    assert "warning: without a check nobody sees that 192.0.2.1:30478/udp died silently" in done.stderr
