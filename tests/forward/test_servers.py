"""Choosing and dialing servers, fault cases 15 to 17: refused, unreachable, silent, and what they are told first."""

import errno
import socket
from dataclasses import replace

import pytest

from pylb.core.address import Address, Listen
from pylb.core.policy import Balance, Policy, ProxyProtocol
from tests.support.drive import Drive, policy, server_at
from tests.support.netns import Namespace
from tests.support.ports import free_port


def test_a_refusing_server_is_passed_over_without_telling_the_client(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(drive.nobody(), "dead"), server_at(backend, "alive", rank=1))
    client = drive.connect(listen)
    server = drive.accept(backend)
    client.say(b"hello")
    drive.run_until(lambda: server.got == b"hello")
    client.finish()
    server.finish()
    record = drive.record()
    assert (record.code, record.server, record.retries, record.redispatched) == ("--", "alive", 1, True)
    assert drive.witness.connects == [("dead", "refused")]
    assert drive.engine.counters.frontends[listen].servers["dead"].failures == {"refused": 1}


def test_a_client_is_reset_at_once_when_no_server_is_left(drive: Drive) -> None:
    listen = drive.serve(*(server_at(drive.nobody(), name) for name in "abc"))
    client = drive.connect(listen)
    drive.run_until(lambda: client.error, limit=2)
    assert client.error == "ECONNRESET"
    record = drive.record()
    assert (record.code, record.retries, record.connect_ms) == ("SC", 2, -1)
    assert [failure for _, failure in drive.witness.connects] == ["refused"] * 3


def test_a_frontend_without_servers_resets_its_clients(drive: Drive) -> None:
    client = drive.connect(drive.serve())
    drive.run_until(lambda: client.error)
    record = drive.record()
    assert (record.code, record.server, record.retries) == ("SC", "", 0)


def test_retries_count_other_servers_and_none_is_tried_twice(drive: Drive) -> None:
    dead = [server_at(drive.nobody(), name) for name in "abcdef"]
    listen = drive.serve(*dead, policy=Policy(retries=2))
    client = drive.connect(listen)
    drive.run_until(lambda: client.error)
    tried = [name for name, _ in drive.witness.connects]
    assert len(tried) == len(set(tried)) == 3
    assert drive.record().retries == 2


def test_a_server_of_weight_zero_gets_nothing_and_the_next_rank_serves(drive: Drive) -> None:
    unused, backend = drive.backend(), drive.backend()
    listen = drive.serve(server_at(unused, "resting", weight=0), server_at(backend, "alive", rank=1))
    drive.connect(listen)
    drive.accept(backend)


def test_a_black_hole_is_left_for_the_next_server_after_the_connect_timeout(drive: Drive) -> None:
    hole, backend = drive.black_hole(), drive.backend()
    listen = drive.serve(server_at(hole, "hole"), server_at(backend, "alive", rank=1), policy=policy(connect=2))
    client = drive.connect(listen)
    client.say(b"early")
    other = drive.serve(server_at(backend, "alive"))
    drive.connect(other)
    drive.accept(backend)  # other connections are unaffected
    drive.pass_time(1.5)
    assert not drive.witness.connects
    drive.pass_time(1)
    assert drive.witness.connects == [("hole", "timeout")]
    server = drive.accept(backend)
    drive.run_until(lambda: server.got == b"early")


def test_a_black_hole_without_another_server_is_told_as_a_server_timeout(drive: Drive) -> None:
    listen = drive.serve(server_at(drive.black_hole()), policy=policy(connect=2))
    client = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.open_sessions)
    drive.pass_time(2.5)
    drive.run_until(lambda: client.error)
    record = drive.record()
    assert (record.code, record.retries) == ("sC", 0)
    assert record.total_ms >= 2000


def test_a_client_that_gives_up_while_the_server_is_dialed_frees_everything(drive: Drive) -> None:
    listen = drive.serve(server_at(drive.black_hole()))
    client = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.open_sessions)
    client.reset()
    record = drive.record()
    assert (record.code, record.connect_ms, record.server) == ("CC", -1, "a")


def test_a_client_that_says_fin_while_the_server_is_dialed_is_heard_later(drive: Drive) -> None:
    hole, backend = drive.black_hole(), drive.backend()
    listen = drive.serve(server_at(hole, "hole"), server_at(backend, "alive", rank=1), policy=policy(connect=1))
    client = drive.connect(listen)
    client.say(b"bye")
    client.finish()
    drive.run_until_quiet()
    drive.pass_time(1.2)
    server = drive.accept(backend)
    drive.run_until(lambda: server.eof)
    assert server.got == b"bye"


def test_a_server_that_accepts_and_never_answers_keeps_its_session_until_idle(drive: Drive) -> None:
    client, _server = drive.session(policy(idle=60))
    client.say(b"anybody?")
    drive.run_until_quiet()
    drive.run_until_confirmed()
    drive.pass_time(59, step=1)
    assert not drive.records
    drive.pass_time(20, step=1)
    assert drive.record().code == "sD"
    assert drive.record().retries == 0


def test_a_server_that_accepts_and_resets_in_one_event_is_no_retry(drive: Drive) -> None:
    backend, spare = drive.backend(), drive.backend()
    listen = drive.serve(server_at(backend), server_at(spare, "b", rank=1))
    client = drive.connect(listen)
    client.sock.send(b"question")
    drive.engine.on_ready()  # accepts and dials; the outcome is not looked at yet
    sock, _ = backend.accept()
    sock.send(b"banner")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    drive.run_until(lambda: client.error or client.eof)
    assert client.error == "ECONNRESET"
    assert client.got == b"banner"
    record = drive.record()
    assert (record.code, record.server, record.retries) == ("SD", "a", 0)


def test_a_server_that_accepts_speaks_and_says_fin_in_one_event_is_heard(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    client = drive.connect(listen)
    drive.engine.on_ready()
    sock, _ = backend.accept()
    sock.send(b"the time is 12:00\r\n")
    sock.close()
    drive.run_until(lambda: client.eof)
    assert client.got == b"the time is 12:00\r\n"
    client.finish()
    assert drive.record().code == "--"


def test_success_is_told_once_after_a_failure(drive: Drive) -> None:
    gone = drive.nobody()
    server = server_at(gone, "flappy")
    listen = drive.serve(server)
    refused = drive.connect(listen)
    drive.run_until(lambda: refused.error)
    for holder in drive._listeners:
        holder.close()
    backend = drive.backend(port=gone.port)
    for _ in range(2):
        drive.connect(listen)
        drive.accept(backend)
    assert drive.witness.connects == [("flappy", "refused"), ("flappy", None)]


def test_leastconn_counts_dialing_sessions_too(drive: Drive) -> None:
    first, second = drive.backend(), drive.backend()
    listen = drive.serve(server_at(first, "a"), server_at(second, "b"))
    for _ in range(6):
        drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.open_sessions == 6)
    servers = drive.engine._ports.by_listen[listen].frontend
    assert servers is not None
    assert [server.sessions for server in servers.servers.values()] == [3, 3]


def test_roundrobin_follows_weights(drive: Drive) -> None:
    first, second = drive.backend(), drive.backend()
    listen = drive.serve(server_at(first, "a", weight=2), server_at(second, "b"), policy=Policy(balance=Balance.ROUNDROBIN))
    for _ in range(6):
        drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.open_sessions == 6)
    drive.run_until_quiet()
    totals = drive.engine.counters.frontends[listen].servers
    assert (totals["a"].sessions_total, totals["b"].sessions_total) == (4, 2)


@pytest.mark.parametrize("version", [ProxyProtocol.V1, ProxyProtocol.V2])
@pytest.mark.parametrize("early", [b"", b"EHLO client\r\n"])
def test_the_proxy_header_goes_first_and_whole(drive: Drive, version: ProxyProtocol, early: bytes) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, proxy=version))
    client = drive.connect(listen)
    client.say(early)
    client.step()
    server = drive.accept(backend)
    port = client.local.port
    if version is ProxyProtocol.V1:
        expected = f"PROXY TCP4 127.0.0.1 127.0.0.1 {port} {listen.port}\r\n".encode()
    else:
        expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + b"\x7f\0\0\1" * 2 + port.to_bytes(2) + listen.port.to_bytes(2)
    drive.run_until(lambda: len(server.got) >= len(expected) + len(early))
    assert server.got == expected + early
    server.say(b"220 hello\r\n")
    drive.run_until(lambda: client.got == b"220 hello\r\n")
    client.finish()
    server.finish()
    assert drive.record().bytes_in == len(early)  # the client's own bytes, not ours


def test_a_server_behind_proxy_protocol_that_speaks_first_is_heard(drive: Drive) -> None:
    client, server = drive.session(proxy=ProxyProtocol.V1)
    server.say(b"220 mail.example.net\r\n")
    drive.run_until(lambda: client.got)
    assert server.got.startswith(b"PROXY TCP4 ")


@pytest.mark.parametrize(
    ("listen_ip", "client_ip", "family"),
    [("*", "127.0.0.1", "TCP4"), ("*", "::1", "TCP6"), ("127.0.0.1", "127.0.0.1", "TCP4"), ("::1", "::1", "TCP6")],
)
@pytest.mark.parametrize("server_ip", ["127.0.0.1", "::1"])
def test_ipv4_and_ipv6_clients_are_told_apart(
    drive: Drive, listen_ip: str, client_ip: str, family: str, server_ip: str
) -> None:
    backend = drive.backend(server_ip)
    listen = drive.serve(server_at(backend, proxy=ProxyProtocol.V1), listen=Listen("tcp", listen_ip, free_port()))
    client = drive.connect(listen, client_ip)
    server = drive.accept(backend)
    expected = f"PROXY {family} {client_ip} {client_ip} {client.local.port} {listen.port}\r\n".encode()
    drive.run_until(lambda: len(server.got) >= len(expected))
    assert server.got == expected
    client.finish()
    server.finish()
    assert (drive.record().client, drive.record().client_port) == (client_ip, client.local.port)


def test_an_unreachable_network_is_told_as_unreachable(drive: Drive) -> None:
    backend = drive.backend()
    # 240.0.0.0/4 (RFC 1112, reserved): no route out of any machine; the kernel says so at connect().
    listen = drive.serve(server_at(Address("255.255.255.255", 9), "nowhere"), server_at(backend, rank=1))
    drive.connect(listen)
    drive.accept(backend)
    assert drive.witness.connects == [("nowhere", "unreachable")]


def test_a_change_of_a_servers_address_is_a_new_server(drive: Drive) -> None:
    first, second = drive.backend(), drive.backend()
    server = server_at(first)
    listen = drive.serve(server)
    drive.connect(listen)
    drive.accept(first)
    drive.serve(replace(server, address=Address(*second.getsockname())), listen=listen)
    drive.connect(listen)
    drive.accept(second)


def test_the_counters_of_a_server_that_left_go_with_its_last_session(drive: Drive) -> None:
    old, new = drive.backend(), drive.backend()
    listen = drive.serve(server_at(old, "pod-1"))
    client = drive.connect(listen)
    drive.accept(old)
    labels = drive.engine.counters.frontends[listen].servers
    drive.serve(server_at(new, "pod-2"), listen=listen)
    drive.serve(server_at(new, "pod-3"), listen=listen)
    assert set(labels) == {"pod-1", "pod-3"}
    client.reset()
    drive.run_until(lambda: drive.records)
    drive.serve(server_at(new, "pod-4"), listen=listen)
    assert set(labels) == {"pod-4"}


@pytest.mark.parametrize("address", ["192.0.2.77", "2001:db8::77"])
def test_a_port_can_listen_on_an_address_that_comes_later(loopback: Namespace, drive: Drive, address: str) -> None:
    """As the standby machine of a VRRP pair does."""
    backend = drive.backend()
    listen = Listen("tcp", address, free_port())
    assert drive.serve_or_fail(server_at(backend), listen=listen)[listen].errno == errno.EADDRNOTAVAIL
    drive.serve(server_at(backend), listen=listen, policy=Policy(freebind=True))
    loopback.ip(f"address add {address} dev lo")
    client = drive.connect(listen, ip=address)
    client.say(b"hello")
    server = drive.accept(backend)
    drive.run_until(lambda: server.got == b"hello")
