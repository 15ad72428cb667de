"""The queue in front of full servers: first come, first served, also past a head that cannot use the place."""

import socket
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.session import Cause, Event
from pylb.forward.run_queue import BUDGET, DIAL, QUANTUM
from pylb.forward.session import Session
from pylb.forward.shared_limits import FrontendUse
from pylb.forward.wait_queue import WaitQueue
from tests.support.drive import Drive, Peer, policy, server_at
from tests.support.ports import free_port

Make = Callable[..., Drive]


def test_a_newcomer_of_the_same_batch_does_not_take_a_place_that_became_free(drive: Drive) -> None:
    backend = drive.backend()
    listen = drive.serve(server_at(backend, most=1))
    holder = drive.connect(listen)
    drive.accept(backend)
    waiting = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    newcomer = drive.connect(listen)
    holder.reset()
    drive.engine.on_ready()  # both are in this batch, in whichever order
    first = drive.accept(backend)
    waiting.say(b"I was first")
    newcomer.say(b"I was not")
    drive.run_until(lambda: first.got)
    assert first.got == b"I was first"


def test_a_head_that_tried_the_freed_server_does_not_block_those_behind_it(drive: Drive) -> None:
    backend, other = drive.backend(), Switch(drive)
    servers = (server_at(other.address, "x", most=1), server_at(backend, "y", most=1))
    listen = drive.serve(*servers, policy=Policy(balance=policy().balance, retries=3))
    other.close()
    drive.connect(listen)  # x refuses, y has it
    drive.accept(backend)
    head = drive.connect(listen)  # x refuses, y is full: it waits for y
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 1)
    other.open()
    holder = drive.connect(listen)
    drive.accept(other.sock)
    behind = drive.connect(listen)
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == 2)
    holder.reset()
    server = drive.accept(other.sock)
    behind.say(b"past the head")
    drive.run_until(lambda: server.got == b"past the head")
    assert drive.engine.counters.frontends[listen].queued == 1
    assert not head.error


class Switch:
    """A server that can be made to refuse and to accept."""

    def __init__(self, drive: Drive) -> None:
        self.sock = drive.backend(port=free_port())  # a port of the kernel's choice is lost by shutdown()
        self.address = Address(*self.sock.getsockname())

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RD)

    def open(self) -> None:
        self.sock.listen()


WAITING = 100


def crowd(drive: Drive, backend: socket.socket, **limits: int) -> tuple[Listen, list[Peer]]:
    """One client is served, WAITING others wait in their order and say their number."""
    listen = drive.serve(server_at(backend, most=1), policy=Policy(**limits))
    drive.connect(listen)
    drive.accept(backend)
    waiting = []
    for number in range(WAITING):
        waiting.append(drive.connect(listen))
        waiting[-1].say(b"%d" % number)
        drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == len(waiting))
    return listen, waiting


def dials(drive: Drive, listen: Listen) -> int:
    return sum(state.counters.attempts for state in drive.states(listen))


def in_order(drive: Drive, backend: socket.socket, count: int) -> list[int]:
    """The numbers that clients say to the server, in the order in which they came to it."""
    servers = [drive.accept(backend) for _ in range(count)]
    drive.run_until(lambda: all(server.got for server in servers))
    return [int(server.got) for server in servers]


def test_a_table_that_makes_room_for_many_serves_a_few_in_each_turn_and_all_in_their_order(drive: Drive) -> None:
    backend = drive.backend(backlog=WAITING)
    listen, _ = crowd(drive, backend)
    before = dials(drive, listen)
    drive.serve(server_at(backend), listen=listen)
    assert drive.engine.busy
    assert dials(drive, listen) == before, "a table dials for nobody by itself"
    turns = 0
    while drive.engine.counters.frontends[listen].queued:
        drive.engine.on_ready()
        assert 0 < dials(drive, listen) - before <= QUANTUM // DIAL
        before, turns = dials(drive, listen), turns + 1
    assert turns == WAITING // (QUANTUM // DIAL)
    assert in_order(drive, backend, WAITING) == list(range(WAITING))


def test_what_other_processes_leave_is_given_to_those_who_wait_in_the_same_way(drive: Drive) -> None:
    backend = drive.backend(backlog=WAITING)
    listen, _ = crowd(drive, backend)
    server = server_at(backend, most=WAITING + 10)
    elsewhere = drive.engine.other_processes
    use = FrontendUse(listen, 0, 0, {str(server.address): WAITING + 9}, {})
    elsewhere.take_report(2, (use,), drive.clock.now)
    drive.serve(server, listen=listen)
    elsewhere.follow([listen])
    elsewhere.take_report(2, (use,), drive.clock.now)
    drive.run_until_quiet()
    assert drive.engine.counters.frontends[listen].queued == WAITING
    before = dials(drive, listen)
    elsewhere.forget(2)
    drive.engine.on_ready()
    assert 0 < dials(drive, listen) - before <= QUANTUM // DIAL
    assert in_order(drive, backend, WAITING) == list(range(WAITING))


def test_who_comes_while_many_find_a_place_is_behind_them_all(drive: Drive) -> None:
    backend = drive.backend(backlog=2 * WAITING)
    listen, _ = crowd(drive, backend, max_queue=WAITING)
    drive.serve(server_at(backend), listen=listen, policy=Policy(max_queue=WAITING))
    late = 0
    while drive.engine.counters.frontends[listen].queued:
        drive.connect(listen).say(b"%d" % (WAITING + late))
        late += 1
        before = dials(drive, listen)
        drive.engine.on_ready()
        assert dials(drive, listen) - before <= BUDGET // DIAL
        assert late < WAITING, "they come faster than they are served"
    assert not drive.engine.counters.frontends[listen].denied, "the queue is full for nobody, while it is being served"
    assert in_order(drive, backend, WAITING + late) == list(range(WAITING + late))


def test_a_place_is_offered_once_to_those_who_have_tried_the_same(drive: Drive) -> None:
    """Not to each of them: thousands may wait that found one server down, and it is back and full."""
    down, up = Switch(drive), drive.backend(backlog=WAITING)
    servers = (server_at(down.address, "x", most=1), server_at(up, "y", most=1))
    listen = drive.serve(*servers, policy=Policy(balance=policy().balance, retries=3))
    down.close()
    drive.connect(listen)
    drive.accept(up)
    waiting = [drive.connect(listen) for _ in range(WAITING)]
    drive.run_until(lambda: drive.engine.counters.frontends[listen].queued == WAITING)
    down.open()
    drive.connect(listen)
    drive.accept(down.sock)
    fire, offers = drive.engine._life.fire, []

    def watched(session: Session, event: Event, *cause: Cause) -> None:
        offers.extend([session.number] * (event is Event.ROOM))
        fire(session, event, *cause)

    drive.engine._life.fire = watched  # type: ignore[method-assign]
    drive.engine._life.dialer.make_room(next(iter(drive.engine._life.dialer.queues)))
    drive.run_until_quiet()
    assert len(offers) == 1
    for client in waiting:
        client.reset()


@given(st.lists(st.tuples(st.integers(0, 30), st.sets(st.sampled_from("abc"))), max_size=40), st.sets(st.sampled_from("abc")))
def test_offers_come_in_order_once_to_a_line_and_go_on_where_there_was_room(
    arrivals: list[tuple[int, set[str]]], room: set[str]
) -> None:
    """Room at some servers, without an end: who has not tried all of them gets it, and of the others one is asked in vain."""
    queue: WaitQueue[One] = WaitQueue()
    model: dict[int, One] = {}
    for number, tried in arrivals:
        if number in model:
            queue.remove(model.pop(number))
        else:
            one = model[number] = One(number, sorted(tried))
            assert queue.add(one) == sum(other < number for other in model)
        assert list(queue) == [model[number] for number in sorted(model)]
        assert queue.first() is (model[min(model)] if model else None)
    served, in_vain = [], []
    for one in queue.offers():
        if room - set(one.tried):
            queue.remove(one)
            served.append(one.number)
        else:
            in_vain.append(one.tried)
    if room:
        assert served == [number for number in sorted(model) if room - set(model[number].tried)]
    assert not served or room
    assert len(in_vain) == len({tuple(tried) for tried in in_vain})


class One(NamedTuple):
    number: int
    tried: list[str]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("connect"), st.integers(1, 3)),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("switch"), st.integers(0, 2)),
        st.tuples(st.just("turn"), st.just(0)),
        st.tuples(st.just("both"), st.integers(0, 20)),
    ),
    min_size=8,
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(STEPS)
def test_nobody_is_served_before_one_who_came_earlier_and_could_use_the_place(steps: list[tuple[str, int]]) -> None:
    drive = Drive(splice=False)
    switches = [Switch(drive) for _ in range(3)]
    on = [True] * 3
    servers = [server_at(switch.address, name, most=1) for switch, name in zip(switches, "abc", strict=True)]
    listen = drive.serve(*servers, policy=policy(queue=1000, connect=1000))
    watch = Watch(drive, listen)
    clients = []
    for what, number in steps:
        if what in ("connect", "both"):
            clients += [drive.connect(listen) for _ in range(number if what == "connect" else 1)]
        if what in ("leave", "both") and clients:
            clients.pop(number % len(clients)).reset()
        if what == "switch":
            on[number] = not on[number]
            switches[number].open() if on[number] else switches[number].close()
        if what == "turn":
            drive.run_until_quiet()
            watch.check_that_no_place_is_wasted()
        drive.engine.on_ready()
    drive.run_until_quiet()
    watch.check_that_no_place_is_wasted()
    for client in clients:
        client.reset()
    drive.finish()


class Watch:
    """Looks at every choice of a server at the moment it is made."""

    def __init__(self, drive: Drive, listen: Listen) -> None:
        frontend = drive.engine._ports.by_listen[listen].frontend
        assert frontend is not None
        self._frontend = frontend
        connect = drive.engine._life.dialer._connect
        dial = drive.engine._life.dialer.dial
        self._dialing: Session | None = None

        def watched_dial(session: Session) -> None:
            before, self._dialing = self._dialing, session
            dial(session)
            self._dialing = before

        def watched_connect(*args: object) -> object:
            session = self._dialing
            assert session is not None
            assert session.server is not None
            for other in frontend.queue:
                if other.number < session.number:
                    assert session.server in (other.tried or ()), f"{session.number} is served before {other.number}"
            return connect(*args)  # type: ignore[arg-type]

        life = drive.engine._life
        for events in life._transitions.values():
            for event, (state, call) in events.items():
                events[event] = state, watched_dial if call == dial else call
        drive.engine._life.dialer.dial = watched_dial  # type: ignore[method-assign]
        drive.engine._life.dialer._connect = watched_connect  # type: ignore[method-assign,assignment]

    def check_that_no_place_is_wasted(self) -> None:
        free = [state for state in self._frontend.servers.values() if not state.sessions]
        numbers = [session.number for session in self._frontend.queue]
        assert numbers == sorted(numbers), "in the order they came"
        for session in self._frontend.queue:
            assert all(state in (session.tried or ()) for state in free), "it waits although there is room for it"
