"""A real kube-apiserver, the controller as its own process, and a real pylb: what clients get.

Every address of 127.0.0.0/8 is a machine: nodes are 127.0.7.N, and their nodePorts are opened by the test.
"""

from __future__ import annotations

import asyncio
import http.server
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.contract.instance import Pylb, answers, banner, is_open, secret, serving, token
from tests.support.kubernetes import ADMIN, ApiServer
from tests.support.load import Load
from tests.support.ports import free_port, free_ports
from tests.support.processes import Process, Processes, python
from tests.support.waiting import eventually

A, B, C = "127.0.7.1", "127.0.7.2", "127.0.7.3"
ANYWHERE = ["1024-65535", "1024-65535/udp"]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as running:
        yield running


@pytest.fixture
def pylb(processes: Processes, tmp_path: Path) -> Pylb:
    return made(processes, tmp_path / "pylb", "127.0.0.1")


def made(processes: Processes, folder: Path, bind: str) -> Pylb:
    folder.mkdir()
    tokens = [token("kubernetes", ports=ANYWHERE), token("app", ports=ANYWHERE)]
    return Pylb(processes, folder, tokens=tokens, defaults={"bind": bind, "timeouts": {"shutdown": "500ms"}}).start()


@pytest.fixture
def second(processes: Processes, tmp_path: Path) -> Pylb:
    return made(processes, tmp_path / "second", "127.0.0.9")


Start = Callable[..., Process]


@pytest.fixture
def start(cluster: ApiServer, processes: Processes) -> Start:
    """Starts `phonehome controller` for these pylbs."""

    def begin(*pylbs: Pylb) -> Process:
        admin = cluster.token.with_name("admin.token")
        admin.write_text(ADMIN)
        environ = {
            "PATH": "/usr/bin:/bin",
            "PYLB_URL": ",".join(f"http://127.0.0.1:{one.webhook}" for one in pylbs),
            "PYLB_TOKEN": secret("kubernetes"),
            "PYLB_PUBLIC_ADDRESS": ",".join(f"198.51.100.{number}" for number, _ in enumerate(pylbs, 1)),
            "PYLB_DEFAULT_CLASS": "true",
            "PYLB_KUBE_API": cluster.url,
            "PYLB_KUBE_CA": str(cluster.ca),
            "PYLB_KUBE_TOKEN_FILE": str(admin),
        }
        return processes.start("controller", python("phonehome", "controller"), env=environ)

    return begin


class _Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def healthz(ip: str, port: int, status: int = 200) -> Iterator[None]:
    """kube-proxy's answer about its node."""
    with http.server.ThreadingHTTPServer((ip, port), _Health) as server:
        server.status = status  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def nodes(cluster: ApiServer) -> Iterator[Callable[[str, str], None]]:
    """Makes nodes whose kube-proxy is well."""
    with ExitStack() as stack:

        def add(name: str, ip: str) -> None:
            stack.enter_context(healthz(ip, 10256))
            cluster.node(name, ip)

        yield add


@pytest.fixture
def one_node(nodes: Callable[[str, str], None]) -> None:
    nodes("a", A)


def node_port(service: Any) -> int:
    (port,) = service["spec"]["ports"]
    found: int = port["nodePort"]
    return found


def moves(cluster: ApiServer, node: str, ip: str) -> None:
    addresses = [{"type": "InternalIP", "address": ip}]
    cluster.call("PATCH", f"/api/v1/nodes/{node}/status", {"status": {"addresses": addresses}})


def steady(load: Load) -> None:
    """A hundred connections more."""
    before = load.done
    eventually(lambda: load.done > before + 100)


def targets(pylb: Pylb, port: int) -> set[str]:
    found = [one for one in pylb.get("/v1/table").json["frontends"] if one["port"] == port]
    return {server["address"].partition(":")[0] for one in found for server in one["servers"]}


def test_a_service_is_reachable_and_shown_and_gone_when_it_is_deleted(
    cluster: ApiServer, pylb: Pylb, start: Start, nodes: Callable[[str, str], None]
) -> None:
    nodes("a", A)
    start(pylb).has_said("Services of type LoadBalancer")
    port = free_port()
    begun = time.monotonic()
    service = cluster.service("web", port)
    with serving("app", node_port(service), A):
        eventually(lambda: is_open(port) and answers(port) == "app")
        opened = time.monotonic() - begun
        eventually(lambda: cluster.shown("web") == [{"ip": "198.51.100.1", "ports": [{"port": port, "protocol": "TCP"}]}])
        print(f"a new Service: open after {opened:.2f} s, shown after {time.monotonic() - begun:.2f} s")  # noqa: T201
        assert "kubernetes/default.web" in pylb.cli("routes").stdout
        cluster.call("DELETE", "/api/v1/namespaces/default/services/web")
        eventually(lambda: not is_open(port), what="the port is closed")


@pytest.mark.timeout(120)
def test_no_connection_fails_while_nodes_come_move_and_go(
    cluster: ApiServer, pylb: Pylb, start: Start, nodes: Callable[[str, str], None]
) -> None:
    nodes("a", A)
    start(pylb)
    port = free_port()
    target = node_port(cluster.service("web", port))
    with ExitStack() as stack:
        for ip in (A, B, C):
            stack.enter_context(serving(ip, target, ip))
        eventually(lambda: is_open(port) and answers(port) == A)
        with Load(("127.0.0.1", port), 200, lambda sock: bool(banner(sock))) as load:
            nodes("b", B)
            eventually(lambda: targets(pylb, port) == {A, B} and answers(port) == B)
            stack.enter_context(healthz(C, 10256))
            moves(cluster, "a", C)
            eventually(lambda: targets(pylb, port) == {B, C})
            cluster.call("DELETE", "/api/v1/nodes/b")
            eventually(lambda: targets(pylb, port) == {C} and answers(port) == C)
            steady(load)
        print(f"a node added, moved and removed: {load.done} connections, {len(load.failed)} failed")  # noqa: T201
        assert not load.failed, "\n".join(line for line in pylb.running.text().splitlines() if " -- " not in line)[-6000:]


def test_the_only_node_moves_and_its_old_address_serves_until_the_new_one_answers(
    cluster: ApiServer, pylb: Pylb, start: Start, nodes: Callable[[str, str], None]
) -> None:
    nodes("a", A)
    start(pylb)
    port = free_port()
    target = node_port(cluster.service("web", port))
    with serving("old", target, A):
        eventually(lambda: is_open(port) and answers(port) == "old")
        moves(cluster, "a", B)
        eventually(lambda: targets(pylb, port) == {A, B})
        assert answers(port) == "old"
        with healthz(B, 10256), serving("new", target, B):
            eventually(lambda: targets(pylb, port) == {B} and answers(port) == "new")


def test_a_node_without_a_pod_gets_no_connection_with_policy_local(
    cluster: ApiServer, pylb: Pylb, start: Start, nodes: Callable[[str, str], None]
) -> None:
    for name, ip in (("a", A), ("b", B)):
        nodes(name, ip)
    port = free_port()
    service = cluster.service("web", port, externalTrafficPolicy="Local")
    check = service["spec"]["healthCheckNodePort"]
    with healthz(A, check), healthz(B, check, 503), serving("app", node_port(service), A):
        start(pylb)
        eventually(lambda: is_open(port))
        for _ in range(50):
            assert answers(port) == "app"

        def out() -> bool:
            found = [one for one in pylb.get("/v1/table").json["frontends"] if one["port"] == port]
            return {server["name"]: server["state"] for server in found[0]["servers"]} == {"a": "up", "b": "down"}

        eventually(out, within=20, what="its check takes the other one out")
        dials = [one for one in pylb.metrics() if one[0] == "pylb_connect_failures_total" and one[2]]
        assert not [labels for _, labels, _ in dials if labels["server"] == "b"]


def test_a_port_of_another_owner_is_shown_with_its_error_and_the_others_open(
    cluster: ApiServer, pylb: Pylb, start: Start, nodes: Callable[[str, str], None]
) -> None:
    taken, free = free_ports(2)
    pylb.put("mail/pod-1", {"frontends": [{"port": taken, "target_port": 30001}]}, by="app")
    nodes("a", A)
    start(pylb)
    cluster.service("web", taken, free)
    wanted = [{"port": taken, "protocol": "TCP", "error": "pylb.io/port_owned"}, {"port": free, "protocol": "TCP"}]
    eventually(lambda: (cluster.shown("web") or [{}])[0].get("ports") == wanted)
    eventually(lambda: [text for _, reason, text in cluster.events() if "is owned by registration 'mail'" in text])
    assert is_open(free)


def test_a_killed_controller_changes_nothing_and_the_next_one_goes_on(
    cluster: ApiServer, pylb: Pylb, start: Start, nodes: Callable[[str, str], None]
) -> None:
    one, other = free_ports(2)
    nodes("a", A)
    first = start(pylb)
    target = node_port(cluster.service("web", one))
    with serving("app", target, A):
        eventually(lambda: is_open(one) and answers(one) == "app")
        first.kill()
        generation = pylb.get("/v1/table").json["generation"]
        assert answers(one) == "app"
        second = start(pylb)
        cluster.service("mail", other)
        eventually(lambda: is_open(other))
        assert answers(one) == "app"
        assert pylb.get("/v1/table").json["generation"] - generation <= 2  # of the second Service, and its proof
        second.terminate()
        assert is_open(other), "an orderly end changes nothing either"


@pytest.mark.usefixtures("one_node")
def test_a_service_of_udp_passes_datagrams_beside_one_of_tcp_on_the_same_port(
    cluster: ApiServer, pylb: Pylb, start: Start
) -> None:
    start(pylb)
    port = free_port()
    cluster.service("web", port)
    made = cluster.service("dns", ports=[{"port": port, "protocol": "UDP"}])
    shown = [{"ip": "198.51.100.1", "ports": [{"port": port, "protocol": "UDP"}]}]
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind((A, node_port(made)))
        eventually(lambda: cluster.shown("dns") == shown)
        for one in (server, client):
            one.settimeout(10)
        client.sendto(b"what is the time?", ("127.0.0.1", port))
        question, back = b"", None
        while not question:  # pylb's own question whether the server refuses datagrams is an empty one
            question, back = server.recvfrom(100)
        server.sendto(b"late", back)
        assert (question, client.recv(100)) == (b"what is the time?", b"late")
    assert is_open(port)


@pytest.mark.usefixtures("one_node")
def test_a_pylb_that_is_away_is_not_shown_until_it_has_everything_too(
    cluster: ApiServer, pylb: Pylb, second: Pylb, start: Start
) -> None:
    port = free_port()
    second.running.terminate()
    start(pylb, second)
    cluster.service("web", port)
    eventually(lambda: [one["ip"] for one in cluster.shown("web") or ()] == ["198.51.100.1"])
    second.start()
    eventually(lambda: [one["ip"] for one in cluster.shown("web") or ()] == ["198.51.100.1", "198.51.100.2"], within=40)
    assert second.registrations().keys() == pylb.registrations().keys() == {"default.web/"}


@contextmanager
def kube_proxies(ips: list[str]) -> Iterator[list[float]]:
    """Answers for many nodes from one thread; yields the times of its answers."""
    loop = asyncio.new_event_loop()
    answered: list[float] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):  # whoever asked has given up
                await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            answered.append(time.monotonic())
        finally:
            writer.close()

    async def end() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for _ in range(3):  # what was closed last is still to be closed by the loop
            await asyncio.sleep(0)

    server = loop.run_until_complete(asyncio.start_server(answer, ips, 10256))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield answered
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(end())
        loop.close()


NODE_PORTS = """
import resource, signal, socket, sys
at = sys.argv.index("--")
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
held = [socket.create_server((ip, int(port)), backlog=64) for ip in sys.argv[1:at] for port in sys.argv[at + 1:]]
print("all of them accept", flush=True)
signal.sigwait([signal.SIGTERM])
"""  # the kernel's queue is enough for a dial; several processes, because none may have so many descriptors


def node_ports(processes: Processes, ips: list[str], ports: list[int]) -> None:
    """Each port of each node accepts."""
    shares = [ips[start : start + 25] for start in range(0, len(ips), 25)]
    for number, share in enumerate(shares):
        command = (sys.executable, "-c", NODE_PORTS, *share, "--", *map(str, ports))
        processes.start(f"nodes-{number}", command).has_said("all of them accept", within=60)


SERVICES, NODES = int(os.environ.get("PYLB_SERVICES", "500")), int(os.environ.get("PYLB_NODES", "50"))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_services_on_many_nodes(cluster: ApiServer, pylb: Pylb, processes: Processes, start: Start) -> None:
    """Figures for docs/kubernetes.md: seconds after a cold start, memory and CPU of both, and a node that leaves."""
    servers = SERVICES * NODES
    ips = [f"127.0.8.{number + 1}" for number in range(NODES)]
    for number, ip in enumerate(ips):
        cluster.node(f"node-{number}", ip)
    ports = [node_port(cluster.service(f"app-{number}", port)) for number, port in enumerate(free_ports(SERVICES))]
    node_ports(processes, ips, ports)
    with kube_proxies(ips) as answered:
        begun = time.monotonic()
        controller = start(pylb)
        # Its log is counted: the table of all servers may be several megabytes, and asking for it in a loop would be the load.
        eventually(lambda: controller.text().count(f"/TCP on {NODES} nodes") == SERVICES, within=600)
        opened = time.monotonic() - begun
        eventually(lambda: all(cluster.shown(f"app-{number}") for number in range(SERVICES)), within=120)
        shown = time.monotonic() - begun
        assert "state_not_writable" not in controller.text(), "the snapshot of so many takes too long"
        used = pylb.running.cpu_seconds(), controller.cpu_seconds()
        eventually(lambda: counted(pylb, "pylb_server_up") == servers, within=300, what="each server has passed its check")
        checked = time.monotonic() - begun
        before, cpu = len(answered), pylb.running.cpu_seconds()
        eventually(lambda: len(answered) > before + 10 * len(ips), within=120)
        seconds = answered[-1] - answered[before]
        idle, asked = (pylb.running.cpu_seconds() - cpu) / seconds, (len(answered) - before) / seconds
        left = time.monotonic()
        cluster.call("DELETE", "/api/v1/nodes/node-7")
        eventually(lambda: controller.text().count(f"/TCP on {NODES - 1} nodes") == SERVICES, within=300)
        print(  # noqa: T201
            f"{SERVICES} Services, {NODES} nodes: open after {opened:.1f} s, shown after {shown:.1f} s, all servers asked "
            f"after {checked:.1f} s; a node has left after {time.monotonic() - left:.1f} s; controller {peak(controller)} KiB, "
            f"{used[1]:.1f} s of CPU; pylb {peak(pylb.running)} KiB, {used[0]:.1f} s of CPU, then {idle:.3f} cores for "
            f"{asked:.0f} checks a second"
        )
        assert peak(controller) < 40 * 1024


def counted(pylb: Pylb, family: str) -> float:
    return sum(value for name, _, value in pylb.metrics() if name == family)


def peak(process: Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
