"""Any call out of forward/ may raise, and any system call may fail with any errno that its manual names.

The same state machine as in test_any_order, over an engine whose surroundings fail now and then. What must hold: no descriptor,
place, half or record is lost, no byte is added or reordered, nothing spins; and once the faults are over a new session works,
whatever has happened before.
"""

import errno
import gc
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pylb.core.policy import ProxyProtocol
from pylb.core.proxy_protocol import parse
from pylb.core.session import SessionRecord
from pylb.forward import listener, pipes, relay, sockets
from pylb.forward.session import Half, Session
from tests.forward.test_any_order import stream
from tests.support.baseline import descriptors
from tests.support.drive import Drive, Peer, Witness, policy, server_at
from tests.support.longrun import until

# Of man-pages 6: the ERRORS of each page, with those that tcp(7), ip(7) and socket(7) add. Without EFAULT, which needs a bug in
# Python itself, and without EAGAIN, which is no failure.
ERRNOS = {
    "accept": "ECONNABORTED EINTR EINVAL EMFILE ENFILE ENOBUFS ENOMEM EOPNOTSUPP EPERM EPROTO ENETDOWN EHOSTUNREACH "
    "ETIMEDOUT EBADF ENOTSOCK",
    "socket": "EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM EPROTONOSUPPORT",
    "connect": "EACCES EPERM EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EALREADY EBADF ECONNREFUSED EINTR EISCONN "
    "ENETUNREACH ENOTSOCK EPROTOTYPE ETIMEDOUT EHOSTUNREACH ENOBUFS ENOMEM",
    "recv": "EBADF ECONNREFUSED ECONNRESET EINTR EINVAL ENOMEM ENOTCONN ENOTSOCK ETIMEDOUT EHOSTUNREACH",
    "send": "EACCES EALREADY EBADF ECONNRESET EDESTADDRREQ EINTR EINVAL EISCONN EMSGSIZE ENOBUFS ENOMEM ENOTCONN ENOTSOCK "
    "EOPNOTSUPP EPIPE ETIMEDOUT EHOSTUNREACH",
    "splice": "EBADF EINVAL ENOMEM ESPIPE EPERM ENOSYS EPIPE ECONNRESET ETIMEDOUT",
    "shutdown": "EBADF EINVAL ENOTCONN ENOTSOCK",
    "setsockopt": "EBADF EINVAL ENOPROTOOPT ENOTSOCK ENOMEM ENOBUFS EDOM",
    "getsockopt": "EBADF EINVAL ENOPROTOOPT ENOTSOCK",
    "getsockname": "EBADF EINVAL ENOBUFS ENOTSOCK",
    "epoll_ctl": "EBADF EEXIST EINVAL ELOOP ENOENT ENOMEM ENOSPC EPERM",
    "pipe2": "EINVAL EMFILE ENFILE ENOPKG",
    "fcntl": "EBADF EBUSY EPERM EINVAL ENOMEM",
    "ioctl": "EBADF EINVAL ENOTTY",
    "close": "EBADF EINTR EIO ENOSPC EDQUOT",
}
CALLS = {call: [getattr(errno, name) for name in names.split()] for call, names in ERRNOS.items()}
OUTSIDE = ("session_ended", "connect_ended", "on_fault", "recorder", "clock", "wall", "opener", "on_end")
FAULTS = st.one_of(
    st.sampled_from([(call, code) for call, codes in CALLS.items() for code in codes]),
    st.sampled_from([(call, 0) for call in OUTSIDE]),
)


class Sick:
    """What fails next: `armed` says so per call, once for each time it was armed."""

    def __init__(self) -> None:
        self.armed: dict[str, list[int]] = {}
        self.hits = 0
        self.calls = 0  # of all system calls

    def meet(self, call: str) -> None:
        self.calls += 1
        if waiting := self.armed.get(call):
            code = waiting.pop()
            self.hits += 1
            if code:
                raise OSError(code, os.strerror(code))
            raise RuntimeError(f"{call} failed, as it was told to")


class Socket(socket.SocketType):
    """A socket whose calls may fail."""

    sick: Sick

    def _accept(self) -> Any:
        self.sick.meet("accept")
        return super()._accept()  # type: ignore[misc]

    def connect_ex(self, *args: Any) -> int:
        try:
            self.sick.meet("connect")
        except OSError as error:
            return error.errno or errno.EIO
        return super().connect_ex(*args)

    def recv_into(self, *args: Any) -> int:
        self.sick.meet("recv")
        return super().recv_into(*args)

    def send(self, *args: Any) -> int:
        self.sick.meet("send")
        return super().send(*args)

    def shutdown(self, *args: Any) -> None:
        self.sick.meet("shutdown")
        super().shutdown(*args)

    def setsockopt(self, *args: Any) -> None:
        self.sick.meet("setsockopt")
        super().setsockopt(*args)

    def getsockopt(self, *args: Any) -> Any:
        self.sick.meet("getsockopt")
        return super().getsockopt(*args)

    def getsockname(self) -> Any:
        self.sick.meet("getsockname")
        return super().getsockname()

    def close(self) -> None:
        had = self.fileno() >= 0
        super().close()  # Linux frees the descriptor, and then says what it says
        if had:
            self.sick.meet("close")


def wrapped(call: Callable[..., Any], name: str, sick: Sick) -> Callable[..., Any]:
    def failing(*args: Any, **more: Any) -> Any:
        sick.meet(name)
        return call(*args, **more)

    return failing


def closing(sick: Sick) -> Callable[[int], None]:
    def close(fd: int) -> None:
        os.close(fd)
        sick.meet("close")

    return close


@contextmanager
def sickness() -> Iterator[Sick]:
    """The modules of forward/ see sockets, pipes and splice that may fail; the test's own peers do not."""
    sick = Sick()
    made = type("Made", (Socket,), {"sick": sick})

    def new(*args: Any) -> Any:
        if args[-1:] == (0,) and len(args) == 3:
            sick.meet("socket")
        return made(*args)

    system = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
    system.pipe2, system.close = wrapped(os.pipe2, "pipe2", sick), closing(sick)
    system.splice, system.set_blocking = wrapped(os.splice, "splice", sick), wrapped(os.set_blocking, "fcntl", sick)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sockets, "SocketType", new)
        patched.setattr(listener, "SocketType", new)
        patched.setattr(sockets, "ioctl", wrapped(sockets.ioctl, "ioctl", sick))
        patched.setattr(pipes, "fcntl", wrapped(pipes.fcntl, "fcntl", sick))
        for module in (pipes, relay, listener):
            patched.setattr(module, "os", system)
        yield sick


class Epoll:
    def __init__(self, epoll: Any, sick: Sick) -> None:
        self._epoll, self._sick = epoll, sick

    def register(self, fd: int, events: int) -> None:
        try:
            self._sick.meet("epoll_ctl")
        except FileExistsError:
            self._epoll.register(fd, events)  # it says so only of one that is watched (epoll_ctl(2), EEXIST)
            raise
        self._epoll.register(fd, events)

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)
        self._sick.meet("epoll_ctl")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


class Listening(Witness):
    def __init__(self, sick: Sick) -> None:
        super().__init__()
        self._sick = sick

    def session_ended(self, record: SessionRecord) -> None:
        super().session_ended(record)
        self._sick.meet("session_ended")

    def connect_ended(self, *args: Any) -> None:
        self._sick.meet("connect_ended")
        super().connect_ended(*args)


class Faults(RuleBasedStateMachine):
    steps = 0

    @initialize(splice=st.booleans(), most=st.sampled_from([0, 2]), size=st.sampled_from([0, 16384]))
    def begin(self, splice: bool, most: int, size: int) -> None:
        gc.collect()
        self.before = descriptors()
        self.context = sickness()
        self.sick = self.context.__enter__()
        self.drive = Drive(splice=splice, max_connections=8, observer=Listening(self.sick), recorded=8)
        engine, sick = self.drive.engine, self.sick
        for part in (engine._life, engine._life.dialer, engine._ports):
            part._epoll = Epoll(engine._epoll, sick)  # type: ignore[assignment]
        clock = wrapped(self.drive.clock, "clock", sick)
        for part in (engine._life, engine._life.dialer, engine._accounts):
            part._clock = clock
        engine._accounts._wall = wrapped(time.time, "wall", sick)
        engine.faults._report = wrapped(engine.faults._report, "on_fault", sick)
        recorder = engine._accounts.recorder
        assert recorder is not None
        recorder.add = wrapped(recorder.add, "recorder", sick)  # type: ignore[method-assign]
        engine._ports._opener = wrapped(engine._ports._opener, "opener", sick)  # type: ignore[assignment]
        engine._life.on_end = wrapped(engine._life.on_end, "on_end", sick)
        self.backend = self.drive.backend(sndbuf=size, rcvbuf=size)
        self.refusing = self.drive.nobody()
        self.most, self.size = most, size
        self.said: dict[Peer, int] = {}
        timed = policy(idle=60, half_close=20, flush=5, connect=2, drain=8, queue=10)
        self.policy = timed
        self.listen = self.drive.serve(*self.servers(refusing=False), policy=timed)
        self.peers: list[Peer] = []

    def servers(self, *, refusing: bool) -> list[Any]:
        found = [server_at(self.refusing, "refuses")] if refusing else []
        return [*found, server_at(self.backend, "a", rank=1, most=self.most, proxy=ProxyProtocol.V2)]

    @rule(faults=st.lists(FAULTS, min_size=1, max_size=4))
    def arm_some(self, faults: list[tuple[str, int]]) -> None:
        for fault in faults:
            self.arm(fault)

    def arm(self, fault: tuple[str, int]) -> None:
        call, code = fault
        self.sick.armed.setdefault(call, []).append(code)

    @rule(fault=FAULTS)
    def arm_and_connect(self, fault: tuple[str, int]) -> None:
        self.arm(fault)
        self.connect()
        self.turn()

    @rule()
    def connect(self) -> None:
        if len(self.peers) < 40 and self.listen in self.drive.engine._ports.by_listen:
            self.peers.append(self.drive.connect(self.listen, sndbuf=self.size, rcvbuf=self.size))

    @rule(place=st.integers(0, 39), size=st.sampled_from([1, 5000, 300_000, 1_500_000]))
    def say(self, place: int, size: int) -> None:
        if self.peers and not (peer := self.peers[place % len(self.peers)]).closed and peer.unsaid < 3_000_000:
            start = self.said.setdefault(peer, 0)
            peer.say(stream(self.peers.index(peer), start, size))
            self.said[peer] += size

    @rule(place=st.integers(0, 39), how=st.sampled_from(["finish", "reset", "stall", "read"]))
    def end(self, place: int, how: str) -> None:
        if self.peers and not (peer := self.peers[place % len(self.peers)]).closed:
            if how in ("stall", "read"):
                peer.reading = how == "read"
            else:
                getattr(peer, how)()

    @rule()
    def turn(self) -> None:
        """Nothing spins: a turn makes a bounded number of calls."""
        for _ in range(3):
            before = self.sick.calls
            self.drive.engine.on_ready()
            assert self.sick.calls - before < 3000, "a turn that does not end"
            for peer in self.drive._peers:
                peer.step()
            self.accept()

    @rule(seconds=st.sampled_from([0.3, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.drive.pass_time(seconds, step=0.1)
        self.accept()

    @rule(refusing=st.booleans())
    def swap(self, refusing: bool) -> None:
        self.drive.serve_or_fail(*self.servers(refusing=refusing), listen=self.listen, policy=self.policy)

    @rule()
    def remove_and_open_again(self) -> None:
        if self.listen in self.drive._frontends:
            self.drive.remove(self.listen)
        self.drive.serve_or_fail(*self.servers(refusing=False), listen=self.listen, policy=self.policy)

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.backend.accept()
            except BlockingIOError:
                return
            self.peers.append(self.drive._keep(sock))

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "drive"):
            return
        type(self).steps += 1
        engine = self.drive.engine
        life, halves = engine._life, engine._life.halves
        sessions = len(life.sessions)
        assert sessions == engine.counters.open_sessions <= 8
        assert sessions == sum(one.sessions for one in self.drive._counters.values())
        known = {half for session in life.sessions for half in (session.client, session.upstream) if half is not None}
        assert known == set(halves.values()), "a half without its session, or the other way round"
        assert engine.counters.buffered == sum(half.held for half in halves.values())
        assert engine._pipes.lent == sum(half.pipe is not None for half in halves.values())
        dialed = sum(session.upstream is not None for session in life.sessions)
        servers = {id(s.server): s.server for s in life.sessions if s.server is not None and s.upstream is not None}
        assert dialed == sum(server.sessions for server in servers.values()), "a server's place is lost"
        queued = sum(len(frontend.queue) for frontend in life.dialer.queues)
        assert queued == sum(session.state == "queued" for session in life.sessions)

    def teardown(self) -> None:
        if not hasattr(self, "drive"):
            return
        try:
            self.recover()
        finally:
            self.drive._close_all()
            self.context.__exit__(None, None, None)
        assert not self.drive.engine._life.halves
        assert not self.drive.engine._life.sessions
        assert self.drive.engine._pipes.lent == 0
        assert self.drive.engine.counters.open_sessions == 0
        del self.peers
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, Half | Session)]
        assert descriptors() == self.before

    def check_bytes(self) -> None:
        """What a peer got is the beginning of what one other said, and all of it where the end was a FIN."""
        for peer in self.peers:
            header = parse(bytes(peer.got[:200])) if peer.got[:4] == b"\r\n\r\n" else None
            got = peer.got[header.size :] if header is not None else peer.got
            if not got:
                continue
            senders = [one for seed, one in enumerate(self.peers) if one is not peer and got == stream(seed, 0, len(got))]
            assert senders, "bytes that nobody said, or not in that order"
            if peer.eof and not senders[0].closed and not senders[0].error:
                assert len(got) == self.said[senders[0]], "a clean FIN although bytes are missing"

    def recover(self) -> None:
        """The faults are over: whoever comes now is served, and nothing is left to do behind it."""
        self.sick.armed.clear()
        self.check_bytes()
        self.said.clear()
        drive = self.drive
        for peer in self.peers:
            if not peer.closed:
                peer.reset()
        drive.pass_time(40, step=0.5)  # the longest rest of a port
        assert not drive.engine.counters.open_sessions
        assert not drive.serve_or_fail(*self.servers(refusing=False), listen=self.listen, policy=self.policy)
        self.accept()
        client = drive.connect(self.listen)
        client.say(b"and all is well")
        server = drive.accept(self.backend)
        server.say(b"it is")
        drive.run_until(lambda: server.got.endswith(b"and all is well") and client.got == b"it is")
        client.finish()
        server.finish()
        drive.run_until(lambda: client.eof and server.eof and not drive.engine.counters.open_sessions)
        drive.run_until_quiet()


def run(examples: int, steps: int) -> None:
    checks = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    run_state_machine_as_test(Faults, settings=checks)


def test_any_fault_at_any_call_loses_nothing_and_nothing_spins(request: pytest.FixtureRequest) -> None:
    run(examples=300 if request.config.getoption("--long") else 10, steps=25)


@pytest.mark.parametrize("call", [*CALLS, *OUTSIDE])
def test_each_errno_of_a_call_in_the_life_of_a_session(call: str, request: pytest.FixtureRequest) -> None:
    """All of them with --long; else every sixth."""
    codes = CALLS.get(call, [0])
    for code in codes if request.config.getoption("--long") else codes[::6]:
        machine = Faults()
        machine.begin(splice=True, most=0, size=0)
        try:
            if call == "on_fault":
                machine.arm(("clock", 0))  # there is something to be told
            live(machine, (call, code))
            assert machine.sick.hits, f"{call} is never made"
        finally:
            machine.teardown()


def live(machine: Faults, fault: tuple[str, int]) -> None:
    """Everything that forward/ asks of the kernel, before and after the fault."""
    machine.connect()
    machine.turn()
    machine.arm(fault)
    for place in range(2):
        machine.say(place, 600_000)
    for _ in range(5):
        machine.turn()
    machine.connect()
    machine.turn()
    machine.swap(refusing=True)
    machine.connect()
    machine.turn()
    machine.the_books_balance()
    machine.pass_time(0.3)
    for place, how in enumerate(("finish", "reset", "finish")):
        machine.end(place, how)
        machine.turn()
        machine.the_books_balance()
    for place in range(len(machine.peers)):
        machine.end(place, "reset")
        machine.turn()
    machine.the_books_balance()
    machine.remove_and_open_again()
    machine.pass_time(3.0)
    machine.connect()
    for _ in range(3):
        machine.turn()
    machine.the_books_balance()


if __name__ == "__main__":
    until(int(sys.argv[1]), lambda: Faults.steps, lambda: run(examples=40, steps=50), "steps with faults")
