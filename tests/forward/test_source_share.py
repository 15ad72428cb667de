"""One client cannot have all connections: the last quarter is for those that have less than their share."""

from collections.abc import Callable

import pytest

from pylb.config.load import parse
from pylb.config.models import LimitsSection
from pylb.core.policy import Policy, SourceLimits
from pylb.forward.source_share import source
from tests.support.drive import Drive, Peer, server_at

pytestmark = pytest.mark.usefixtures("strangers")

Make = Callable[..., Drive]
SHARED = Policy(limits=SourceLimits(source_share=50))
MOST = 40


@pytest.fixture
def drive(make_drive: Make) -> Drive:
    return make_drive(splice=False, max_connections=MOST)


def crowd(drive: Drive, count: int, policy: Policy, source: str = "127.0.0.1") -> list[Peer]:
    drive.serve(server_at(drive.backend(backlog=256)), policy=policy)
    return join(drive, count, source)


def join(drive: Drive, count: int, source: str = "127.0.0.1") -> list[Peer]:
    """No tick comes between: each is counted as it comes."""
    [listen] = drive.engine.table.frontends
    clients = []
    for _ in range(count):
        client = drive.connect(listen, source=source)
        clients.append(client)
        seen = drive.engine.counters.frontends[listen].connections + 1
        drive.run_until(lambda seen=seen: drive.engine.counters.frontends[listen].connections >= seen)
    return clients


def test_one_client_leaves_the_last_quarter_to_the_others(drive: Drive) -> None:
    clients = crowd(drive, MOST, SHARED)
    [counters] = drive.engine.counters.frontends.values()
    assert counters.sessions == MOST * 3 // 4
    assert counters.denied == {"source_share": MOST // 4}
    drive.run_until(lambda: all(client.error for client in clients[MOST * 3 // 4 :]))
    others = join(drive, MOST // 4, source="127.0.0.2")
    assert counters.sessions == MOST
    assert not any(client.error for client in others)


def test_there_is_room_for_it_again_when_others_have_left_or_it_has_less(drive: Drive) -> None:
    clients = crowd(drive, MOST * 3 // 4, SHARED)
    [counters] = drive.engine.counters.frontends.values()
    assert counters.sessions == MOST * 3 // 4
    clients[0].reset()
    drive.run_until(lambda: counters.sessions == MOST * 3 // 4 - 1)
    [again] = join(drive, 1)
    assert counters.sessions == MOST * 3 // 4
    assert not again.error


def test_many_clients_fill_all_of_it(drive: Drive) -> None:
    crowd(drive, MOST // 4, SHARED)
    for number in (2, 3, 4):
        join(drive, MOST // 4, source=f"127.0.0.{number}")
    [counters] = drive.engine.counters.frontends.values()
    assert counters.sessions == MOST
    assert not counters.denied


def test_a_share_of_100_is_none(drive: Drive) -> None:
    crowd(drive, MOST, Policy(limits=SourceLimits(source_share=100)))
    [counters] = drive.engine.counters.frontends.values()
    assert counters.sessions == MOST


def test_half_is_the_default_and_in_force_without_a_line_about_it() -> None:
    assert LimitsSection().source_share == 50
    assert parse("", "pylb.yaml").rules().defaults.limits.source_share == 50


def test_a_client_is_an_ipv4_address_or_the_first_half_of_an_ipv6_one() -> None:
    assert source("192.0.2.1") == source("::ffff:192.0.2.1") != source("192.0.2.2")
    assert source("2001:db8::1") == source("2001:db8::ffff:1") != source("2001:db8:0:1::1")
    assert source("fe80::1%eth0") == source("fe80::2")


def test_a_program_of_this_machine_may_have_all_of_them(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a TLS proxy in front on the same machine has, which carries everybody's connections."""
    monkeypatch.undo()
    crowd(drive, MOST, SHARED)
    [counters] = drive.engine.counters.frontends.values()
    assert (counters.sessions, counters.denied) == (MOST, {})
