"""What systemd is told: READY once ports serve, signs of life from the loop, STOPPING. (sd_notify(3))"""

import os
import signal
import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from pylb.core.address import Listen
from pylb.host.systemd import SystemdService
from pylb.upgrade.sockets import ListeningSockets, passed
from tests.app.instance import Instance, echo
from tests.app.systemd import Systemd
from tests.support.baseline import descriptors
from tests.support.ports import free_port
from tests.support.processes import run_python


def environ(systemd: Systemd, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(systemd.path), **more}


def test_ready_means_that_restored_ports_serve(pylb: Instance, systemd: Systemd, echo_port: int) -> None:
    pylb.start(env=environ(systemd))
    assert systemd.until("READY") == {"READY": "1", "STATUS": "0 ports, 0 sessions"}
    pylb.register(pylb.port, echo_port)
    pylb.running.stop()
    assert systemd.until("STOPPING")["STATUS"].startswith("stopping: 0 live sessions")
    systemd.start(pylb)
    assert systemd.until("READY")["STATUS"] == "1 port, 0 sessions"
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=5):
        pass  # no wait, no retry: READY was said


def names(systemd: Systemd) -> list[str]:
    return sorted(name for name, _ in systemd.store)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_unit_refuses_nobody(
    pylb: Instance, systemd: Systemd, echo_port: int, workers: int, end: signal.Signals
) -> None:
    """The fd store keeps the sockets: who connects meanwhile waits, on the frontends' ports and on pylb's own."""
    pylb.configure(workers=workers)
    first = pylb.start(env=environ(systemd))
    pylb.register(pylb.port, echo_port)
    systemd.until("READY")
    while len(systemd.store) < 2 + max(1, workers):
        systemd.hear()
    own = [f"tcp-127.0.0.1-{port}" for port in (pylb.webhook, pylb.admin)]
    assert names(systemd) == sorted([*own, *[f"tcp-127.0.0.1-{pylb.port}"] * max(1, workers)])
    first.signal(end)
    first.wait()
    with ExitStack() as stack:
        waiting = [stack.enter_context(socket.create_connection(("127.0.0.1", pylb.port), timeout=20)) for _ in range(20)]
        systemd.start(pylb)
        assert all(echo(sock) == b"ping" for sock in waiting)
    systemd.until("READY")
    assert pylb.get("/readyz").status == 200
    assert pylb.register(pylb.port, echo_port).json["result"] == "unchanged"


@pytest.mark.parametrize("workers", [0, 1])
def test_with_fewer_workers_than_before_every_client_is_served(
    pylb: Instance, systemd: Systemd, echo_port: int, workers: int
) -> None:
    """A socket too many in the store would get its share of the clients for ever (SO_REUSEPORT): nobody would accept them."""
    pylb.configure(workers=2)
    first = pylb.start(env=environ(systemd))
    systemd.until("READY")  # or it would be taken for the second one's
    pylb.register(pylb.port, echo_port)
    while len(systemd.store) < 4:
        systemd.hear()
    first.stop()
    pylb.configure(workers=workers)
    systemd.start(pylb)
    systemd.until("READY")
    assert names(systemd).count(f"tcp-127.0.0.1-{pylb.port}") == 1
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection(("127.0.0.1", pylb.port), timeout=20)) for _ in range(30)]
        assert all(echo(sock) == b"ping" for sock in socks)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_port_that_is_closed_is_closed_for_the_store_too(
    pylb: Instance, systemd: Systemd, echo_port: int, workers: int
) -> None:
    pylb.configure(workers=workers)
    pylb.start(env=environ(systemd))
    pylb.register(pylb.port, echo_port)
    assert pylb.ask("release", str(pylb.port)).returncode == 0
    with pytest.raises(ConnectionRefusedError):  # although the copy in the store may still be there
        socket.create_connection(("127.0.0.1", pylb.port), timeout=5)
    while systemd.hear().get("FDSTOREREMOVE") is None:
        pass
    assert names(systemd) == sorted(f"tcp-127.0.0.1-{port}" for port in (pylb.webhook, pylb.admin))
    assert pylb.register(pylb.port, echo_port).status == 201


def test_sockets_of_a_socket_unit_are_used_and_those_nobody_wants_are_closed(
    pylb: Instance, systemd: Systemd, echo_port: int
) -> None:
    """Socket activation: the webhook's, a frontend's, one of no use, and a pipe."""
    stray = free_port()
    pylb.configure(frontends=[{"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}])
    for port in (pylb.webhook, pylb.port, stray):
        with socket.create_server(("127.0.0.1", port)) as listener:
            systemd.store.append(("unit", os.dup(listener.fileno())))
    systemd.store += [("pipe", fd) for fd in os.pipe()]
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=20) as early:
        process = systemd.start(pylb)
        assert echo(early) == b"ping"
    process.has_said(f"127.0.0.1:{stray} was inherited and is now closed")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", stray), timeout=5)
    assert pylb.get("/readyz").status == 200
    assert pylb.register(free_port(), echo_port).status == 201


def test_the_loop_shows_life_three_times_as_often_as_it_must(pylb: Instance, systemd: Systemd) -> None:
    pylb.start(env=environ(systemd, WATCHDOG_USEC="600000"))
    for _ in range(4):
        assert systemd.until("WATCHDOG") == {"WATCHDOG": "1"}
    pylb.running.signal(19)  # SIGSTOP: a loop that stands still
    systemd.sock.settimeout(1.5)
    systemd.silence()
    pylb.running.signal(18)  # SIGCONT
    systemd.sock.settimeout(15)
    assert systemd.until("WATCHDOG")


def test_a_config_that_is_wrong_is_never_ready(pylb: Instance, systemd: Systemd) -> None:
    pylb.file.write_text("webhok: 1\n")
    assert pylb.launch(env=environ(systemd)).wait() == 2
    systemd.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.hear()


@pytest.mark.parametrize("address", ["", "nobody", "@pylb-nobody-listens-here"])
def test_without_a_supervisor_or_with_a_deaf_one_nothing_is_told_and_nothing_is_left(tmp_path: Path, address: str) -> None:
    place = str(tmp_path / address) if address == "nobody" else address
    before = descriptors()
    service = SystemdService({"NOTIFY_SOCKET": place})
    reader, writer = os.pipe()
    service.ready("x")
    service.alive()
    service.store("port", writer)
    service.stopping("x")
    waiting = list(service._waiting)
    os.close(reader)
    os.close(writer)
    service.close()
    assert waiting == []  # nobody will ever take it
    assert descriptors() == before


def test_what_a_busy_supervisor_does_not_take_is_said_later_in_its_order(systemd: Systemd) -> None:
    before = descriptors()
    service = SystemdService(systemd.environ)
    reader, writer = os.pipe()
    for number in range(300):
        service.store(f"port-{number}", writer)
    service.ready("300 ports")
    os.close(reader)
    os.close(writer)  # the service has copies of its own
    said: list[dict[str, str]] = []
    while not said or "READY" not in said[-1]:
        said.append(systemd.hear())
        service.flush()
    assert [one.get("FDNAME") for one in said] == [*(f"port-{number}" for number in range(300)), None]
    for _, fd in systemd.store:
        os.close(fd)
    systemd.store = []
    service.close()
    assert descriptors() == before


def test_who_the_service_is_from_now_on_is_said_behind_all_else_or_not_at_all(systemd: Systemd) -> None:
    """In its queue it was lost if the old one ended before, and systemd ignored all that the new one had said until then."""
    service = SystemdService(systemd.environ)
    reader, writer = os.pipe()
    while not service._waiting:
        service.store("port", writer)
    os.close(reader)
    os.close(writer)
    assert not service.successor(7)
    said: list[dict[str, str]] = []
    while service._waiting:
        said.append(systemd.hear())
        service.flush()
    while not service.successor(7):
        said.append(systemd.hear())
    service.close()
    said.append(systemd.until("MAINPID"))
    assert said[-1] == {"MAINPID": "7"}
    systemd.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.hear()


def test_an_abstract_address_is_one(tmp_path: Path) -> None:
    name = f"pylb-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(5)
        with closing(SystemdService({"NOTIFY_SOCKET": f"@{name}"})) as service:
            service.status("here")
        assert sock.recv(100) == b"STATUS=here"


WITHOUT_A_DESCRIPTOR = """
    import os, resource, socket
    from pylb.host.systemd import SystemdService

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\\0pylb-test-%d" % os.getpid())
        service = SystemdService({"NOTIFY_SOCKET": "@pylb-test-%d" % os.getpid()})
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        service.alive()
        assert systemd.recv(100) == b"WATCHDOG=1"
    print("alive")
"""


def test_a_pylb_without_descriptors_shows_signs_of_life_all_the_same() -> None:
    assert run_python(WITHOUT_A_DESCRIPTOR) == "alive\n"


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "x"}, 0.0),
        ({"WATCHDOG_USEC": "9" * 400}, 0.0),
        ({"WATCHDOG_USEC": "9" * 5000}, 0.0),
    ],
)
def test_the_watchdog_counts_if_it_is_ours(variables: dict[str, str], seconds: float) -> None:
    assert SystemdService(variables).watchdog == seconds


@pytest.mark.parametrize("count", ["-1", "", "x", "²", "9" * 20, "9" * 5000])
def test_what_no_supervisor_says_is_no_number_of_descriptors(count: str) -> None:
    assert passed({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}) == []


def test_a_wrong_count_of_descriptors_names_none_that_pylb_opened_itself() -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "999999"}
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("127.0.0.1", 0)) as came:
        os.set_inheritable(came.fileno(), True)
        found = passed(environ)
        assert came.fileno() in found
        assert own.fileno() not in found
        assert all(os.get_inheritable(fd) for fd in found)


def test_a_descriptor_that_is_not_there_is_none_of_those_that_were_passed() -> None:
    came = socket.create_server(("127.0.0.1", 0))
    listen, fd = Listen("tcp", *came.getsockname()), came.detach()
    listeners = ListeningSockets(SystemdService({}))
    listeners.inherit([999_999, fd])
    sock = listeners.open(listen)  # the one that is there, not another one on its port
    try:
        assert sock.fileno() == fd
        assert listeners.all() == [fd]
    finally:
        sock.close()


def test_what_a_supervisor_does_not_take_is_bounded_and_holds_few_descriptors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pylb.host.systemd.MOST_WAITING", 200)  # as many as any user may hold
    before = descriptors()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf,
        ExitStack() as pipe,
        closing(SystemdService({"NOTIFY_SOCKET": str(tmp_path / "notify")})) as service,
    ):
        deaf.bind(str(tmp_path / "notify"))
        reader, writer = os.pipe()
        pipe.callback(os.close, reader)
        pipe.callback(os.close, writer)
        idle = descriptors()
        for number in range(3000):
            service.alive()
            service.status(f"status {number}")
            service.store(f"tcp-any-{number}", reader)
        assert 200 <= len(service._waiting) <= 205
        assert len(descriptors()) - len(idle) <= 202
        for number in range(3000):
            service.unstore(f"tcp-any-{number}")
        assert not any(text.startswith("FDSTORE=") for text, _ in service._waiting)
        assert descriptors() == idle
        service.status("the last")
        said = []
        deaf.setblocking(False)
        for _ in range(1000):
            try:
                while True:
                    said.append(deaf.recv(4096).decode())
            except BlockingIOError:
                service.flush()
        assert said[-1] == "STATUS=the last"
        assert not service._waiting
    assert descriptors() == before


@pytest.mark.parametrize("place", ["engine", "worker", "two frontends"])
def test_a_socket_for_ipv6_alone_beside_one_for_ipv4_is_served_or_loudly_closed(
    caplog: pytest.LogCaptureFixture, place: str
) -> None:
    four = socket.create_server(("0.0.0.0", 0))
    port = four.getsockname()[1]
    six = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=False)
    listeners = ListeningSockets(SystemdService({}))
    listeners.inherit([four.detach(), six.detach()])
    wanted = [Listen("tcp", ip, port) for ip in (["0.0.0.0", "::"] if place == "two frontends" else ["*"])]
    opened = [listeners.open(listen) for listen in wanted]
    if place == "engine" and (twin := listeners.twin(wanted[0])) is not None:
        opened.append(twin)
    listeners.close_unclaimed()
    try:
        assert (f"IPv6 clients of *:{port} are refused" in caplog.text) is (place == "worker")
        assert len({sock.family for sock in opened}) == (1 if place == "worker" else 2)
        assert len(listeners.all()) == len(opened)  # a successor gets both
    finally:
        for sock in opened:
            sock.close()
