"""Sessions of real workers, asked for over the channel: longer than one message, and each worker's own."""

import asyncio
import socket
from contextlib import ExitStack, suppress

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.recorder import Query, parse_session_id
from pylb.core.table import Frontend, Server, make_table
from pylb.host.systemd import SystemdService
from pylb.upgrade.sockets import ListeningSockets
from pylb.workers.archive import CodeArchive
from pylb.workers.fleet import Fleet, FleetObserver
from pylb.workers.messages import VERSION, Hello
from tests.support.ports import free_port

LIVE, ENDED, KEPT = 100, 300, 120  # KEPT: by each of the two


def hello(worker: int) -> Hello:
    return Hello(VERSION, worker, 2, 1000, 10, 1 << 20, "none", KEPT)


async def _ends(listen: Listen) -> None:
    """A client that is reset: its server refuses."""
    with socket.socket() as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        with suppress(ConnectionResetError):  # perhaps before connect has returned
            await loop.sock_connect(sock, (listen.ip, listen.port))
            await loop.sock_recv(sock, 1)


async def test_sessions_of_all_workers_are_one_list_and_each_of_them_has_its_story() -> None:
    fleet = Fleet(
        2,
        hello,
        FleetObserver(lambda *_: None, lambda _: None, lambda _: None),
        ListeningSockets(SystemdService({})),
        CodeArchive(),
    )
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0), backlog=LIVE) as backend, socket.socket() as nobody:
        stack.callback(fleet.close)
        nobody.bind(("127.0.0.1", 0))
        alive, dead = Listen("tcp", "127.0.0.1", free_port()), Listen("tcp", "127.0.0.1", free_port())
        frontends = {
            alive: Frontend("alive", alive, Policy(), (Server("a", Address(*backend.getsockname())),)),
            dead: Frontend("dead", dead, Policy(), (Server("b", Address(*nobody.getsockname())),)),
        }
        await fleet.start()
        assert fleet.apply(make_table(1, frontends)) == {}
        await fleet.applied()
        for _ in range(LIVE):
            stack.enter_context(socket.create_connection((alive.ip, alive.port)))
            stack.enter_context(backend.accept()[0])
        for _ in range(ENDED):
            await _ends(dead)

        views = await fleet.sessions()
        assert (len(views), len({view.id for view in views})) == (LIVE, LIVE)
        assert {parse_session_id(view.id) >> 48 for view in views} == {1, 2}

        ended, reach = await fleet.ended(Query(limit=1000))
        of_each = [sum(parse_session_id(trace.id) >> 48 == worker for trace in ended) for worker in (1, 2)]
        assert all(bound.since >= reach.began > 0 for bound in reach.full)
        assert {bound.code for bound in reach.full} == ({"SC"} if KEPT in of_each else set())
        assert all(64 < count <= KEPT for count in of_each), of_each  # more than one message holds, and no more than are kept
        assert [trace.ended_at for trace in ended] == sorted((trace.ended_at for trace in ended), reverse=True)
        assert len((await fleet.ended(Query(limit=7))).traces) == 7
        assert (await fleet.ended(Query(frontend="alive"))).traces == []

        for number in (parse_session_id(views[0].id), parse_session_id(ended[-1].id)):
            trace = await fleet.trace(number)
            assert trace is not None
            assert (parse_session_id(trace.id), len(trace.candidates)) == (number, 1)
        assert await fleet.trace(parse_session_id("0x3000000000001")) is None
