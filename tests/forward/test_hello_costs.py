"""What routes cost a connection, in calls and bytecodes: as much with 5,000 as with 5, and nothing on a port that has none."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from pylb.core.address import Listen
from pylb.core.policy import Policy
from pylb.core.table import Frontend
from pylb.forward.hellos import Hellos
from tests.support.counting import counting, counting_bytecodes
from tests.support.drive import Drive, readable, server_at
from tests.support.hellos import GREASE, asking_for
from tests.support.ports import free_port

Counting = Callable[[], AbstractContextManager[Callable[[], int]]]


def cost_of_a_session(drive: Drive, routes: int, counting: Counting) -> int:
    """The engine's, from the accept to the end, on a port with so many routes: the fewest of some sessions of the last ones."""
    backend = drive.backend()
    listen = Listen("tcp", "127.0.0.1", free_port())
    names = [f"host-{number}.example.net" for number in range(routes)]
    for place in (listen, *(listen._replace(server_name=name) for name in names)):
        drive._frontends[place] = Frontend(f"web:{place.server_name}", place, Policy(), (server_at(backend),))
    assert not drive.publish()  # once: each `serve` would publish all of them
    found: list[int] = []
    on_ready, made = drive.engine.on_ready, 0

    def counted() -> bool:
        nonlocal made
        if not readable(drive.engine):  # a turn for nothing, while a peer is waited for
            return on_ready()
        with counting() as count:
            again = on_ready()
            made += count()
        return again

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drive.engine, "on_ready", counted)
        for number in range(5):
            before = made
            client = drive.connect(listen)
            client.say(asking_for(names[-1 - number], GREASE))
            server = drive.accept(backend)
            drive.run_until(lambda server=server: server.got)
            client.finish()
            server.finish()
            drive.run_until(lambda number=number: len(drive.records) > number)
            found.append(made - before)
    assert len({record.frontend for record in drive.records}) == 5
    return min(found)


@pytest.mark.parametrize("counted", [counting, counting_bytecodes])
def test_a_connection_costs_as_much_on_a_port_with_5000_routes_as_with_5(
    make_drive: Callable[..., Drive], counted: Counting
) -> None:
    few, many = (cost_of_a_session(make_drive(splice=True), routes, counted) for routes in (5, 5000))
    assert many == pytest.approx(few, rel=0.05)  # were the routes gone through one by one, it would be thousands


def test_a_connection_on_a_port_without_routes_has_nothing_to_do_with_hellos(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it costs there is what it did before there were routes; `python -m bench.calls` has the figures."""
    used = []
    for name, member in vars(Hellos).items():
        if callable(member) and name != "__init__":
            monkeypatch.setattr(Hellos, name, lambda *_a, name=name, **_k: used.append(name))
    backend = drive.backend()
    client = drive.connect(drive.serve(server_at(backend)))
    client.say(asking_for("git.example.net"))
    server = drive.accept(backend)
    [session] = drive.engine._life.sessions
    drive.run_until(lambda: server.got == asking_for("git.example.net"))
    assert session.admission is None
    client.finish()
    server.finish()
    assert (drive.record().code, used) == ("--", [])
