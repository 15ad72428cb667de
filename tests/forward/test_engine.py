"""Limits, tables, fairness and faults: what the engine does around its sessions."""

import gc
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
from pylb.forward.listener import connection_limit
from pylb.forward.pipes import pipe_limit
from pylb.forward.session import Half, Session
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
    expected = drive.bulk(server, client, os.urandom(1 << 20) * 20, until=lambda: drive.engine.counters.pipe_fallbacks)
    server.finish()
    drive.run_until(lambda: client.eof)
    assert client.got == expected
    assert drive.engine.counters.pipe_fallbacks
    for fd in held:
        os.close(fd)
    drive.finish()
    print("nothing lost")
"""


def test_an_unprivileged_user_whose_pipes_are_used_up_loses_nothing() -> None:
    need_root()
    assert run_python(NO_PIPES_LEFT).endswith("nothing lost\n")


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


@pytest.mark.parametrize("recorded", [0, 16])
def test_the_objects_of_a_session_are_gone_when_it_ends(make_drive: Make, recorded: int) -> None:
    """Without the garbage collector, which the base line turned off. The recorder stores the session, without its halves."""
    drive = make_drive(splice=True, recorded=recorded)
    client, server = drive.session()
    client.say(bytes(4 * MIB))
    drive.run_until(lambda: len(server.got) == 4 * MIB)
    client.finish()
    server.finish()
    drive.run_until(lambda: drive.records)
    drive.turn()
    assert not gc.isenabled()
    assert not [each for each in gc.get_objects() if isinstance(each, Half)]
    sessions = [each for each in gc.get_objects() if isinstance(each, Session)]
    assert len(sessions) == (recorded > 0)
    drive.engine.close()
    del sessions
    assert not [each for each in gc.get_objects() if isinstance(each, Session)]


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
        drive.engine.tick(drive.clock.now)
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
