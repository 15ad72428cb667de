"""Any call out of forward/ may raise, and any system call may fail with any errno that its manual names.

The same state machine as in test_any_order, over an engine whose surroundings fail now and then. What must hold: no descriptor,
place, half or record is lost, no byte is added or reordered, nothing spins; and once the faults are over a new session works,
whatever has happened before.
"""

import ast
import errno
import gc
import os
import select
import socket
import sys
import time
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from pylb import forward
from pylb.core.access import Networks
from pylb.core.address import Address, Listen
from pylb.core.policy import ProxyAccept, ProxyProtocol, SourceLimits
from pylb.core.proxy_protocol import header, parse
from pylb.core.session import SessionRecord
from pylb.forward.admission import pack
from pylb.forward.engine import MAX_BUFFERED
from pylb.forward.session import Half, Session
from pylb.forward.shared_limits import FrontendUse
from tests.forward.test_any_order import stream
from tests.support.baseline import descriptors
from tests.support.drive import Drive, Peer, Witness, policy, server_at
from tests.support.kernel import CALLS, PASS, SPELLED, Epoll, Sick, sickness, wrapped
from tests.support.longrun import until
from tests.support.main_process import Main
from tests.support.ports import free_port

OUTSIDE = ("session_ended", "connect_ended", "on_fault", "recorder", "clock", "wall", "opener", "on_end", "channel")
FAULTS = st.one_of(
    st.sampled_from([(call, code) for call, codes in CALLS.items() for code in codes]),
    st.sampled_from([(call, 0) for call in OUTSIDE]),
)


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

    @initialize(
        splice=st.booleans(),
        most=st.sampled_from([0, 2]),
        size=st.sampled_from([0, 16384]),
        buffered=st.sampled_from([1, MAX_BUFFERED]),
        worker=st.booleans(),
        options=st.booleans(),
    )
    def begin(self, *, splice: bool, most: int, size: int, buffered: int, worker: bool, options: bool) -> None:
        """`options`: of the policy, those for which other calls are made."""
        gc.collect()
        self.before = descriptors()
        self.context = sickness()
        self.sick = self.context.__enter__()
        self.drive = Drive(splice=splice, max_connections=8, max_buffered=buffered, observer=Listening(self.sick), recorded=8)
        engine, sick = self.drive.engine, self.sick
        self.main = Main(self.drive, sick) if worker else None
        epoll = Epoll(engine._epoll, sick)
        for part in (engine, engine._life, engine._life.dialer, engine._ports, engine._watched):
            part._epoll = epoll  # type: ignore[assignment]
        self.on_ready, engine.on_ready = engine.on_ready, self.on_ready_or_not  # type: ignore[method-assign]
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
        self.policy = policy(idle=60, half_close=20, flush=5, connect=2, drain=8, queue=10)
        if options:
            trusted = ProxyAccept(Networks([ip_network("127.0.0.0/8")]))
            limits, source = SourceLimits(per_source=6, rate=50), ("127.0.0.1",)
            self.policy = replace(
                self.policy,
                accept_proxy=trusted,
                send_unique_id=True,
                source_addresses=source,
                limits=limits,
                max_connections=6,
            )
        self.listen = Listen("tcp", "127.0.0.1", free_port())
        assert not self.publish(refusing=False)
        self.peers: list[Peer] = []

    def on_ready_or_not(self, wait: float = 0.0) -> bool:
        """Whoever calls it goes on after a failure of epoll_wait."""
        try:
            return self.on_ready(wait)
        except OSError:
            return True

    def publish(self, *, refusing: bool) -> dict[Listen, OSError]:
        failed = self.drive.serve_or_fail(*self.servers(refusing=refusing), listen=self.listen, policy=self.policy)
        self.drive.engine.other_processes.follow([self.listen])
        return failed

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
        ports = self.main.listening if self.main else self.drive.engine._ports.by_listen
        if len(self.peers) < 40 and self.listen in ports:
            self.peers.append(self.client())

    def client(self) -> Peer:
        peer = self.drive.connect(self.listen, sndbuf=self.size, rcvbuf=self.size)
        if self.policy.accept_proxy.networks:
            peer.say(header(ProxyProtocol.V1, peer.local, Address("127.0.0.1", self.listen.port)))
        return peer

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
        self.publish(refusing=refusing)

    @rule(turns=st.integers(0, 3))
    def remove_and_open_again(self, turns: int) -> None:
        """In a worker the table comes later than main shuts the port down."""
        if self.main:
            self.main.shut_down(self.listen)
        for _ in range(turns):
            self.turn()
        if self.listen in self.drive._frontends:
            self.drive.remove(self.listen)
            self.drive.engine.other_processes.follow([self.listen])
        self.publish(refusing=False)

    # ------------------------------------------------------------ of a worker

    @precondition(lambda self: self.main)
    @rule(sessions=st.integers(0, 6), accepted=st.integers(0, 9), places=st.integers(0, 2), live=st.integers(0, 6))
    def another_worker_reports(self, sessions: int, accepted: int, places: int, live: int) -> None:
        servers, sources = {str(server_at(self.backend).address): places}, {pack("127.0.0.1"): (live, accepted)}
        use = FrontendUse(self.listen, sessions, accepted, servers, sources)
        self.drive.engine.other_processes.take_report(2, (use,), self.drive.clock.now)

    @precondition(lambda self: self.main)
    @rule()
    def another_worker_ends(self) -> None:
        self.drive.engine.other_processes.forget(2)

    @precondition(lambda self: self.main)
    @rule(whole=st.booleans())
    def report(self, whole: bool) -> None:
        self.drive.engine.other_processes.uses(whole=whole)

    @precondition(lambda self: self.main)
    @rule()
    def main_speaks(self) -> None:
        assert self.main
        self.main.say()

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
            if self.main:
                self.main.close()
            self.drive._close_all()
            del self.drive.engine.on_ready, self.on_ready  # a cycle
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
        drive.engine.other_processes.forget(2)
        drive.pass_time(40, step=0.5)  # the longest backoff of a port
        assert not drive.engine.counters.open_sessions
        assert not self.publish(refusing=False)
        frontend = drive.engine._ports.by_listen[self.listen].frontend
        assert frontend
        assert not (frontend.admission_rules and frontend.admission_rules.sources and frontend.admission_rules.sources.live), (
            "a source's place is lost"
        )
        assert not self.main or self.main.heard == self.main.said, "main is not heard any more"
        self.accept()
        client = self.client()
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


BULK = {"pipe2", "fcntl", "splice", "read"}  # calls of splice, which needs several full reads in a row

# A call that is made only after another one has failed.
BEFORE: dict[str, tuple[tuple[str, list[int]], ...]] = {
    "on_fault": (("clock", [0]),),
    "read": (("splice", [errno.EPERM, PASS]),),  # with bytes in the pipe
    "open": (("socket", [errno.EMFILE]),),
}


@pytest.mark.parametrize("call", [*CALLS, *OUTSIDE])
def test_each_errno_of_a_call_in_the_life_of_a_session(call: str, request: pytest.FixtureRequest) -> None:
    """All of them with --long; else every sixth."""
    codes = CALLS.get(call, [0])
    for code in codes if request.config.getoption("--long") else codes[::6]:
        machine = Faults()
        machine.begin(splice=True, most=0, size=0, buffered=MAX_BUFFERED, worker=call == "channel", options=True)
        try:
            live(machine, (call, code))
            assert not machine.sick.armed[call], f"{call} is never made"
        finally:
            machine.teardown()


# test_datagram_faults.py and test_flow_handover.py have their calls
OF_UDP = {"datagram_sockets", "datagram_port", "datagrams", "flow", "flow_sweep", "flows", "homes"}
OF_UDP |= {"flow_handover", "passed_flows"}


def test_every_system_call_that_forward_makes_is_among_them() -> None:
    """By their names in Python: functions of these modules, and methods of sockets and epolls."""
    modules = {"os": os, "socket": socket, "select": select}
    methods = {name for one in (socket.SocketType, select.epoll) for name in dir(one) if not name.startswith("__")}
    found = {"SocketType", "fcntl", "ioctl"}  # imported by their names
    for path in Path(*forward.__path__).glob("*.py"):
        if path.stem in OF_UDP:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=ast.Name(id=module), attr=name) if module in modules:
                    found |= {name} if callable(getattr(modules[module], name)) else set()
                case ast.Call(func=ast.Attribute(attr=name)) if name in methods:
                    found.add(name)
    # The epoll is made before there is anything to lose; the others ask nobody.
    assert found - {"epoll", "fileno", "inet_pton"} == set(SPELLED)
    assert set(SPELLED.values()) == set(CALLS)


def live(machine: Faults, fault: tuple[str, int]) -> None:
    """Everything that forward/ asks of the kernel, before and after the fault."""
    machine.connect()
    machine.turn()
    machine.arm(fault)
    machine.sick.armed |= {other: list(codes) for other, codes in BEFORE.get(fault[0], ())}
    if machine.main:
        machine.main.say()
    for place in range(2):
        machine.say(place, 600_000)
    for _ in range(5):
        machine.turn()
    for _ in range(8):  # on a busy machine the kernel delivers late, and reads may be too short for splice
        if fault[0] not in BULK or not machine.sick.armed[fault[0]]:
            break
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
    machine.remove_and_open_again(turns=1)
    machine.pass_time(3.0)
    machine.connect()
    for _ in range(3):
        machine.turn()
    machine.the_books_balance()


if __name__ == "__main__":
    until(int(sys.argv[1]), lambda: Faults.steps, lambda: run(examples=40, steps=50), "steps with faults")
