"""Shares follow weights, the fewest sessions win, and weight 0 gets nothing."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from pylb.core.balance import leastconn, roundrobin


@dataclass(eq=False)
class Candidate:
    weight: int
    sessions: int = 0
    credit: int = 0


WEIGHTS = st.lists(st.integers(0, 20), max_size=6)
LOADS = st.lists(st.builds(Candidate, st.integers(0, 256), st.integers(0, 1000)), max_size=6)


def test_without_a_server_there_is_no_choice() -> None:
    assert roundrobin([]) is None
    assert leastconn([]) is None
    assert roundrobin([Candidate(0)]) is None
    assert leastconn([Candidate(0)]) is None


@given(WEIGHTS)
def test_shares_follow_the_weights_exactly_over_a_full_cycle(weights: list[int]) -> None:
    servers = [Candidate(weight) for weight in weights]
    turns = Counter(id(roundrobin(servers)) for _ in range(sum(weights)))
    assert [turns[id(server)] for server in servers] == weights
    assert all(server.credit == 0 for server in servers)  # the next cycle is the same


def test_a_heavy_servers_turns_are_spread_out() -> None:
    servers = {"a": Candidate(5), "b": Candidate(1), "c": Candidate(1)}
    names = {id(server): name for name, server in servers.items()}
    assert "".join(names[id(roundrobin(list(servers.values())))] for _ in range(7)) == "aabacaa"  # nginx's own example


@given(LOADS)
def test_leastconn_never_takes_a_server_with_more_sessions_per_weight(servers: list[Candidate]) -> None:
    chosen = leastconn(servers)
    usable = [server for server in servers if server.weight]
    if chosen is None:
        assert not usable
        return
    assert chosen.weight > 0
    assert all(chosen.sessions * other.weight <= other.sessions * chosen.weight for other in usable)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_leastconn_alone_converges_to_the_weights(weights: list[int]) -> None:
    servers = [Candidate(weight) for weight in weights]
    for _ in range(sum(weights) * 3):
        chosen = leastconn(servers)
        assert chosen is not None
        chosen.sessions += 1
    assert [server.sessions for server in servers] == [3 * weight for weight in weights]


def test_equals_take_turns() -> None:
    servers = [Candidate(1, 7), Candidate(1, 7), Candidate(1, 9)]
    turns = [leastconn(servers) for _ in range(4)]
    assert turns == [servers[0], servers[1], servers[0], servers[1]]
