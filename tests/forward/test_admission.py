"""Before a client is anybody's: access lists, limits by source, rates, and PROXY headers from trusted proxies."""

from dataclasses import replace
from ipaddress import ip_network

import pytest

from pylb.core.access import AccessList, AccessRule, Networks
from pylb.core.address import Address, Listen
from pylb.core.policy import Policy, ProxyAccept, ProxyProtocol, SourceLimits
from pylb.core.proxy_protocol import header, parse
from tests.support.drive import Drive, server_at
from tests.support.ports import free_port

EVERYBODY = Networks([ip_network("0.0.0.0/0"), ip_network("::/0")])
TRUSTING = Policy(accept_proxy=ProxyAccept(EVERYBODY))
FAR = Address("203.0.113.9", 40000)
HERE = Address("198.51.100.7", 443)


def access(*lines: str) -> AccessList:
    return AccessList([AccessRule(line.startswith("allow"), ip_network(line.split()[1])) for line in lines])


def test_a_denied_client_is_reset_counted_and_logged_but_no_session(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=Policy(access=access("deny 127.0.0.2/32")))
    client = drive.connect(listen, source="127.0.0.2")
    drive.run_until(lambda: client.error)
    assert client.error == "ECONNRESET"
    counters = drive.engine.counters.frontends[listen]
    assert counters.denied == {"access": 1}
    assert counters.sessions_total == 0
    record = drive.record()
    assert (record.code, record.client, record.server, record.queue_ms, record.connect_ms) == ("PR", "127.0.0.2", "", -1, -1)
    other = drive.connect(listen)
    drive.accept(backend)
    assert not other.error


def test_an_ipv4_client_of_a_dual_stack_port_is_found_in_the_list(drive: Drive) -> None:
    listen = drive.serve(
        server_at(drive.backend()), listen=Listen("tcp", "*", free_port()), policy=Policy(access=access("deny 127.0.0.0/8"))
    )
    client = drive.connect(listen)
    drive.run_until(lambda: client.error)
    assert drive.record().client == "127.0.0.1"


def test_a_source_has_its_number_of_connections_and_gets_it_back(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=Policy(limits=SourceLimits(per_source=2)))
    clients = [drive.connect(listen) for _ in range(2)]
    servers = [drive.accept(backend) for _ in range(2)]
    refused = drive.connect(listen)
    drive.run_until(lambda: refused.error)
    elsewhere = drive.connect(listen, source="127.0.0.3")
    servers.append(drive.accept(backend))
    clients[0].finish()
    servers[0].finish()
    drive.run_until(lambda: len(drive.records) == 2)
    again = drive.connect(listen)
    drive.accept(backend)
    assert not again.error
    assert not elsewhere.error
    assert drive.engine.counters.frontends[listen].denied == {"per_source": 1}


def test_a_table_with_other_limits_still_knows_who_is_there(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=Policy(limits=SourceLimits(per_source=5)))
    drive.connect(listen)
    drive.accept(backend)
    drive.serve(server_at(backend), policy=Policy(limits=SourceLimits(per_source=1)), listen=listen)
    refused = drive.connect(listen)
    drive.run_until(lambda: refused.error)
    drive.serve(server_at(backend), policy=Policy(), listen=listen)
    drive.connect(listen)
    drive.accept(backend)


def test_a_source_that_comes_too_fast_is_refused_until_its_time_comes(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=Policy(limits=SourceLimits(per_source_rate=2)))
    for _ in range(2):
        drive.connect(listen)
        drive.accept(backend)
    refused = drive.connect(listen)
    drive.run_until(lambda: refused.error)
    drive.pass_time(0.5)
    drive.connect(listen)
    drive.accept(backend)
    assert drive.engine.counters.frontends[listen].denied == {"per_source_rate": 1}


def test_what_comes_above_a_frontends_rate_waits_in_the_backlog(drive: Drive) -> None:
    drive.pass_time(0.1)  # so that the next tick is not the first one
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=Policy(limits=SourceLimits(rate=10)))
    clients = [drive.connect(listen) for _ in range(13)]
    for _ in range(10):
        drive.accept(backend)
    drive.run_until_quiet()
    assert drive.engine.counters.frontends[listen].sessions_total == 10
    for total in (11, 12, 13):
        drive.pass_time(0.1)
        drive.accept(backend)
        drive.run_until_quiet()
        assert drive.engine.counters.frontends[listen].sessions_total == total
    assert not any(client.error for client in clients)


# ---------------------------------------------------------------- PROXY headers from clients


@pytest.mark.parametrize("version", [ProxyProtocol.V1, ProxyProtocol.V2])
def test_the_client_of_a_trusted_proxys_header_counts_everywhere(drive: Drive, version: ProxyProtocol) -> None:
    policy = replace(TRUSTING, access=access("allow 203.0.113.0/24"), limits=SourceLimits(per_source=1))
    backend = drive.backend()
    listen = drive.serve(server_at(backend, proxy=ProxyProtocol.V2), policy=policy)
    client = drive.connect(listen)
    client.say(header(version, FAR, HERE) + b"hello")
    server = drive.accept(backend)
    drive.run_until(lambda: bytes(server.got).endswith(b"hello"))
    sent_on = parse(bytes(server.got))
    assert sent_on is not None
    assert (sent_on.client, sent_on.local) == (FAR, HERE)
    assert bytes(server.got[sent_on.size :]) == b"hello"
    second = drive.connect(listen)
    second.say(header(version, Address(FAR.ip, 40001), HERE))
    drive.run_until(lambda: second.error)
    stranger = drive.connect(listen)
    stranger.say(header(version, Address("192.0.2.1", 40001), HERE))
    drive.run_until(lambda: stranger.error)
    assert [(record.code, record.client) for record in drive.records] == [("PR", FAR.ip), ("PR", "192.0.2.1")]
    assert drive.engine.counters.frontends[listen].denied == {"per_source": 1, "access": 1}
    client.finish()
    server.finish()
    drive.run_until(lambda: len(drive.records) == 3)
    assert (drive.records[2].client, drive.records[2].client_port, drive.records[2].bytes_in) == (FAR.ip, FAR.port, 5)


def test_a_header_in_pieces_and_the_bytes_behind_it_arrive(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=TRUSTING)
    client = drive.connect(listen)
    for byte in header(ProxyProtocol.V2, FAR, HERE):
        client.say(bytes([byte]))
        drive.run_until(lambda: not client.unsaid)
        drive.run_until_quiet()
    server = drive.accept(backend)
    client.say(b"hello")
    drive.run_until(lambda: server.got == b"hello")


def test_a_proxys_own_check_is_forwarded_as_its_own(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, proxy=ProxyProtocol.V1), policy=TRUSTING)
    client = drive.connect(listen)
    client.say(b"PROXY UNKNOWN\r\n")
    server = drive.accept(backend)
    drive.run_until(lambda: server.got)
    sent_on = parse(bytes(server.got))
    assert sent_on is not None
    assert sent_on.client == client.local


def test_who_is_not_trusted_is_forwarded_as_it_came(drive: Drive) -> None:
    policy = Policy(accept_proxy=ProxyAccept(Networks([ip_network("127.0.0.9/32")])))
    backend = drive.backend()
    client = drive.connect(drive.serve(server_at(backend), policy=policy))
    client.say(header(ProxyProtocol.V1, FAR, HERE))
    server = drive.accept(backend)
    drive.run_until(lambda: bytes(server.got) == header(ProxyProtocol.V1, FAR, HERE))
    client.finish()
    server.finish()
    assert drive.record().client == "127.0.0.1"


def test_what_is_no_header_is_refused_at_once(drive: Drive) -> None:
    listen = drive.serve(server_at(drive.backend()), policy=TRUSTING)
    client = drive.connect(listen)
    client.say(b"GET / HTTP/1.1\r\n")
    drive.run_until(lambda: client.error)
    assert drive.record().code == "PR"
    assert drive.engine.counters.frontends[listen].denied == {"proxy_header": 1}


def test_a_header_that_does_not_come_is_waited_for_so_long(drive: Drive) -> None:
    listen = drive.serve(server_at(drive.backend()), policy=Policy(accept_proxy=ProxyAccept(EVERYBODY, timeout=3.0)))
    client = drive.connect(listen)
    client.say(b"PROXY TC")
    drive.run_until_quiet()
    drive.pass_time(2.8)
    assert not drive.records
    drive.pass_time(0.3)
    drive.run_until(lambda: client.error)
    assert drive.record().code == "cR"


@pytest.mark.parametrize("ending", ["finish", "reset"])
def test_a_client_that_leaves_before_its_header_is_whole(drive: Drive, ending: str) -> None:
    client = drive.connect(drive.serve(server_at(drive.backend()), policy=TRUSTING))
    client.say(b"PROXY TC")
    drive.run_until(lambda: not client.unsaid)
    getattr(client, ending)()
    assert drive.record().code == "CR"


def test_a_client_that_said_all_at_once_and_left_is_served(drive: Drive) -> None:
    backend = drive.backend()
    client = drive.connect(drive.serve(server_at(backend), policy=TRUSTING))
    client.say(header(ProxyProtocol.V1, FAR, HERE) + b"hello")
    client.finish()
    server = drive.accept(backend)
    drive.run_until(lambda: server.eof)
    assert server.got == b"hello"
    server.finish()
    assert drive.record().code == "--"


def test_a_unique_id_is_made_passed_on_and_logged(drive: Drive) -> None:
    policy = replace(TRUSTING, send_unique_id=True, send_crc32c=True)
    backend = drive.backend()
    listen = drive.serve(server_at(backend, proxy=ProxyProtocol.V2), policy=policy)
    own = drive.connect(listen)
    own.say(b"PROXY UNKNOWN\r\n")
    server = drive.accept(backend)
    drive.run_until(lambda: server.got)
    made = parse(bytes(server.got))
    assert made is not None
    assert len(made.unique_id) == 16
    given = drive.connect(listen)
    given.say(header(ProxyProtocol.V2, FAR, HERE, unique_id=b"theirs"))
    second = drive.accept(backend)
    drive.run_until(lambda: second.got)
    passed_on = parse(bytes(second.got))
    assert passed_on is not None
    assert passed_on.unique_id == b"theirs"
    for peer in (own, server):
        peer.finish()
    assert drive.record().unique_id == made.unique_id.hex()


VPC_ENDPOINT = b"\xea\x00\x05\x01vpce"


@pytest.mark.parametrize("passes", [True, False])
def test_the_tlvs_of_a_cloud_are_passed_on_to_servers_that_get_v2_if_that_is_wanted(drive: Drive, *, passes: bool) -> None:
    policy = replace(TRUSTING, pass_tlvs=passes)
    backend = drive.backend()
    listen = drive.serve(server_at(backend, proxy=ProxyProtocol.V2), policy=policy)
    client = drive.connect(listen)
    client.say(header(ProxyProtocol.V2, FAR, HERE, crc32c=True, unique_id=b"theirs", tlvs=VPC_ENDPOINT) + b"hello")
    server = drive.accept(backend)
    drive.run_until(lambda: bytes(server.got).endswith(b"hello"))
    sent_on = parse(bytes(server.got))
    assert sent_on is not None
    assert (sent_on.client, sent_on.local) == (FAR, HERE)
    expected = (VPC_ENDPOINT, b"theirs", True) if passes else (b"", b"", False)
    assert (sent_on.tlvs, sent_on.unique_id, sent_on.crc32c) == expected


def test_a_policy_that_asks_nothing_any_more_lets_waiting_clients_in(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend), policy=TRUSTING)
    client = drive.connect(listen)
    drive.run_until_quiet()
    drive.serve(server_at(backend), policy=Policy(), listen=listen)
    client.say(header(ProxyProtocol.V1, FAR, HERE) + b"hello")
    server = drive.accept(backend)
    drive.run_until(lambda: server.got == b"hello")
