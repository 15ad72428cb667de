"""Ports, limits, tables, pipes and faults: what the engine does around its sessions."""

import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest

from pylb.core.address import Listen
from pylb.core.policy import Policy
from pylb.core.session import SessionRecord
from pylb.core.table import Server
from pylb.forward.engine import connection_limit, pipe_limit
from pylb.forward.listener import BATCH
from pylb.forward.pipes import Pipe, Pipes
from pylb.forward.session import FrontendState, Half, Session
from pylb.forward.sockets import open_listener
from tests.support.drive import LIMIT, Drive, Peer, Witness, policy, readable, server_at
from tests.support.peers import need_root
from tests.support.ports import free_port
from tests.support.processes import run_python

MIB = 1 << 20
Make = Callable[..., Drive]


# ------------------------------------------------------------ tables


def test_a_table_swap_leaves_live_sessions_where_they_are(drive: Drive) -> None:
    old, new = drive.backend(), drive.backend()
    listen = drive.serve(server_at(old, "old"))
    client = drive.connect(listen)
    server = drive.accept(old)
    drive.serve(server_at(new, "new"), listen=listen)
    later = drive.connect(listen)
    later_server = drive.accept(new)
    client.say(b"to the old one")
    later.say(b"to the new one")
    drive.run_until(lambda: server.got == b"to the old one" and later_server.got == b"to the new one")
    for peer in (client, server, later, later_server):
        peer.finish()
    drive.run_until(lambda: len(drive.records) == 2)
    assert {record.server for record in drive.records} == {"old", "new"}


def test_a_port_taken_by_somebody_else_is_reported_and_served_later(drive: Drive) -> None:
    backend = drive.backend()
    port = free_port()
    squatter = drive.backend(port=port)
    listen = Listen("tcp", "127.0.0.1", port)
    failed = drive.serve_or_fail(server_at(backend), listen=listen)
    assert [error.errno for error in failed.values()] == [errno.EADDRINUSE]
    other = Listen("tcp", "127.0.0.1", free_port())
    assert list(drive.serve_or_fail(server_at(backend), listen=other)) == [listen]  # the rest serves all the same
    drive.connect(other)
    drive.accept(backend)
    squatter.close()
    assert drive.publish() == {}
    drive.connect(listen)
    drive.accept(backend)


def test_a_port_opened_ahead_of_its_table_accepts_nothing_until_then(drive: Drive) -> None:
    backend = drive.backend()
    listen = Listen("tcp", "127.0.0.1", free_port())
    drive.engine.open(listen)
    drive.engine.open(listen)
    client = drive.connect(listen)
    client.say(b"patience")
    drive.run_until_quiet()
    assert not readable(drive.engine)
    drive.serve(server_at(backend), listen=listen)
    server = drive.accept(backend)
    drive.run_until(lambda: server.got == b"patience")


def test_a_port_that_was_discarded_is_closed_and_a_served_one_is_not(drive: Drive) -> None:
    ahead = Listen("tcp", "127.0.0.1", free_port())
    drive.engine.open(ahead)
    drive.engine.discard(ahead)
    drive.engine.discard(ahead)
    with pytest.raises(ConnectionRefusedError):
        drive.connect(ahead)
    served = drive.serve()
    drive.engine.discard(served)
    drive.connect(served)


def test_a_listener_that_another_process_holds_too_wakes_this_one_no_more(drive: Drive) -> None:
    """epoll(7): close() takes a descriptor out only when it is the last one of its open file."""
    listen = drive.serve(server_at(drive.backend()))
    elsewhere = os.dup(drive.engine._ports.by_listen[listen].fd)
    drive.engine.drain(drive.clock() + 10, accept=False)
    waiting = drive.connect(listen)  # for whoever holds the socket now
    assert not readable(drive.engine)
    os.close(elsewhere)
    drive.run_until(lambda: waiting.error)


def test_who_waits_at_a_drain_is_served_however_many_there_are(drive: Drive) -> None:
    listen = drive.serve(server_at(drive.backend()))
    clients = [drive.connect(listen) for _ in range(BATCH + 10)]
    drive.engine.drain(drive.clock() + 1000)
    assert drive.engine.counters.open_sessions == len(clients)


def test_whoever_comes_during_a_drain_does_not_hold_it_up(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many come as are accepted, for as long as that goes on."""
    listen = drive.serve(server_at(drive.backend()))
    begin, first, enough = drive.engine._ports._begin, [drive.connect(listen) for _ in range(2 * BATCH)], 10 * BATCH
    came: list[tuple[str, int]] = []

    def begin_and_send_another(frontend: FrontendState, sock: socket.socket, address: tuple[str, int]) -> None:
        came.append(address)
        if len(came) < enough:
            drive.connect(listen)
        begin(frontend, sock, address)

    monkeypatch.setattr(drive.engine._ports, "_begin", begin_and_send_another)
    drive.engine.drain(drive.clock() + 1000)
    assert {client.local.port for client in first} <= {port for _ip, port in came}
    assert len(came) < len(first) + 2 * BATCH


def test_listeners_take_their_descriptors_from_the_sessions() -> None:
    drive = Drive(splice=False, max_connections=5000, nofile=10_000)
    try:
        for _ in range(6):
            drive.serve()
        assert drive.engine.counters.max_connections == connection_limit(10_000, 6)
        drive.remove(next(iter(drive.engine.table.frontends)))
        assert drive.engine.counters.max_connections == connection_limit(10_000, 5)
    finally:
        drive.finish()


def test_a_listener_removed_while_its_clients_wait_does_not_disturb_the_batch(drive: Drive) -> None:
    backend = drive.backend()
    gone, kept = drive.serve(server_at(backend)), drive.serve(server_at(backend))
    waiting = drive.connect(gone)
    drive.connect(kept)
    drive.remove(gone)
    drive.accept(backend)
    drive.run_until(lambda: waiting.error)


@pytest.mark.parametrize("one", ["*", "::", "0.0.0.0", "127.0.0.1", "::1"])
@pytest.mark.parametrize("other", ["*", "::", "0.0.0.0", "127.0.0.1", "::1"])
def test_the_kernel_refuses_two_listeners_exactly_where_core_says_they_overlap(one: str, other: str) -> None:
    port = free_port()
    first, second = Listen("tcp", one, port), Listen("tcp", other, port)
    listener = open_listener(first)
    try:
        open_listener(second).close()
        refused = False
    except OSError as error:
        refused = error.errno == errno.EADDRINUSE
    finally:
        listener.close()
    assert refused is first.overlaps(second)


# ------------------------------------------------------------ limits


def fill(drive: Drive, listen: Listen, count: int) -> list[Peer]:
    return [drive.connect(listen) for _ in range(count)]


def test_clients_beyond_the_limit_wait_in_the_backlog_without_a_spin(make_drive: Make) -> None:
    drive = make_drive(splice=False, max_connections=3)
    backend = drive.backend()
    first, second = drive.serve(server_at(backend)), drive.serve(server_at(backend), name="other")
    clients = fill(drive, first, 5)
    drive.run_until_quiet()
    waiting = drive.connect(second)
    drive.run_until_quiet()
    assert drive.engine.counters.open_sessions == 3
    assert not readable(drive.engine)
    for expected in (3, 3, 3, 2):
        clients.pop(0).reset()
        drive.run_until_quiet()
        assert drive.engine.counters.open_sessions == expected
    waiting.say(b"at last")
    servers = [drive.accept(backend) for _ in range(6)]
    drive.run_until(lambda: any(server.got == b"at last" for server in servers))


def test_a_frontends_own_limit_does_not_hold_up_the_others(make_drive: Make) -> None:
    drive = make_drive(splice=False)
    backend = drive.backend()
    narrow = drive.serve(server_at(backend), policy=Policy(max_connections=1))
    wide = drive.serve(server_at(backend), name="wide")
    clients = fill(drive, narrow, 3)
    fill(drive, wide, 3)
    drive.run_until_quiet()
    assert drive.engine.counters.open_sessions == 4
    assert drive.engine.counters.frontends[narrow].sessions == 1
    clients[0].reset()
    drive.run_until_quiet()
    assert drive.engine.counters.frontends[narrow].sessions_total == 2
    drive.serve(server_at(backend), policy=Policy(max_connections=2), listen=narrow)
    drive.run_until_quiet()
    assert drive.engine.counters.frontends[narrow].sessions == 2


def test_one_full_frontend_costs_the_sessions_of_others_nothing(make_drive: Make) -> None:
    """A session's end looks at ports that wait for room, not at every port there is."""
    drive = make_drive(splice=False)
    backend = drive.backend()
    full = drive.serve(server_at(backend), policy=Policy(max_connections=1))
    others = [drive.serve(server_at(backend), name=str(at)) for at in range(20)]
    fill(drive, full, 2)
    drive.run_until_quiet()
    assert [port.listen for port in drive.engine._ports._waiting] == [full]
    drive.connect(others[0]).close()
    drive.run_until(lambda: drive.engine.counters.frontends[others[0]].sessions_total)
    drive.accept(backend).close()
    drive.run_until_quiet()
    assert [port.listen for port in drive.engine._ports._waiting] == [full]


def test_sessions_that_end_inside_accept_do_not_use_up_the_limit(make_drive: Make) -> None:
    drive = make_drive(splice=False, max_connections=2)
    listen = drive.serve(server_at(drive.nobody()))
    clients = fill(drive, listen, 8)
    drive.run_until(lambda: all(client.error for client in clients))
    assert len(drive.records) == 8


def test_the_connection_limit_counts_pipes_listeners_and_a_reserve(make_drive: Make) -> None:
    assert connection_limit(20000) == (20000 - 192 - 2 * 512) // 2
    assert connection_limit(20000, 1000) == connection_limit(20000) - 500
    assert connection_limit(64) == 1
    assert pipe_limit(1024) == 64


OUT_OF_DESCRIPTORS = """
    import os, resource
    from tests.support.drive import Drive, readable, server_at

    drive = Drive(splice=True, max_connections=1000)
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    clients = [drive.connect(listen) for _ in range(12)]
    room = len(os.listdir("/proc/self/fd")) - 1 + 4  # listdir's own; two sessions fit
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
    for _ in range(50):
        drive.turn()
    accept_errors = drive.engine.counters.accept_errors
    assert accept_errors == {"EMFILE": 1}, accept_errors
    assert not readable(drive.engine), "spins"
    drive.pass_time(1)
    assert accept_errors["EMFILE"] <= 11, "tries once per tick at most"
    assert drive.engine.counters.open_sessions == 2
    assert not drive.records
    served = [client for client in clients if client.local.port in {each.address[1] for each in drive.engine._life.sessions}]
    served[0].reset()
    drive.run_until(lambda: drive.engine.counters.frontends[listen].sessions_total >= 3)
    assert not drive.faults, drive.faults
    drive.finish()
    print("recovered")
"""


def test_running_out_of_descriptors_pauses_accepting_and_recovers() -> None:
    assert run_python(OUT_OF_DESCRIPTORS).endswith("recovered\n")


ONE_DESCRIPTOR_LEFT = """
    import os, resource
    from tests.support.drive import Drive, server_at

    drive = Drive(splice=True)
    backend = drive.backend()
    listen = drive.serve(server_at(backend))
    clients = [drive.connect(listen) for _ in range(6)]
    for client in clients:
        client.say(b"hello")
    room = len(os.listdir("/proc/self/fd")) - 1 + 5  # listdir's own; two sessions fit, and half of one
    resource.setrlimit(resource.RLIMIT_NOFILE, (room, room))
    for _ in range(20):
        drive.turn()
    assert drive.engine.counters.open_sessions == 3, drive.engine.counters.open_sessions
    drive.pass_time(2)
    assert drive.engine.counters.open_sessions == 3
    assert not drive.records, drive.records
    clients[0].reset()
    drive.run_until(lambda: drive.engine.counters.frontends[listen].sessions_total > 3)
    assert [record.code for record in drive.records] == ["CD"], drive.records
    for client in clients[1:]:
        client.reset()
    drive.run_until(lambda: len(drive.records) == 6)
    assert {record.code for record in drive.records} <= {"CD", "CC"}, drive.records
    drive.finish()
    print("nobody was turned away")
"""


def test_a_client_that_took_the_last_descriptor_gets_its_server_from_the_reserve() -> None:
    assert run_python(ONE_DESCRIPTOR_LEFT).endswith("turned away\n")


NO_PIPES_LEFT = """
    import fcntl, os
    from tests.support.drive import Drive, server_at

    drive = Drive(splice=True)
    os.setuid(65534)  # root has no such limit
    held = []
    try:
        for _ in range(200):
            held += os.pipe()
            fcntl.fcntl(held[-1], fcntl.F_SETPIPE_SZ, 1 << 20)
    except PermissionError:
        pass
    else:
        raise AssertionError("fs.pipe-user-pages-soft is beyond 200 MiB here")
    client, server = drive.session()
    body = os.urandom(1 << 20) * 20
    server.say(body)
    server.finish()
    drive.run_until(lambda: client.eof)
    assert client.got == body
    assert drive.engine.counters.pipe_fallbacks
    for fd in held:
        os.close(fd)
    drive.finish()
    print("nothing lost")
"""


def test_an_unprivileged_user_whose_pipes_are_used_up_loses_nothing() -> None:
    need_root()
    assert run_python(NO_PIPES_LEFT).endswith("nothing lost\n")


# ------------------------------------------------------------ pipes


def test_a_pipe_with_bytes_in_it_never_goes_back_to_the_pool() -> None:
    """Security: the next session, another client's, would be given them."""
    pipes = Pipes(4)
    pipe = pipes.borrow()
    assert pipe is not None
    pipe.count = os.write(pipe.write_fd, b"a secret of this session")
    pipes.give_back(pipe)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.read_fd)
    following = pipes.borrow()
    assert following is not None
    with pytest.raises(BlockingIOError):
        os.read(following.read_fd, 100)
    pipes.give_back(following)
    pipes.close()
    assert pipes.lent == 0


def test_no_byte_of_a_session_that_died_in_bulk_reaches_the_next(make_drive: Make) -> None:
    drive = make_drive(splice=True, max_pipes=1)
    backend = drive.backend(rcvbuf=4096)
    listen = drive.serve(server_at(backend))
    for letter in b"ABCDEF":
        client, server = drive.connect(listen), drive.accept(backend)
        die_in_bulk(drive, client, server, letter)
        assert set(server.got) == {letter}


def die_in_bulk(drive: Drive, client: Peer, server: Peer, letter: int) -> None:
    """End the session by a reset of one side while bytes of `letter` are stuck in its pipe."""

    def stuck() -> bool:
        """At rest while in bulk. A read that came back short, for the kernel was slower, ends bulk until there is more."""
        so_far = len(server.got)
        client.say(bytes([letter]) * 4 * MIB)
        server.reading = True
        drive.run_until(lambda: len(server.got) > so_far + MIB)
        server.reading = False
        drive.run_until_quiet()
        return any(half.pipe and half.pipe.count for half in drive.engine._life.halves.values())

    assert any(stuck() for _ in range(8)), "never stuck in the pipe"
    (client if letter % 2 else server).reset()
    client.close()
    server.reading = True
    drive.run_until(lambda: not drive.engine.counters.open_sessions and (server.closed or server.error))


def test_without_a_free_pipe_bulk_goes_on_by_recv_and_send(make_drive: Make) -> None:
    drive = make_drive(splice=True, max_pipes=0)
    client, server = drive.session()
    client.say(bytes(4 * MIB))
    client.finish()
    drive.run_until(lambda: server.eof)
    assert len(server.got) == 4 * MIB
    assert drive.engine.counters.pipe_fallbacks >= 1


def test_a_pool_keeps_few_pipes_and_lends_no_more_than_its_cap() -> None:
    pipes = Pipes(2, keep=1)
    lent: list[Pipe] = [pipe for pipe in (pipes.borrow(), pipes.borrow(), pipes.borrow()) if pipe is not None]
    assert len(lent) == pipes.lent == 2
    for pipe in lent:
        pipes.give_back(pipe)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lent[1].read_fd)
    pipes.close()


def test_a_quiet_session_keeps_no_pipe(make_drive: Make) -> None:
    drive = make_drive(splice=True)
    client, server = drive.session()
    client.say(bytes(4 * MIB))
    drive.run_until(lambda: len(server.got) == 4 * MIB)
    drive.pass_time(15, step=0.5)
    assert drive.engine._pipes.lent == 0
    client.say(b"and on")
    drive.run_until(lambda: server.got.endswith(b"and on"))


# ------------------------------------------------------------ fairness, references


def test_a_fast_sender_is_on_the_run_queue_once(make_drive: Make) -> None:
    drive = make_drive(splice=False)
    client, server = drive.session()
    client.say(bytes(64 * MIB))
    longest = 0

    def done() -> bool:
        nonlocal longest
        longest = max(longest, len(drive.engine._run_queue.queue))
        return len(server.got) == 64 * MIB

    drive.run_until(done)
    assert longest <= 1


def test_the_objects_of_a_session_are_gone_when_it_ends(make_drive: Make) -> None:
    """Without the garbage collector, which the base line turned off."""
    drive = make_drive(splice=True)
    client, server = drive.session()
    client.say(bytes(4 * MIB))
    drive.run_until(lambda: len(server.got) == 4 * MIB)
    client.finish()
    server.finish()
    drive.run_until(lambda: drive.records)
    drive.turn()
    assert not gc.isenabled()
    assert not [each for each in gc.get_objects() if isinstance(each, Half | Session)]


def test_a_sweep_visits_every_session_once_per_period(make_drive: Make) -> None:
    drive = make_drive(splice=False)
    backend = drive.backend(backlog=256)
    listen = drive.serve(server_at(backend))
    for _ in range(100):
        drive.connect(listen).say(b"x")
    drive.run_until(lambda: drive.engine.counters.open_sessions == 100)
    drive.run_until_quiet()
    counted = drive.engine.counters.frontends[listen].bytes_in  # few: the sweep adds the bytes of live sessions
    drive.pass_time(2.5)
    assert 45 <= drive.engine.counters.frontends[listen].bytes_in - counted <= 55
    drive.pass_time(2.6)
    assert drive.engine.counters.frontends[listen].bytes_in == 100


# ------------------------------------------------------------ faults of our own


class Raising(Witness):
    """An observer that breaks its promise."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def session_ended(self, record: SessionRecord) -> None:
        super().session_ended(record)
        if "ended" in self.where:
            raise RuntimeError("session_ended")

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:
        super().connect_ended(listen, server, failure)
        if "connect" in self.where:
            raise RuntimeError("connect_ended")


@pytest.fixture(params=["connect", "ended", "connect ended"])
def broken_drive(request: pytest.FixtureRequest, make_drive: Make) -> Drive:
    return make_drive(splice=False, observer=Raising(request.param))


def test_an_observer_that_raises_ends_no_session(broken_drive: Drive) -> None:
    drive = broken_drive
    backend = drive.backend()
    healthy = drive.serve(server_at(backend))
    client = drive.connect(healthy)
    server = drive.accept(backend)
    sick = drive.serve(server_at(drive.nobody()), name="sick")
    unlucky = drive.connect(sick)
    drive.run_until(lambda: unlucky.error)
    assert drive.faults
    assert drive.engine.counters.faults == len(drive.faults)
    assert [record.code for record in drive.records] == ["SC"], "who listens badly is no fault of the session"
    client.say(b"unharmed")
    drive.run_until(lambda: server.got == b"unharmed")


def test_an_exception_inside_a_tick_ends_only_that_session(broken_drive: Drive) -> None:
    drive = broken_drive
    hole = drive.black_hole()
    listen = drive.serve(server_at(hole), policy=policy(connect=1))
    clients = fill(drive, listen, 3)
    drive.run_until(lambda: drive.engine.counters.open_sessions == 3)
    drive.pass_time(2)
    drive.run_until(lambda: all(client.error for client in clients))
    assert len(drive.records) == 3
    assert len(drive.faults) >= 3


# ------------------------------------------------------------ a killed process

KILLED = """
    import sys
    from pylb.core.address import Address, Listen
    from tests.support.drive import Drive, server_at

    drive = Drive(splice=sys.argv[1:] == ["splice"])
    drive.serve(server_at(Address("127.0.0.1", {server})), listen=Listen("tcp", "127.0.0.1", {port}))
    print("ready", flush=True)
    while True:
        drive.turn()
"""


@pytest.mark.parametrize("mode", ["splice", "copy"])
def test_a_killed_engine_is_seen_as_a_reset_never_as_a_clean_fin(mode: str) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", 0)) as backend:
        source = textwrap.dedent(KILLED).format(server=backend.getsockname()[1], port=port)
        with subprocess.Popen([sys.executable, "-c", source, mode], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
                    backend.settimeout(LIMIT)
                    server, _ = backend.accept()
                    with server:
                        server.sendall(bytes(1000))
                        received = 0
                        while received < 1000:
                            received += len(client.recv(2000))
                        process.send_signal(signal.SIGKILL)
                        process.wait(LIMIT)
                        with pytest.raises(ConnectionResetError):
                            client.recv(1)
                        server.settimeout(LIMIT)
                        with pytest.raises(ConnectionResetError):
                            server.recv(1)
            finally:
                process.kill()
