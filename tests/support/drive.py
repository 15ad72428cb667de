"""The engine driven by hand: real loopback sockets, a clock that only moves when told, and no sleeps.

`Drive.run_until` turns everything in one loop: the engine's batch, then each peer writes and reads what it can.
"""

import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from pylb.core.address import Address, Listen
from pylb.core.policy import AdminState, Policy, ProxyProtocol, Timeouts
from pylb.core.recorder import Query, SessionTrace
from pylb.core.session import SessionRecord, SessionView
from pylb.core.table import Frontend, Server, make_table
from pylb.forward.counters import FrontendCounters
from pylb.forward.engine import MAX_BUFFERED, Engine
from pylb.forward.own_dials import OwnDials
from pylb.forward.session import ServerState
from pylb.forward.sockets import transmission, unacknowledged
from tests.support.ports import free_port
from tests.support.tcp_peer import Peer

# Until something that should happen has failed: seconds of waiting, and as many of this process's own CPU. Not of the
# wall: where others have the processors, it is only later.
LIMIT = 8.0
PATIENCE = 0.005  # seconds in select; others' packets come from the kernel, which signals no predicate
_IP_BIND_ADDRESS_NO_PORT = 24


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Witness:
    """An observer that records what is reported to it."""

    wants_records = True

    def __init__(self) -> None:
        self.records: list[SessionRecord] = []
        self.connects: list[tuple[str, str | None]] = []  # server label, failure

    def session_ended(self, record: SessionRecord) -> None:
        self.records.append(record)

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:  # noqa: ARG002 - the protocol's names
        self.connects.append((server.name, failure))


class Drive:
    """An engine, its clock, its witness, and everything a test opened beside it."""

    def __init__(
        self,
        *,
        splice: bool,
        max_connections: int = 1000,
        max_pipes: int = 64,
        max_buffered: int = MAX_BUFFERED,
        observer: Witness | None = None,
        nofile: int = 0,
        recorded: int = 16,
        worker: int = 0,
        own_dials: OwnDials | None = None,
    ) -> None:
        self.clock = Clock()
        self.witness = observer if observer is not None else Witness()
        self.faults: list[str] = []  # texts: an exception would keep frames and their halves alive
        self.engine = Engine(
            observer=self.witness,
            max_connections=max_connections,
            max_pipes=max_pipes,
            clock=self.clock,
            on_fault=lambda _what, error: self.faults.append(repr(error)),
            splice=splice,
            max_buffered=max_buffered,
            nofile=nofile,
            recorded=recorded,
            worker=worker,
            own_dials=own_dials,
        )
        self._peers: list[Peer] = []
        self._listeners: list[socket.socket] = []
        self._frontends: dict[Listen, Frontend] = {}
        self._counters: dict[int, FrontendCounters] = {}  # of removed frontends too
        self._generation = 0

    # ------------------------------------------------------------ the table

    def serve(self, *servers: Server, policy: Policy | None = None, listen: Listen | None = None, name: str = "web") -> Listen:
        """Add or replace a frontend and put the table in force. Returns its key."""
        listen = listen or Listen("tcp", "127.0.0.1", free_port())
        failed = self.serve_or_fail(*servers, policy=policy, listen=listen, name=name)
        assert not failed, failed
        return listen

    def serve_or_fail(
        self, *servers: Server, listen: Listen, policy: Policy | None = None, name: str = "web"
    ) -> dict[Listen, OSError]:
        """Like `serve`, but returns also the ports of the whole table that could not be opened."""
        self._frontends[listen] = Frontend(name, listen, policy or Policy(), servers)
        return self.publish()

    def remove(self, listen: Listen) -> None:
        del self._frontends[listen]
        self.publish()

    def publish(self) -> dict[Listen, OSError]:
        self._generation += 1
        failed = self.engine.apply(make_table(self._generation, self._frontends))
        for counters in self.engine.counters.frontends.values():
            self._counters[id(counters)] = counters
        return failed

    def sessions(self) -> list[SessionView]:
        return [view for some in self.engine.live() for view in some]

    def states(self, listen: Listen) -> list[ServerState]:
        """The servers of a frontend as the engine sees them."""
        frontend = self.engine._ports.by_listen[listen].frontend
        assert frontend is not None
        return list(frontend.servers.values())

    # ------------------------------------------------------------ peers

    def backend(
        self, ip: str = "127.0.0.1", backlog: int = 128, port: int = 0, sndbuf: int = 0, rcvbuf: int = 0
    ) -> socket.socket:
        """A real listening socket. SO_SNDBUF and SO_RCVBUF (bytes, 0: the kernel's) are inherited by what it accepts."""
        sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
        self._listeners.append(sock)
        _resize(sock, sndbuf, rcvbuf)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((ip, port))
        sock.listen(backlog)
        sock.setblocking(False)
        return sock

    def black_hole(self) -> socket.socket:
        """A listener that does not answer SYNs: its accept queue is full (tcp_conn_request drops them)."""
        sock = self.backend(backlog=0)
        for _ in range(3):
            stopper = socket.socket()
            stopper.setblocking(False)
            stopper.connect_ex(sock.getsockname())
            self._peers.append(Peer(stopper))
            self._peers[-1].reading = False
        return sock

    def nobody(self) -> Address:
        """An address that refuses connections: bound, so that nobody else can take it, but never listening."""
        sock = socket.socket()
        self._listeners.append(sock)
        sock.bind(("127.0.0.1", 0))
        return Address(*sock.getsockname())

    def connect(self, listen: Listen, ip: str = "127.0.0.1", sndbuf: int = 0, rcvbuf: int = 0, source: str = "") -> Peer:
        """A client that is connected when this returns, because the kernel completes connections in the backlog."""
        sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
        _resize(sock, sndbuf, rcvbuf)
        if source:
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)  # a bound port is taken from all addresses
            sock.bind((source, 0))
        peer = self._keep(sock)
        sock.settimeout(LIMIT)
        sock.connect((ip, listen.port))
        sock.setblocking(False)
        return peer

    def accept(self, backend: socket.socket) -> Peer:
        """The server's end of the next connection the engine makes to `backend`."""
        self.run_until(lambda: readable(backend))
        sock, _ = backend.accept()
        return self._keep(sock)

    def session(
        self, policy: Policy | None = None, proxy: ProxyProtocol = ProxyProtocol.NONE, *, rcvbuf: int = 0
    ) -> tuple[Peer, Peer]:
        """A relayed session: the client, and the server's end of its connection."""
        backend = self.backend(rcvbuf=rcvbuf)
        listen = self.serve(server_at(backend, proxy=proxy), policy=policy)
        client = self.connect(listen, rcvbuf=rcvbuf)
        return client, self.accept(backend)

    def _keep(self, sock: socket.socket) -> Peer:
        peer = Peer(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peers.append(peer)
        return peer

    # ------------------------------------------------------------ time and turns

    def turn(self) -> bool:
        """One batch of the engine and one step of each peer. True if anything moved."""
        busy = readable(self.engine)
        again = self.engine.on_ready()
        return self._step_all() or busy or again

    def _step_all(self) -> bool:
        moved = [peer.step() for peer in self._peers]  # all of them, not up to the first that moved
        return any(moved)

    def run_until(self, happened: Callable[[], object], limit: float = LIMIT) -> None:
        latest, waits = time.process_time() + limit, round(limit / PATIENCE)
        while not happened():
            if not self.turn():
                self.engine.tick(self.clock.now)  # the clock stands still, but what waits for a look gets it
                select.select([self.engine], [], [], PATIENCE)
                waits -= 1
            assert waits, f"did not happen within {limit} s of waiting"
            assert time.process_time() < latest, f"did not happen within {limit} s of CPU"

    def run_until_quiet(self) -> None:
        """Run until neither the engine nor a peer has anything left to do."""
        quiet = 0

        def still() -> bool:
            nonlocal quiet
            quiet = 0 if self.turn() else quiet + 1
            return quiet > 3 and not select.select([self.engine], [], [], PATIENCE)[0]

        self.run_until(still)

    def bulk(self, speaker: Peer, listener: Peer, data: bytes, until: Callable[[], object]) -> bytes:
        """`data` from one peer to the other, again until `until`. Returns what the listener has got.

        Once is enough as a rule. Where others have the processors the kernel delivers late, reads are short, and the engine is
        right not to take it for bulk.
        """
        whole = bytearray(listener.got)
        for _ in range(10):
            whole.extend(data)
            speaker.say(data)
            self.run_until(lambda: len(listener.got) >= len(whole))
            if until():
                break
        return bytes(whole)

    def run_until_confirmed(self) -> None:
        """Run until the peers' kernels have acknowledged everything, also FINs: that takes a delayed ACK of 40 ms or more.

        Call it before `pass_time` skips hours: an ACK in between would rightly count as activity of the session.
        """
        halves = self.engine._life.halves
        self.run_until(lambda: not any(unacknowledged(half.sock) for half in halves.values()))

    def run_until_answered(self) -> None:
        """Run until no segment is on its way: by then a peer that does not read has closed its window.

        Call it before `pass_time` for the same reason.
        """
        halves = self.engine._life.halves
        self.run_until(lambda: not any(transmission(half.sock).unacknowledged for half in halves.values()))

    def pass_time(self, seconds: float, step: float = 0.1) -> None:
        """Move the clock in ticks, as the loop would, with a turn after each."""
        end = self.clock.now + seconds
        while self.clock.now < end - 1e-9:
            self.clock.now += step
            self.engine.tick(self.clock.now)
            self.turn()

    @property
    def records(self) -> list[SessionRecord]:
        return self.witness.records

    def record(self) -> SessionRecord:
        """The record of the only session, once there is one."""
        self.run_until(lambda: self.records)
        assert len(self.records) == 1
        return self.records[0]

    def trace(self) -> SessionTrace:
        """The recorded trace of the only session, once it has ended."""
        self.record()
        [[trace]] = self.engine.ended(Query())
        return trace

    # ------------------------------------------------------------ the end

    def close_engine(self) -> None:
        """Close the engine and let the peers notice. No further turns of the engine."""
        self.engine.close()
        for _ in range(1000):
            if not self._step_all():
                return

    def finish(self) -> None:
        """Check that nothing spins, close all, and check that everything balances."""
        engine = self.engine
        try:
            if not engine._epoll.closed:
                self.run_until_quiet()
                # A late acknowledgement may be a new event, once; one that was dealt with would come again each time.
                rounds = (engine.on_ready() or readable(engine) for _ in range(10))
                assert not all(rounds), "epoll reports an event again that was dealt with"
        finally:
            self._close_all()
        assert_settled(engine, self._counters.values())
        total = sum(counters.sessions_total + turned_away(counters) for counters in self._counters.values())
        assert len(self.records) == total, "not exactly one record per session, and per client that became none"

    def _close_all(self) -> None:
        for peer in self._peers:
            peer.close()
        if not self.engine._epoll.closed:
            self.engine.close()
        for listener in self._listeners:
            listener.close()


def assert_settled(engine: Engine, frontends: Iterable[FrontendCounters]) -> None:
    """Check the counters of an engine that was closed."""
    life = engine._life
    assert not life.halves
    assert not life.sessions
    assert not life.deadlines
    assert not life.dialer.queues
    assert not life.to_close
    assert engine._pipes.lent == 0
    assert engine.counters.open_sessions == 0
    assert engine.counters.buffered == 0
    assert engine.counters.shared == 0
    for counters in frontends:
        assert counters.sessions == 0
        closed = counters.forgotten + sum(server.closed.total() for server in counters.servers.values())
        assert closed == counters.sessions_total
        assert sum(counters.session_seconds.counts) == closed
        assert all(server.sessions == 0 for server in counters.servers.values())


def turned_away(counters: FrontendCounters) -> int:
    """The number of clients that were refused before they became sessions."""
    return counters.denied.total() - sum(server.closed["PR"] + server.closed["PQ"] for server in counters.servers.values())


def server_at(  # noqa: PLR0917 - the first two are given by position
    where: socket.socket | Address,
    name: str = "a",
    rank: int = 0,
    weight: int = 1,
    proxy: ProxyProtocol = ProxyProtocol.NONE,
    most: int = 0,
    admin: AdminState = AdminState.READY,
    *,
    backup: bool = False,
) -> Server:
    address = where if isinstance(where, Address) else Address(*where.getsockname()[:2])
    return Server(name, address, weight=weight, rank=rank, send_proxy=proxy, max_connections=most, admin=admin, backup=backup)


def policy(**seconds: float) -> Policy:
    """A policy with these timeouts."""
    return Policy(timeouts=replace(Timeouts(), **seconds))


def readable(what: socket.socket | Engine) -> bool:
    return bool(select.select([what], [], [], 0)[0])


def _resize(sock: socket.socket, sndbuf: int, rcvbuf: int) -> None:
    if sndbuf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    if rcvbuf:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
