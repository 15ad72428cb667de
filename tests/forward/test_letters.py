"""Every pair of letters that pylb claims, made to happen. The table of docs/engine.md is explaining.LETTERS."""

import socket
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from pylb.cli.session_trace import LETTERS
from pylb.core.access import Networks
from pylb.core.address import Address, Listen
from pylb.core.policy import OnDown, Policy, ProxyAccept
from pylb.core.table import DOWN, Server
from pylb.forward.sockets import unacknowledged
from tests.support.drive import Drive, Peer, policy, server_at
from tests.support.ports import free_port

EVERYBODY = Networks([ip_network("127.0.0.0/8")])
Play = Callable[[Drive], None]


def dialing(drive: Drive, **seconds: float) -> Peer:
    client = drive.connect(drive.serve(server_at(drive.black_hole()), policy=policy(**seconds)))
    drive.run_until(lambda: drive.engine.counters.open_sessions == 1)
    return client


def queued(drive: Drive, chosen: Policy) -> tuple[Listen, Peer]:
    """Behind one that has the only place."""
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1), policy=chosen)
    drive.connect(listen)
    drive.accept(backend)
    client = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    return listen, client


def without_header(drive: Drive, timeout: float = 3.0) -> Peer:
    trusting = Policy(accept_proxy=ProxyAccept(EVERYBODY, timeout))
    client = drive.connect(drive.serve(server_at(drive.backend()), policy=trusting))
    client.say(b"PROXY TC")
    drive.run_until(lambda: drive.engine.counters.open_sessions == 1 and not client.unsaid)
    return client


def last_words(drive: Drive, **seconds: float) -> Peer:
    """The client has said its FIN and reads no more; the server has said all, its FIN too."""
    client, server = drive.session(policy(**seconds), rcvbuf=4096)
    client.finish()
    drive.run_until(lambda: server.eof)
    client.reading = False
    for half in drive.engine._life.halves.values():
        if half.is_client:
            half.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # or the kernel would take all of it
    server.say(bytes(100_000))
    server.finish()
    drive.run_until(lambda: not server.unsaid and not unacknowledged(server.sock))
    drive.run_until_quiet()
    drive.run_until_answered()
    return client


def both_leave(drive: Drive) -> None:
    client, server = drive.session()
    client.finish()
    drive.run_until(lambda: server.eof)
    server.finish()


def client_goes(drive: Drive) -> None:
    client, server = drive.session()
    client.say(b"half")
    drive.run_until(lambda: server.got)
    client.reset()


def server_goes(drive: Drive) -> None:
    client, server = drive.session()
    server.say(b"half")
    drive.run_until(lambda: client.got)
    server.reset()


def silence(first: str) -> Play:
    def play(drive: Drive) -> None:
        client, server = drive.session(policy(idle=60))
        if first:
            speaker, hearer = (client, server) if first == "client" else (server, client)
            speaker.say(b"your turn")
            drive.run_until(lambda: hearer.got)
            drive.run_until_confirmed()
        drive.pass_time(70, step=1)

    return play


def half_closed(first: str) -> Play:
    def play(drive: Drive) -> None:
        client, server = drive.session(policy(half_close=20))
        goes, stays = (client, server) if first == "client" else (server, client)
        goes.finish()
        drive.run_until(lambda: stays.eof)
        drive.run_until_confirmed()
        drive.pass_time(30, step=0.5)

    return play


def refused(drive: Drive) -> None:
    drive.connect(drive.serve(server_at(drive.nobody())))
    drive.run_until(lambda: drive.records)


def unheard(drive: Drive) -> None:
    dialing(drive, connect=1)
    drive.pass_time(1.5)


def out_of_ports(drive: Drive) -> None:
    # An address this machine does not have is a want of ours, not the server's.
    drive.connect(drive.serve(server_at(drive.backend()), policy=Policy(source_addresses=("192.0.2.77",))))
    drive.run_until(lambda: drive.records)


def denied(drive: Drive) -> None:
    client = without_header(drive)
    client.say(b"P6 nonsense\r\n")
    drive.run_until(lambda: drive.records)


def queue_is_full(drive: Drive) -> None:
    listen, _ = queued(drive, Policy(max_queue=1))
    drive.connect(listen)
    drive.run_until(lambda: drive.records)


def server_found_down(drive: Drive) -> None:
    chosen, backend = Policy(on_down=OnDown.CLOSE), drive.backend()
    listen = drive.serve(server_at(backend), policy=chosen)
    drive.connect(listen)
    drive.accept(backend)
    drive.run_until_quiet()
    drive.serve(server_at(backend, rank=DOWN), policy=chosen, listen=listen)
    drive.pass_time(0.2)


def then(*steps: Callable[[Drive], object]) -> Play:
    def play(drive: Drive) -> None:
        for step in steps:
            step(drive)

    return play


def time_passes(seconds: float) -> Play:
    return lambda drive: drive.pass_time(seconds, step=0.5)


def drained(drive: Drive) -> None:
    drive.engine.drain(drive.clock.now + 5)
    drive.pass_time(6)


def room_made(drive: Drive) -> None:
    """A flow of UDP, whose client has not shown that it gets the answers; another client takes its place."""
    first, second, server = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(3))
    with first, second, server:
        server.bind(("127.0.0.1", 0))
        listen = Listen("udp", "127.0.0.1", free_port())
        address = Address(*server.getsockname(), "udp")
        drive.serve(Server("a", address), policy=Policy(max_connections=1), listen=listen)
        for client in (first, second):
            client.sendto(b"x", ("127.0.0.1", listen.port))
        drive.run_until(lambda: drive.records)


def broken(drive: Drive) -> None:
    """A bug of ours in the middle of a relay."""
    client, _ = drive.session()

    def pump(_source: object) -> int:
        raise RuntimeError("a bug")

    drive.engine._life._relay.pump = pump  # type: ignore[method-assign]
    client.say(b"x")
    drive.run_until(lambda: drive.faults)


def broken_dial(drive: Drive) -> None:
    def pick(*_: object) -> None:
        raise RuntimeError("a bug")

    listen = drive.serve(server_at(drive.backend()))
    drive.engine._life.dialer._connect = pick  # type: ignore[assignment]
    drive.connect(listen)
    drive.run_until(lambda: drive.faults)


CASES: dict[str, list[Play]] = {
    "--": [both_leave],
    "CR": [lambda drive: without_header(drive).reset()],
    "CQ": [lambda drive: queued(drive, Policy())[1].reset()],
    "CC": [lambda drive: dialing(drive).reset()],
    "CD": [client_goes],
    "CL": [lambda drive: last_words(drive).reset()],
    "SC": [refused],
    "SD": [server_goes],
    "cR": [then(without_header, time_passes(4))],
    "cD": [silence("server"), silence(""), half_closed("server")],
    "cL": [then(lambda drive: last_words(drive, half_close=20), time_passes(40))],
    "sQ": [then(lambda drive: queued(drive, policy(queue=2)), time_passes(3))],
    "sC": [unheard],
    "sD": [silence("client"), half_closed("client")],
    "RC": [out_of_ports],
    "RD": [room_made],
    "PR": [denied],
    "PQ": [queue_is_full],
    "DD": [server_found_down],
    "KR": [then(lambda drive: without_header(drive, 60), drained)],
    "KQ": [then(lambda drive: queued(drive, policy(queue=60)), drained)],
    "KC": [then(lambda drive: dialing(drive, connect=60), drained)],
    "KD": [then(lambda drive: drive.session(), drained)],
    "KL": [then(last_words, drained)],
    "IC": [broken_dial],
    "ID": [broken],
}


def test_every_pair_that_is_claimed_is_made_to_happen_here() -> None:
    assert CASES.keys() == LETTERS.keys()


@pytest.mark.parametrize(("code", "play"), [(code, play) for code, plays in CASES.items() for play in plays])
def test_the_letters_of_an_ending(make_drive: Callable[..., Drive], code: str, play: Play) -> None:
    drive = make_drive(splice=False)  # how bytes travel makes no difference here
    play(drive)
    drive.run_until(lambda: drive.records)
    codes = [record.code for record in drive.records]
    assert codes == (["KQ", "KD"] if code == "KQ" else [code])  # who waits goes first: nobody is dialled for it any more
    [counters] = drive.engine.counters.frontends.values()
    counted = sum((server.closed for server in counters.servers.values()), Counter())
    assert counted == Counter(codes), "the metric's label is not the log's"
