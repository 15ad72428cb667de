"""Ports with routes: which server a client gets by its ClientHello, and what happens while the hello is not whole."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from pylb.core.access import Networks
from pylb.core.address import Address, Listen
from pylb.core.client_hello import MOST_BYTES
from pylb.core.policy import Policy, ProxyAccept, ProxyProtocol
from pylb.core.proxy_protocol import header
from pylb.core.table import Server
from pylb.forward.hellos import ALERT, DISCARD
from pylb.forward.session import Half, Session
from pylb.forward.shared_limits import FrontendUse
from tests.support.drive import Drive, Peer, policy, readable, server_at
from tests.support.hellos import GREASE, asking_for, hello, records
from tests.support.ports import free_port

GIT, APPS = "git.example.net", "*.apps.example.net"
HELLO = asking_for(GIT, GREASE)
TRUSTING = Policy(accept_proxy=ProxyAccept(Networks([ip_network("0.0.0.0/0")])))


class Port:
    """A port with a default route and two others, each with one server."""

    def __init__(self, drive: Drive, policy: Policy | None = None, *, default: bool = True) -> None:
        self.drive = drive
        self.policy = policy
        self.listen = Listen("tcp", "127.0.0.1", free_port())
        self.default, self.git, self.apps = (drive.backend() for _ in range(3))
        drive.serve(*([server_at(self.default)] if default else ()), listen=self.listen, policy=policy)
        self.route(GIT, server_at(self.git))
        self.route(APPS, server_at(self.apps))

    def at(self, name: str) -> Listen:
        return self.listen._replace(server_name=name)

    def route(self, name: str, *servers: Server, policy: Policy | None = None) -> None:
        self.drive.serve(*servers, listen=self.at(name), name=f"web:{name}", policy=policy or self.policy)

    def counts(self, name: str = "") -> tuple[int, int]:
        """Live sessions and all of them. The port counts its routes' live ones, too: here they are taken off."""
        frontends = self.drive.engine.counters.frontends
        counters = frontends[self.at(name)]
        elsewhere = [one.sessions for listen, one in frontends.items() if listen.server_name and not name]
        return counters.sessions - sum(elsewhere), counters.sessions_total

    def denied(self) -> dict[str, int]:
        return dict(self.drive.engine.counters.frontends[self.listen].denied)

    def client(self, *pieces: bytes) -> Peer:
        """It sends each piece when the engine has seen the one before."""
        client = self.drive.connect(self.listen)
        for piece in pieces:
            client.say(piece)
            self.drive.run_until_quiet()
        return client


@pytest.fixture
def port(drive: Drive) -> Port:
    return Port(drive)


@pytest.mark.parametrize(
    ("data", "route"),
    [
        (HELLO, "git"),
        (asking_for("GIT.example.net"), "git"),
        (asking_for(GIT, (51, bytes(1300)), sizes=[100]), "git"),
        (asking_for("a.apps.example.net"), "apps"),
        (asking_for("a.b.apps.example.net"), "default"),
        (asking_for("example.net"), "default"),
        (records(hello(GREASE)), "default"),
        (b"GET / HTTP/1.1\r\n", "default"),
        (b"\x80\x2e\x01\x03\x01", "default"),
        (b"\x16\x03\x01\x00\x01\x02", "default"),
    ],
)
def test_the_route_of_the_name_has_the_client_and_its_server_gets_every_byte(
    drive: Drive, port: Port, data: bytes, route: str
) -> None:
    client = port.client(data)
    server = drive.accept(getattr(port, route))
    server.say(b"hello back")
    client.say(b"more")
    drive.run_until(lambda: client.got == b"hello back" and server.got == data + b"more")
    client.finish()
    server.finish()
    assert drive.record().code == "--"


def test_byte_by_byte_no_byte_is_lost_and_nothing_spins(drive: Drive, port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peeking leaves the bytes where they are; level-triggered, the socket would be ready for ever."""
    hellos, looks = drive.engine._life.dialer.hellos, 0
    look = hellos.look

    def counted(session: Session, client: Half) -> None:
        nonlocal looks
        looks += 1
        look(session, client)

    monkeypatch.setattr(hellos, "look", counted)
    client = drive.connect(port.listen)
    for place in range(len(HELLO)):
        assert not readable(port.git)
        client.say(HELLO[place : place + 1])
        drive.run_until_quiet()
    server = drive.accept(port.git)
    drive.run_until(lambda: server.got == HELLO)
    assert looks <= len(HELLO) + 1  # one at the accept, and one for each event


def test_a_hello_that_is_there_before_the_accept_needs_no_event(drive: Drive, port: Port) -> None:
    client = drive.connect(port.listen)
    client.say(HELLO)
    client.step()
    server = drive.accept(port.git)
    drive.run_until(lambda: server.got == HELLO)


@pytest.mark.parametrize("cut", [0, 1, len(HELLO) - 1, len(HELLO)])
def test_a_hello_right_behind_a_proxy_header_is_looked_at_in_the_same_turn(drive: Drive, cut: int) -> None:
    port = Port(drive, TRUSTING)
    said = header(ProxyProtocol.V2, Address("203.0.113.9", 40000), Address("198.51.100.7", 443)) + HELLO
    place = len(said) - len(HELLO) + cut
    port.client(*filter(None, (said[:place], said[place:])))
    server = drive.accept(port.git)
    drive.run_until(lambda: server.got == HELLO)
    assert drive.sessions()[0].client == "203.0.113.9"


def test_a_silent_client_gets_the_default_route_because_its_server_may_speak_first(drive: Drive, port: Port) -> None:
    client = port.client()
    drive.run_until_quiet()
    drive.pass_time(4.8)
    assert not readable(port.default)
    drive.pass_time(0.4)
    server = drive.accept(port.default)
    server.say(b"220 mail")
    drive.run_until(lambda: client.got == b"220 mail")


def test_a_client_that_only_closes_is_the_default_routes(drive: Drive, port: Port) -> None:
    client = port.client()
    client.finish()
    server = drive.accept(port.default)
    drive.run_until(lambda: server.eof)


@pytest.mark.parametrize("size", [1, 5, 60])
def test_a_part_of_a_hello_is_refused_when_its_time_is_over_and_at_a_fin(drive: Drive, port: Port, size: int) -> None:
    slow, ended = port.client(HELLO[:size]), port.client(HELLO[:size])
    ended.finish()
    drive.run_until(lambda: ended.error)
    assert not slow.error
    drive.pass_time(5.2)
    drive.run_until(lambda: slow.error)
    assert (slow.error, [record.code for record in drive.records]) == ("ECONNRESET", ["PR", "PR"])
    assert port.denied() == {"hello": 2}
    assert port.counts() == (0, 2)
    assert not any(map(readable, (port.default, port.git, port.apps)))


def test_a_fin_right_behind_the_hello_is_no_reason_to_refuse_it(drive: Drive, port: Port) -> None:
    client = drive.connect(port.listen)
    client.say(HELLO)
    client.finish()
    server = drive.accept(port.git)
    drive.run_until(lambda: server.eof)
    assert server.got == HELLO


def test_a_hello_that_does_not_end_is_refused(drive: Drive, port: Port) -> None:
    endless = records(hello((21, bytes(12_000))), [2] * 10_000)
    client = port.client(endless[: MOST_BYTES + 100])
    drive.run_until(lambda: client.error)
    assert (drive.record().code, port.denied()) == ("PR", {"hello": 1})


def test_a_client_that_resets_while_it_is_asked_is_gone(drive: Drive, port: Port) -> None:
    port.client(HELLO[:30]).reset()
    assert drive.record().code == "CR"


def test_without_a_route_and_a_default_route_the_client_is_sent_an_alert(drive: Drive) -> None:
    port = Port(drive, default=False)
    client = port.client(asking_for("other.example.net") + bytes(5000))
    client.say(bytes(3000))  # not read by anybody: the close must not be a reset, which would destroy the alert
    drive.run_until(lambda: client.eof)
    assert client.got == ALERT
    assert not drive.records
    client.finish()
    assert drive.record().code == "PR"
    assert (port.denied(), client.error) == ({"server_name": 1}, "")
    assert drive.trace().record.server == ""


@pytest.mark.parametrize("closes", [False, True], ids=["silent", "only closes"])
def test_who_says_nothing_where_there_is_no_default_route_is_sent_the_alert(drive: Drive, closes: bool) -> None:
    port = Port(drive, default=False)
    client = port.client()
    if closes:
        client.finish()
    else:
        drive.run_until_quiet()
        drive.pass_time(4.8)
        assert not client.got
        drive.pass_time(0.4)
    drive.run_until(lambda: client.eof)
    assert (client.got, client.error) == (ALERT, "")
    client.finish()
    assert (drive.record().code, port.denied()) == ("PR", {"server_name": 1})


def test_a_client_that_does_not_close_after_the_alert_is_closed_in_order(drive: Drive) -> None:
    port = Port(drive, default=False)
    client = port.client(asking_for("other.example.net"))
    drive.run_until(lambda: client.eof)
    drive.pass_time(DISCARD - 0.2)
    assert not drive.records
    drive.pass_time(0.4)
    drive.run_until_quiet()
    assert (drive.record().code, client.got, client.error) == ("PR", ALERT, "")


def test_a_client_that_floods_after_the_alert_is_not_read_for_ever(drive: Drive) -> None:
    port = Port(drive, default=False)
    client = port.client(asking_for("other.example.net"))
    client.say(bytes(64 << 20))
    drive.run_until(lambda: drive.records or client.error)
    drive.pass_time(DISCARD + 0.2)
    assert drive.record().code == "PR"


def test_a_route_without_a_usable_server_never_falls_to_the_default_route(drive: Drive, port: Port) -> None:
    port.route(GIT, server_at(drive.nobody()))
    client = port.client(HELLO)
    drive.run_until(lambda: client.error)
    assert (drive.record().code, readable(port.default)) == ("SC", False)


def test_a_retry_sends_the_hello_whole(drive: Drive, port: Port) -> None:
    port.route(GIT, server_at(drive.nobody(), "gone", weight=100), server_at(port.git, "there", rank=1))
    port.client(HELLO)
    server = drive.accept(port.git)
    drive.run_until(lambda: server.got == HELLO)


def test_the_table_in_force_when_the_hello_is_whole_decides(drive: Drive, port: Port) -> None:
    early, late = port.client(HELLO[:40]), port.client(asking_for("new.example.net")[:40])
    new = drive.backend()
    drive.remove(port.at(GIT))
    port.route("new.example.net", server_at(new))
    early.say(HELLO[40:])
    late.say(asking_for("new.example.net")[40:])
    drive.accept(port.default)
    drive.accept(new)


def test_a_removed_route_keeps_its_sessions_until_their_time_is_over(drive: Drive) -> None:
    port = Port(drive, policy(drain=20.0))
    client = port.client(HELLO)
    server = drive.accept(port.git)
    drive.remove(port.at(GIT))
    server.say(b"still there")
    drive.run_until(lambda: client.got == b"still there")
    port.client(HELLO)
    drive.accept(port.default)
    drive.pass_time(30.0)
    drive.run_until(lambda: client.error)
    assert [record.code for record in drive.records] == ["KD"]


def test_when_the_last_route_is_gone_nobody_waits_for_a_hello(drive: Drive, port: Port) -> None:
    for name in (GIT, APPS):
        drive.remove(port.at(name))
    drive.connect(port.listen)
    drive.accept(port.default)
    state = drive.engine._ports.by_listen[port.listen].frontend
    assert state is not None
    assert state.admission_rules is None


def test_each_session_is_counted_for_its_route_and_takes_a_connection_of_its_port(drive: Drive) -> None:
    port = Port(drive, Policy(max_connections=2))
    clients = [port.client(HELLO), port.client(b"no TLS")]
    servers = [drive.accept(port.git), drive.accept(port.default)]
    assert (port.counts(GIT), port.counts()) == ((1, 1), (1, 1))
    third = port.client(HELLO)
    assert not readable(port.git)
    assert sum(view.server != "" for view in drive.sessions()) == 2
    for peer in (clients[0], servers[0]):
        peer.finish()
    drive.accept(port.git)
    assert (port.counts(GIT), port.counts()) == ((1, 2), (1, 1))
    assert not third.error
    assert [record.frontend for record in drive.records] == ["web:git.example.net"]


def test_a_route_has_its_own_timeouts(drive: Drive, port: Port) -> None:
    port.route(GIT, server_at(port.git), policy=policy(idle=8.0))
    clients = [port.client(HELLO), port.client(b"no TLS")]
    drive.accept(port.git)
    drive.accept(port.default)
    drive.run_until_confirmed()
    drive.pass_time(12.0)
    drive.run_until(lambda: clients[0].error)
    assert not clients[1].error


def test_sessions_of_a_route_wait_in_its_own_queue(drive: Drive, port: Port) -> None:
    port.route(GIT, server_at(port.git, most=1))
    first, second = port.client(HELLO), port.client(HELLO)
    server = drive.accept(port.git)
    assert drive.engine.counters.frontends[port.at(GIT)].queued == 1
    for peer in (first, server):
        peer.finish()
    again = drive.accept(port.git)
    drive.run_until(lambda: again.got == HELLO)
    assert not second.error


def test_a_waiting_session_is_ended_by_a_shutdown(drive: Drive, port: Port) -> None:
    client = port.client(HELLO[:30])
    drive.engine.drain(drive.clock.now)
    drive.pass_time(0.2)
    drive.run_until(lambda: client.error)
    assert drive.record().code == "KR"


def test_a_port_that_cannot_be_opened_takes_its_routes_with_it_and_both_are_tried_again(drive: Drive) -> None:
    taken = drive.backend()
    listen = Listen("tcp", "127.0.0.1", taken.getsockname()[1])
    git = drive.backend()
    assert drive.serve_or_fail(listen=listen)
    failed = drive.serve_or_fail(server_at(git), listen=listen._replace(server_name=GIT), name="web:git")
    assert set(failed) == {listen, listen._replace(server_name=GIT)}
    taken.close()
    assert not drive.publish()
    drive.connect(listen).say(HELLO)
    drive.accept(git)


def test_a_route_changes_its_servers_without_touching_its_sessions(drive: Drive, port: Port) -> None:
    client = port.client(HELLO)
    old, moved = drive.accept(port.git), drive.backend()
    port.route(GIT, replace(server_at(moved), name="moved"))
    port.client(HELLO)
    drive.accept(moved)
    old.say(b"still there")
    drive.run_until(lambda: client.got == b"still there")


def test_what_a_client_asked_for_is_in_its_record_and_cannot_harm_a_terminal(drive: Drive, port: Port) -> None:
    for name in (GIT, "evil\x1b[2J.example.net", "a" * 300 + ".net"):
        port.client(asking_for(name)).finish()
        for backend in (port.git, port.default):
            if readable(backend):
                drive.accept(backend).finish()
    drive.run_until(lambda: len(drive.records) == 3)
    asked = [record.asked for record in drive.records]
    assert asked[0] == GIT
    assert all(name.isprintable() and len(name) <= 4 * 253 for name in asked)


def test_the_limit_of_a_routes_server_is_that_of_all_processes(drive: Drive, port: Port) -> None:
    route = port.at("one.example.net")
    backend = drive.backend()
    port.route("one.example.net", replace(server_at(backend), max_connections=2))
    drive.engine.other_processes.follow([route])
    address = str(server_at(backend).address)
    drive.engine.other_processes.take_report(2, (FrontendUse(route, 2, 0, {address: 2}, {}),), drive.clock.now)
    port.client(asking_for("one.example.net"))
    assert not readable(backend)
    drive.engine.other_processes.take_report(2, (FrontendUse(route, 0, 0, {address: 0}, {}),), drive.clock.now)
    drive.accept(backend)
    (use,) = drive.engine.other_processes.uses()
    assert (use.listen, use.sessions, use.servers) == (route, 1, {address: 1})
