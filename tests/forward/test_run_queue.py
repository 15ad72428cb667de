"""A turn of the engine: one budget for all sessions and ports, spent in their order."""

import select
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest

from pylb.core.address import Listen
from pylb.forward.engine import EVENTS, Engine
from pylb.forward.listener import BATCH, ListeningPort
from pylb.forward.relay import FIRST
from pylb.forward.run_queue import ACCEPT, BUDGET, DIAL, QUANTUM, STEP
from pylb.forward.session import Half
from tests.support.drive import PATIENCE, Drive, Peer, server_at

MIB = 1 << 20
FLOWS = 500
DATA = bytes(16 * MIB)  # more than any flow moves here

Make = Callable[..., Drive]


@pytest.fixture(params=[True, False], ids=["splice", "copy"])
def many(request: pytest.FixtureRequest, make_drive: Make) -> Drive:
    """Pipes for half of the flows, so that bulk goes both ways at once."""
    return make_drive(splice=request.param, max_pipes=FLOWS // 2)


def flows(drive: Drive, count: int) -> list[tuple[Peer, Peer]]:
    """Downloads whose servers have filled what their kernels take. The peers read and write only where a test says so."""
    backend = drive.backend(backlog=1024)
    listen = drive.serve(server_at(backend))
    found = []
    for _ in range(count):
        client = drive.connect(listen)
        found.append((client, drive.accept(backend)))
    for _, server in found:
        server.say(DATA)
    return found


def end(found: list[tuple[Peer, Peer]]) -> None:
    """None of them need arrive."""
    for client, server in found:
        server.give_up()
        client.reset()


def fill(servers: list[Peer]) -> None:
    for server in servers:
        with suppress(BlockingIOError):
            server.step()


def empty(clients: list[Peer]) -> None:
    for client in clients:
        client.step()
        client.got.clear()


class Order:
    """Who had its share in which turn."""

    def __init__(self, engine: Engine, patch: pytest.MonkeyPatch) -> None:
        self.turns: list[list[int]] = []
        run, accept = engine._life.run, engine._ports.accept

        def noted_run(half: Half) -> None:
            self.turns[-1].append(half.fd)
            run(half)

        def noted_accept(port: ListeningPort) -> bool:
            self.turns[-1].append(port.fd)
            return accept(port)

        patch.setattr(engine._life, "run", noted_run)
        patch.setattr(engine._ports, "accept", noted_accept)
        self._engine = engine

    def turn(self) -> bool:
        self.turns.append([])
        return self._engine.on_ready()


def test_of_500_flows_none_has_a_second_share_before_all_others_had_theirs(
    many: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = flows(many, FLOWS)
    fill([server for _, server in found])
    order = Order(many.engine, monkeypatch)
    queue = many.engine._run_queue.queue
    for _ in range(1000):  # until all of them are known as bulk, however late the kernel delivers
        if not order.turn():
            select.select([many.engine], [], [], PATIENCE)
        if len(queue) == FLOWS:
            break
        fill([server for _, server in found])
        empty([client for client, _ in found])
    del order.turns[:]
    waiting = [one.fd for one in queue if isinstance(one, Half)]
    assert len(waiting) == len(set(waiting)) == FLOWS
    while sum(map(len, order.turns)) < FLOWS:
        assert order.turn()
    served = [fd for turn in order.turns for fd in turn]
    assert served[:FLOWS] == waiting
    assert len(order.turns) > FLOWS * STEP // BUDGET, "all of them in one turn: no budget"
    end(found)


def test_a_turn_moves_what_its_budget_says_however_many_flows_there_are(many: Drive) -> None:
    found = flows(many, 100)
    halves = many.engine._life.halves
    most = BUDGET + EVENTS * FIRST + QUANTUM
    moved, bulk = 0, 0
    for _ in range(200):
        fill([server for _, server in found])
        before = sum(half.received for half in halves.values())
        many.engine.on_ready()
        turn = sum(half.received for half in halves.values()) - before
        assert turn <= most
        bulk += turn > BUDGET // 2
        moved += turn
        empty([client for client, _ in found])
    assert bulk > 10, "never a turn's worth"
    assert moved > 100 * MIB
    end(found)


def test_a_small_message_beside_bulk_is_delivered_in_the_turn_that_hears_of_it(many: Drive) -> None:
    found = flows(many, 20)
    backend = many.backend()
    listen = many.serve(server_at(backend), name="small")
    client = many.connect(listen)
    server = many.accept(backend)
    many.run_until(lambda: len(many.engine._run_queue.queue) >= 10)
    for number in range(50):
        fill([each for _, each in found])
        client.say(b"ping %d" % number)
        client.step()
        many.engine.on_ready()
        assert many.engine._run_queue.queue, "no bulk to be beside of"
        server.read(100)
        assert server.got == b"ping %d" % number
        server.got.clear()
        empty([each for each, _ in found])
    end(found)


def test_ports_share_the_budget_and_take_turns(make_drive: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = make_drive(splice=False)
    backend = drive.backend(backlog=1024)
    ports = [drive.serve(server_at(backend), name=name) for name in ("one", "two", "three")]
    for listen in ports:
        for _ in range(100):
            drive.connect(listen)
    order = Order(drive.engine, monkeypatch)
    open_at_first = drive.engine.counters.open_sessions
    accepted = []
    while drive.engine.counters.open_sessions < 300:
        order.turn()
        accepted.append(drive.engine.counters.open_sessions - open_at_first - sum(accepted))
    assert max(accepted) <= BUDGET // (ACCEPT + DIAL) + BATCH
    served = [fd for turn in order.turns for fd in turn if fd in drive.engine._ports.by_fd]
    counts: Counter[int] = Counter()
    for fd in served[: 3 * (100 // BATCH)]:  # as long as all of them have clients
        counts[fd] += 1
        assert max(counts.values()) - min(counts[fd] for fd in drive.engine._ports.by_fd) <= 1


def test_a_port_that_closes_while_it_waits_for_its_share_is_no_error(make_drive: Make) -> None:
    drive = make_drive(splice=False)
    backend = drive.backend(backlog=1024)
    listens: list[Listen] = [drive.serve(server_at(backend), name=name) for name in ("one", "two", "three", "four")]
    clients = [drive.connect(listen) for listen in listens for _ in range(20)]
    drive.engine.on_ready()
    queued = [one for one in drive.engine._run_queue.queue if isinstance(one, ListeningPort)]
    assert queued
    drive.remove(queued[0].listen)
    drive.run_until(lambda: drive.engine.counters.open_sessions + sum(bool(client.error) for client in clients) == len(clients))
    assert not drive.engine.counters.accept_errors


def test_an_event_gives_a_flow_no_more_than_its_share(many: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits in the queue moves nothing when more comes for it meanwhile."""
    found = flows(many, 30)
    many.run_until(lambda: len(many.engine._run_queue.queue) >= 20)
    order = Order(many.engine, monkeypatch)
    halves = many.engine._life.halves
    for _ in range(20):
        fill([server for _, server in found])
        waiting = {one.fd for one in many.engine._run_queue.queue if isinstance(one, Half)}
        before = {fd: half.received for fd, half in halves.items()}
        order.turn()
        for fd in waiting - set(order.turns[-1]):
            assert halves[fd].received == before[fd]
        empty([client for client, _ in found])
    end(found)
