"""Header, queue, data, half-close, reset, stall, table swap and time in any order: no byte lost, added or reordered."""

import gc
import socket
import sys
from dataclasses import replace
from ipaddress import ip_network

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pylb.core.access import Networks
from pylb.core.address import Address
from pylb.core.policy import ProxyAccept, ProxyProtocol
from pylb.core.proxy_protocol import header
from pylb.core.session import SessionRecord
from pylb.core.table import Server
from pylb.forward.engine import MAX_BUFFERED
from pylb.forward.session import Half, Session
from tests.support.baseline import descriptors
from tests.support.drive import Drive, Peer, policy, readable, server_at
from tests.support.longrun import until

SIZES = st.one_of(st.integers(1, 5000), st.sampled_from([16384, 65536, 65537, 300_000, 1_500_000]))
BUFFERS = st.sampled_from([0, 2048, 16384])
IDLE = 60.0
DRAIN = 8.0
MOST_BUFFERED = 64 * 1024 + (1 << 20)  # per half: a chunk in memory, and what a 256 KiB pipe takes in fragments


class Side:
    """One end of a connection, what it was told to send, and how it left."""

    def __init__(self, peer: Peer, seed: int) -> None:
        self.peer = peer
        self.port = peer.local.port
        self.seed = seed
        self.checked = 0  # bytes of `got` that were compared
        self.said = 0
        self.finished = False
        self.was_reset = False

    def say(self, size: int) -> None:
        self.peer.say(stream(self.seed, self.said, size))
        self.said += size


class Pair:
    """Both ends of one session. The server's is unknown until the engine's connection is accepted."""

    def __init__(self, client: Side) -> None:
        self.client = client
        self.server: Side | None = None
        self.codes: set[str] = set()  # letters that what was done to it may end it with; none: it must end by itself
        self.refusing = False  # came while the first server refused

    @property
    def cut(self) -> bool:
        """Bytes may be missing at the end, and only there."""
        return bool(self.codes)


def stream(seed: int, start: int, size: int) -> bytes:
    """A piece of an endless text that is different at each place and for each seed."""
    period = bytes((seed * 7 + at * at) % 251 for at in range(4093))
    offset = start % 4093
    return (period * (size // 4093 + 2))[offset : offset + size]


class Sessions(RuleBasedStateMachine):
    pairs = Bundle("pairs")
    steps = 0  # of all runs

    @initialize(
        splice=st.booleans(),
        size=BUFFERS,
        pipes=st.sampled_from([0, 1, 64]),
        most=st.sampled_from([1, 100_000, MAX_BUFFERED]),
        headers=st.booleans(),
    )
    def begin(self, splice: bool, size: int, pipes: int, most: int, headers: bool) -> None:
        """`headers`: clients are trusted proxies and send a PROXY header first, with their own addresses."""
        gc.collect()
        self.descriptors = descriptors()
        self.size = size
        self.drive = Drive(splice=splice, max_pipes=pipes, max_connections=6, max_buffered=most)
        self.headers = headers
        trusted = Networks([ip_network("127.0.0.0/8")] if headers else [])
        timed = policy(idle=IDLE, half_close=20, flush=5, connect=2, drain=DRAIN, queue=10)
        self.policy = replace(timed, accept_proxy=ProxyAccept(trusted))
        self.most = most
        self.backends = [self.drive.backend(sndbuf=size, rcvbuf=size) for _ in "ab"]
        self.refuses = server_at(self.drive.nobody(), "refuses")
        self.servers = [self.server(0)]
        self.listen = self.drive.serve(*self.servers, policy=self.policy)
        self.removed = self.killed = False
        self.live: list[Pair] = []
        self.waiting: list[Pair] = []
        self.seed = 0

    def server(self, which: int, most: int = 0) -> Server:
        return server_at(self.backends[which], "ab"[which], rank=1, most=most)

    # ------------------------------------------------------------ what may happen

    @precondition(lambda self: not self.removed)
    @rule(
        target=pairs,
        early=st.one_of(st.just(0), SIZES),
        together=st.booleans(),
        version=st.sampled_from([ProxyProtocol.V1, ProxyProtocol.V2]),
    )
    def connect(self, early: int, together: bool, version: ProxyProtocol) -> Pair:
        self.seed += 2
        pair = Pair(Side(self.drive.connect(self.listen, sndbuf=self.size, rcvbuf=self.size), self.seed))
        pair.refusing = self.refuses in self.servers
        self.live.append(pair)
        self.waiting.append(pair)
        if self.headers:
            pair.client.peer.say(header(version, pair.client.peer.local, Address("127.0.0.1", self.listen.port)))
        if early:
            pair.client.say(early)
            pair.client.peer.step()
        if together:
            self.turns(5)
        return pair

    @rule(pair=pairs, by_client=st.booleans(), size=SIZES)
    def say(self, pair: Pair, by_client: bool, size: int) -> None:
        side = pair.client if by_client else pair.server
        if side and not side.finished and not side.peer.closed and side.said < 6_000_000:
            side.say(size)

    @rule(pair=pairs, by_client=st.booleans(), count=st.integers(1, 40))
    def drip(self, pair: Pair, by_client: bool, count: int) -> None:
        """One-byte segments."""
        side = pair.client if by_client else pair.server
        if side and not side.finished and not side.peer.closed:
            for _ in range(count):
                side.say(1)
                side.peer.step()

    @rule(pair=pairs, by_client=st.booleans())
    def urge(self, pair: Pair, by_client: bool) -> None:
        """A byte out of band; it belongs where it was sent."""
        side = pair.client if by_client else pair.server
        if side and not side.finished and not side.peer.closed and not side.peer.error and not side.peer.unsaid:
            try:
                side.peer.sock.send(stream(side.seed, side.said, 1), socket.MSG_OOB)
                side.said += 1
            except OSError:
                pass  # full, or reset meanwhile: it was not sent

    @rule(pair=pairs, by_client=st.booleans())
    def finish(self, pair: Pair, by_client: bool) -> None:
        side = pair.client if by_client else pair.server
        if side and not side.finished and not side.peer.closed:
            side.finished = True
            side.peer.finish()

    @rule(pair=pairs, by_client=st.booleans(), reading=st.booleans())
    def stall(self, pair: Pair, by_client: bool, reading: bool) -> None:
        side = pair.client if by_client else pair.server
        if side:
            side.peer.reading = reading

    @rule(pair=consumes(pairs), by_client=st.booleans())
    def reset(self, pair: Pair, by_client: bool) -> None:
        side = pair.client if by_client else pair.server
        if side and not side.peer.closed:
            side.was_reset = True
            pair.codes |= {"CR", "CQ", "CC", "CD"} if by_client else {"SD"}
            side.peer.reset()

    @rule(count=st.integers(1, 20))
    def turns(self, count: int) -> None:
        for _ in range(count):
            self.drive.turn()
        self.accept()

    @rule()
    def only_the_engine(self) -> None:
        self.drive.engine.on_ready()

    @rule()
    def only_the_peers(self) -> None:
        for peer in self.drive._peers:
            peer.step()

    @rule(seconds=st.sampled_from([0.3, 3.0]))
    def pass_time(self, seconds: float) -> None:
        before = len(self.drive.records)
        self.drive.pass_time(seconds, step=0.1)
        self.accept()
        # Whether a deadline was right is for test_deadlines; here, that only the deadlines there are end a session so.
        for record in self.drive.records[before:]:
            if record.code[0] in "csK":
                assert record.code[0] != "K" or self.killed, "killed, though no frontend was removed"
                self.pair_of(record).codes.add(record.code)

    @precondition(lambda self: not self.removed)
    @rule(which=st.integers(0, 1), refusing=st.booleans(), most=st.integers(0, 2))
    def swap_table(self, which: int, refusing: bool, most: int) -> None:
        """`most`: sessions at once, then clients wait in the queue; 0: no limit."""
        self.servers = [self.refuses, self.server(which, most)] if refusing else [self.server(which, most)]
        for pair in self.waiting if refusing else ():
            pair.refusing = True  # it may be in the backlog still
        self.drive.serve(*self.servers, policy=self.policy, listen=self.listen)

    @precondition(lambda self: not self.removed)
    @rule()
    def remove_frontend(self) -> None:
        self.turns(5)  # who waits in the backlog would be reset by the kernel, and never have been a session
        self.removed = True  # in any case: what may come next must not depend on when a reset or a FIN arrives
        if self.drive.engine.counters.open_sessions < 6:
            self.drive.remove(self.listen)
            self.killed = True

    @precondition(lambda self: self.removed)
    @rule()
    def open_again(self) -> None:
        self.drive.serve(*self.servers, policy=self.policy, listen=self.listen)
        self.removed = False

    # ------------------------------------------------------------ what must hold

    def accept(self) -> None:
        """Take what the engine dialed, and find out by the books whose connection it is."""
        for backend in self.backends:
            while readable(backend):
                sock, address = backend.accept()
                peer = self.drive._keep(sock)
                owner = self.owner(address[1])
                if owner is not None:  # else its session is over already
                    owner.server = Side(peer, owner.client.seed + 1)
                    self.waiting.remove(owner)

    def record_of(self, pair: Pair) -> SessionRecord | None:
        return next((record for record in self.drive.records if record.client_port == pair.client.port), None)

    def pair_of(self, record: SessionRecord) -> Pair:
        return next(pair for pair in self.live if pair.client.port == record.client_port)

    def owner(self, source: int) -> Pair | None:
        for half in self.drive.engine._life.halves.values():
            if not half.is_client and half.sock.getsockname()[1] == source:
                port = half.session.address[1]
                return next((each for each in self.waiting if each.client.port == port), None)
        return None

    @invariant()
    def what_was_got_is_a_prefix_of_what_was_said(self) -> None:
        for pair in getattr(self, "live", ()):
            if pair.server:
                check_prefix(pair.client, pair.server)
                check_prefix(pair.server, pair.client)

    @invariant()
    def memory_is_bounded_and_the_books_balance(self) -> None:
        if not hasattr(self, "drive"):
            return
        engine = self.drive.engine
        for half in engine._life.halves.values():
            assert len(half.pending or b"") <= 64 * 1024
            assert half.pipe is None or half.pipe.count <= MOST_BUFFERED
        sessions = len(engine._life.sessions)
        assert sessions == engine.counters.open_sessions <= 6
        assert sessions == sum(counters.sessions for counters in self.drive._counters.values())
        held = sum(half.held for half in engine._life.halves.values())
        assert engine.counters.buffered == held <= self.most + MOST_BUFFERED
        pending = sum(len(half.pending or b"") + (half.pipe.count if half.pipe else 0) for half in engine._life.halves.values())
        assert pending == held, "the books say something else than what waits"
        type(self).steps += 1
        lent = sum(half.pipe is not None for half in engine._life.halves.values())
        assert engine._pipes.lent == lent

    def teardown(self) -> None:
        if not hasattr(self, "drive"):
            return
        try:
            self.let_all_end()
        finally:
            self.drive.finish()
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, Half | Session)]
        assert descriptors() == self.descriptors

    def let_all_end(self) -> None:
        """Everybody reads on and says FIN: all that was not cut must arrive whole."""
        drive = self.drive
        self.turns(5)  # who waits in the backlog, perhaps reset already, becomes a session, too

        def ended() -> bool:
            self.accept()
            for pair in self.live:
                for side in (pair.client, pair.server):
                    if side and not side.peer.closed:
                        side.peer.reading = True
                        if not side.finished:
                            side.finished = True
                            side.peer.finish()
            return not drive.engine.counters.open_sessions and all(settled(pair) for pair in self.live)

        drive.run_until(ended)  # with the clock standing still: nobody may need a timeout to end
        self.what_was_got_is_a_prefix_of_what_was_said()
        for pair in self.live:
            if not pair.cut:
                assert pair.server, f"a session nobody cut has both ends: {self.record_of(pair)}"
                assert not pair.client.peer.error
                assert not pair.server.peer.error
                assert len(pair.server.peer.got) == pair.client.said, "bytes of the client are missing"
                assert len(pair.client.peer.got) == pair.server.said, "bytes of the server are missing"
        self.check_records()

    def check_records(self) -> None:
        """One record each, with the right letters and byte counts."""
        records = {record.client_port: record for record in self.drive.records}
        assert len(records) == len(self.drive.records) == len(self.live)
        for pair in self.live:
            record = records[pair.client.port]
            both_done = pair.client.finished and pair.server is not None and pair.server.finished
            right = pair.codes | ({"--"} if both_done or not pair.codes else set())
            if both_done and pair.client.was_reset:
                right.add("CL")  # the client had only the end of the answer to read, and the server's FIN was there
            assert record.code in right, f"{record.code}, not one of {right}"
            said = (pair.client.said, pair.server.said if pair.server else 0)
            if record.code == "--":
                assert (record.bytes_in, record.bytes_out) == said
            assert record.bytes_in <= said[0]
            assert pair.server is None or record.bytes_out <= said[1]
            assert (record.retries > 0) <= pair.refusing


def check_prefix(sender: Side, receiver: Side) -> None:
    got = receiver.peer.got
    assert got[receiver.checked :] == stream(sender.seed, receiver.checked, len(got) - receiver.checked), "not a prefix"
    receiver.checked = len(got)
    if receiver.peer.eof and not sender.was_reset:
        assert len(got) == sender.said, "a clean FIN although bytes are missing"


def settled(pair: Pair) -> bool:
    return all(side is None or side.peer.closed or side.peer.eof or side.peer.error for side in (pair.client, pair.server))


def run(examples: int, steps: int) -> None:
    """Raises the failure, shrunk to its shortest form."""
    checks = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(Sessions, settings=checks)


def test_any_order_of_events_loses_nothing_and_leaves_nothing() -> None:
    run(examples=30, steps=40)


if __name__ == "__main__":
    until(int(sys.argv[1]), lambda: Sessions.steps, lambda: run(examples=40, steps=60), "steps")
