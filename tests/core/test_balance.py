"""Shares follow weights, the fewest sessions win, a client keeps its server, and weight 0 gets nothing."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.balance import Balancer, balancer
from pylb.core.policy import Balance


@dataclass(eq=False)
class Candidate:
    weight: int = 1
    sessions: int = 0
    most: int = 0
    turn: float = 0.0
    identity: str = ""


def candidates(weights: Sequence[int]) -> list[Candidate]:
    return [Candidate(weight, identity=f"192.0.2.{place}:30443") for place, weight in enumerate(weights)]


def pool(algorithm: str, servers: Sequence[Candidate], seed: int = 1) -> Balancer[Candidate]:
    return balancer(Balance(algorithm), servers, random.Random(seed).random)


def clients() -> Iterator[str]:
    return (f"198.51.{number >> 8 & 255}.{number & 255}" for number in count())


def short_sessions(balance: Balancer[Candidate], number: int) -> Counter[str]:
    """Each ends before the next begins."""
    taken: Counter[str] = Counter()
    for client, _ in zip(clients(), range(number), strict=False):
        chosen = balance.pick(client, ())
        assert chosen is not None
        chosen.sessions += 1
        taken[chosen.identity] += 1
        chosen.sessions -= 1
        balance.ended(chosen)
    return taken


ALL = [str(algorithm) for algorithm in Balance]
WEIGHTS = st.lists(st.integers(0, 20), min_size=1, max_size=8)
each = pytest.mark.parametrize("algorithm", ALL)


@each
def test_without_a_server_of_weight_there_is_no_choice_and_nothing_to_wait_for(algorithm: str) -> None:
    for servers in ([], candidates([0]), candidates([0, 0, 0])):
        balance = pool(algorithm, servers)
        assert balance.pick("198.51.100.1", ()) is None
        assert not balance.is_full(())


@each
@given(weights=WEIGHTS, seed=st.integers(0, 99))
def test_a_server_of_weight_0_gets_nothing(algorithm: str, weights: list[int], seed: int) -> None:
    servers = candidates([0, *weights, 1])
    balance = pool(algorithm, servers, seed)
    for client, _ in zip(clients(), range(50), strict=False):
        chosen = balance.pick(client, ())
        assert chosen is not None
        assert chosen.weight > 0
        chosen.sessions += 1


@each
@given(weights=st.lists(st.integers(0, 5), min_size=1, max_size=8), seed=st.integers(0, 99), data=st.data())
def test_none_is_tried_twice_and_the_tried_ones_come_back(
    algorithm: str, weights: list[int], seed: int, data: st.DataObject
) -> None:
    servers = candidates(weights)
    balance = pool(algorithm, servers, seed)
    for client, _ in zip(clients(), range(data.draw(st.integers(1, 4))), strict=False):
        tried: list[Candidate] = []
        while (chosen := balance.pick(client, tried)) is not None:
            assert chosen not in tried
            tried.append(chosen)
        assert {id(server) for server in tried} == {id(server) for server in servers if server.weight}
        assert not balance.is_full(tried)


@each
@given(data=st.data())
def test_a_full_server_gets_nothing_until_a_session_of_it_has_ended(algorithm: str, data: st.DataObject) -> None:
    limits = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    servers = candidates([1] * len(limits))
    for server, most in zip(servers, limits, strict=True):
        server.most = most
    balance = pool(algorithm, servers, data.draw(st.integers(0, 99)))
    live: list[Candidate] = []
    some_clients = clients()
    for begin in data.draw(st.lists(st.booleans(), max_size=60)):
        if begin:
            chosen = balance.pick(next(some_clients), ())
            if chosen is None:
                assert len(live) == sum(limits)
                assert balance.is_full(())
                assert not balance.is_full(servers)
            else:
                assert chosen.sessions < chosen.most
                chosen.sessions += 1
                live.append(chosen)
        elif live:
            ended = live.pop(data.draw(st.integers(0, len(live) - 1)))
            ended.sessions -= 1
            balance.ended(ended)
    assert all(server.sessions <= server.most for server in servers)


@pytest.mark.parametrize("algorithm", ["leastconn", "roundrobin"])
@given(weights=st.lists(st.integers(1, 20), min_size=1, max_size=6))
def test_shares_of_short_sessions_follow_the_weights(algorithm: str, weights: list[int]) -> None:
    servers = candidates(weights)
    taken = short_sessions(pool(algorithm, servers), 10 * sum(weights))
    for server in servers:
        assert abs(taken[server.identity] - 10 * server.weight) <= 1


@pytest.mark.parametrize(("algorithm", "off"), [("random", 0.1), ("source", 0.15)])
def test_drawn_and_hashed_shares_follow_the_weights_nearly(algorithm: str, off: float) -> None:
    servers = candidates([1, 2, 3, 4])
    taken = short_sessions(pool(algorithm, servers), 20_000)
    for server in servers:
        assert taken[server.identity] == pytest.approx(2000 * server.weight, rel=off)


def test_a_heavy_servers_turns_are_spread_out() -> None:
    servers = candidates([5, 1, 1])
    balance = pool("roundrobin", servers)
    turns = [servers.index(chosen) for _ in range(14) if (chosen := balance.pick("", ())) is not None]
    assert max(len(run) for run in "".join(map(str, turns)).replace("1", " ").replace("2", " ").split()) <= 5
    assert Counter(turns[:7]) == Counter(turns[7:]) == {0: 5, 1: 1, 2: 1}


LIVES = st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=80)


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=7), lives=LIVES)
def test_leastconn_never_takes_a_server_with_more_sessions_per_weight(
    weights: list[int], lives: list[tuple[bool, int]]
) -> None:
    servers = candidates(weights)
    balance = pool("leastconn", servers)
    live: list[Candidate] = []
    for begin, which in lives:
        if begin:
            chosen = balance.pick("", ())
            assert chosen is not None
            assert all(chosen.sessions * other.weight <= other.sessions * chosen.weight for other in servers)
            chosen.sessions += 1
            live.append(chosen)
        elif live:
            ended = live.pop(which % len(live))
            ended.sessions -= 1
            balance.ended(ended)


def test_what_ended_sessions_leave_behind_is_cleared_away() -> None:
    servers = candidates([1] * 10)
    balance = pool("leastconn", servers)
    for _ in range(2000):
        taken = [chosen for _ in range(10) if (chosen := balance.pick("", ())) is not None]
        for server in taken:
            server.sessions += 1
        for server in taken:
            balance.pick("", ())  # it knows of the new loads, so that each end is news
            server.sessions -= 1
            balance.ended(server)
    assert len(balance._heap) < 200  # type: ignore[attr-defined]


@pytest.mark.parametrize("algorithm", ["leastconn", "roundrobin"])
def test_a_new_server_and_one_that_was_away_do_not_make_up_for_it(algorithm: str) -> None:
    servers = candidates([1, 1, 1])
    short_sessions(pool(algorithm, servers[:2]), 1000)
    assert short_sessions(pool(algorithm, servers), 30) == {server.identity: 10 for server in servers}
    short_sessions(pool(algorithm, servers[:2]), 1000)
    assert short_sessions(pool(algorithm, servers), 30) == {server.identity: 10 for server in servers}


@each
def test_a_server_that_lost_its_weight_may_still_lose_sessions(algorithm: str) -> None:
    servers = candidates([0, 1])
    servers[0].sessions = 1
    balance = pool(algorithm, servers)
    servers[0].sessions = 0
    balance.ended(servers[0])
    assert balance.pick("", ()) is servers[1]


def test_random_prefers_the_less_loaded_of_two() -> None:
    servers = candidates([1, 1])
    servers[0].sessions = 50
    balance = pool("random", servers)
    taken = Counter(chosen.identity for _ in range(1000) if (chosen := balance.pick("", ())) is not None)
    assert taken[servers[1].identity] == pytest.approx(750, abs=60)  # all but the draws that gave the loaded one twice


def test_first_fills_one_server_after_the_other() -> None:
    servers = candidates([1, 1, 1])
    for server in servers:
        server.most = 2
    balance, order = pool("first", servers), []
    for _ in range(6):
        chosen = balance.pick("", ())
        assert chosen is not None
        chosen.sessions += 1
        order.append(servers.index(chosen))
    assert order == [0, 0, 1, 1, 2, 2]
    assert balance.pick("", ()) is None
    servers[0].sessions -= 1
    balance.ended(servers[0])
    assert balance.pick("", ()) is servers[0]


@given(st.integers(2, 12), st.data())
def test_a_client_keeps_its_server_when_another_one_leaves(size: int, data: st.DataObject) -> None:
    servers = candidates([1] * size)
    gone = data.draw(st.sampled_from(servers))
    before, after = pool("source", servers), pool("source", [server for server in servers if server is not gone])
    moved = 0
    for client, _ in zip(clients(), range(500), strict=False):
        had = before.pick(client, ())
        if had is not gone:
            assert after.pick(client, ()) is had
        moved += had is gone
    assert moved / 500 <= 1 / size + 0.05 + 3 * (1 / size / 500) ** 0.5  # the last is the draw of 500 clients


def test_a_full_servers_clients_go_to_the_next_on_the_ring_and_come_back() -> None:
    servers = candidates([1, 1, 1])
    balance = pool("source", servers)
    home = balance.pick("198.51.100.1", ())
    assert home is not None
    home.most, home.sessions = 1, 1
    other = balance.pick("198.51.100.1", ())
    assert other not in (None, home)
    home.sessions = 0
    assert balance.pick("198.51.100.1", ()) is home


def test_the_hash_is_the_same_in_every_process_and_version() -> None:
    balance = pool("source", candidates([1] * 5))
    some = ("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "2001:db8::1", "2001:db8::2")
    assert (
        "".join(chosen.identity[8] for client in some if (chosen := balance.pick(client, ()))) == "003023"
    )  # as of its first version


@pytest.mark.parametrize("weights", [[256] * 999 + [255], [1] * 1000])
def test_a_thousand_servers_make_no_huge_ring(weights: list[int]) -> None:
    balance = pool("source", candidates(weights))
    assert balance.pick("192.0.2.1", ()) is not None
    assert len(balance._points) < 33_000  # type: ignore[attr-defined]
