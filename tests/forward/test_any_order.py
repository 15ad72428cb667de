"""Connect, data, half-close, reset, stall, table swap and time in any order: no byte lost, added or reordered, nothing left."""

import gc

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule, run_state_machine_as_test

from pylb.core.table import Server
from pylb.forward.session import Half, Session
from tests.support.baseline import descriptors
from tests.support.drive import Drive, Peer, policy, readable, server_at

SIZES = st.one_of(st.integers(1, 5000), st.sampled_from([16384, 65536, 65537, 300_000, 1_500_000]))
BUFFERS = st.sampled_from([0, 2048, 16384])
IDLE = 60.0
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
        self.cut = False  # a reset or a timeout was part of it: bytes may be missing at the end, and only there


def stream(seed: int, start: int, size: int) -> bytes:
    """A piece of an endless text that is different at each place and for each seed."""
    period = bytes((seed * 7 + at * at) % 251 for at in range(4093))
    offset = start % 4093
    return (period * (size // 4093 + 2))[offset : offset + size]


class Sessions(RuleBasedStateMachine):
    pairs = Bundle("pairs")

    @initialize(splice=st.booleans(), size=BUFFERS, pipes=st.sampled_from([0, 1, 64]))
    def begin(self, splice: bool, size: int, pipes: int) -> None:
        gc.collect()
        self.descriptors = descriptors()
        self.size = size
        self.drive = Drive(splice=splice, max_pipes=pipes, max_connections=6)
        self.policy = policy(idle=IDLE, half_close=20, flush=5, connect=2)
        self.backends = [self.drive.backend(sndbuf=size, rcvbuf=size) for _ in "ab"]
        self.listen = self.drive.serve(self.server(0), policy=self.policy)
        self.live: list[Pair] = []
        self.waiting: list[Pair] = []
        self.seed = 0

    def server(self, which: int) -> Server:
        return server_at(self.backends[which], "ab"[which])

    # ------------------------------------------------------------ what may happen

    @rule(target=pairs, early=st.one_of(st.just(0), SIZES), together=st.booleans())
    def connect(self, early: int, together: bool) -> Pair:
        self.seed += 2
        pair = Pair(Side(self.drive.connect(self.listen, sndbuf=self.size, rcvbuf=self.size), self.seed))
        self.live.append(pair)
        self.waiting.append(pair)
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
            pair.cut = side.was_reset = True
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
        if any(record.code[0] in "cs" for record in self.drive.records[before:]):
            for pair in self.live:
                pair.cut = True  # whose it was is not told apart: prefixes are still checked for all

    @rule(which=st.integers(0, 1))
    def swap_table(self, which: int) -> None:
        self.drive.serve(self.server(which), policy=self.policy, listen=self.listen)

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
        assert sessions == sum(counters.sessions for counters in engine.counters.frontends.values())
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
                assert pair.server, "a session nobody cut has both ends"
                assert not pair.client.peer.error
                assert not pair.server.peer.error
                assert len(pair.server.peer.got) == pair.client.said, "bytes of the client are missing"
                assert len(pair.client.peer.got) == pair.server.said, "bytes of the server are missing"


def check_prefix(sender: Side, receiver: Side) -> None:
    got = receiver.peer.got
    assert got[receiver.checked :] == stream(sender.seed, receiver.checked, len(got) - receiver.checked), "not a prefix"
    receiver.checked = len(got)
    if receiver.peer.eof and not sender.was_reset:
        assert len(got) == sender.said, "a clean FIN although bytes are missing"


def settled(pair: Pair) -> bool:
    return all(side is None or side.peer.closed or side.peer.eof or side.peer.error for side in (pair.client, pair.server))


def test_any_order_of_events_loses_nothing_and_leaves_nothing() -> None:
    run_state_machine_as_test(Sessions, settings=settings(max_examples=30, stateful_step_count=40))
