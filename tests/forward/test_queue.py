"""The queue in front of full servers: first come, first served, also past a head that cannot use the place."""

import socket
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.forward.session import Session
from tests.support.drive import Drive, free_port, policy, server_at

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

        drive.engine._life._act[next(action for action in drive.engine._life._act if action == "dial the next server")] = (
            watched_dial
        )
        drive.engine._life.dialer.dial = watched_dial  # type: ignore[method-assign]
        drive.engine._life.dialer._connect = watched_connect  # type: ignore[method-assign,assignment]

    def check_that_no_place_is_wasted(self) -> None:
        free = [state for state in self._frontend.servers.values() if not state.sessions]
        numbers = [session.number for session in self._frontend.queue]
        assert numbers == sorted(numbers), "in the order they came"
        for session in self._frontend.queue:
            assert all(state in (session.tried or ()) for state in free), "it waits although there is room for it"
