"""What is said about two tables: each difference once, and of whose sessions it is."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pylb.core.address import Address, Listen
from pylb.core.policy import AdminState, HealthPolicy, Policy
from pylb.core.table import LAST_RESORT, OUT, Frontend, Server, Table, make_table
from pylb.core.table_diff import PASSING, ChangeKind, lines

HTTPS, MQTT = Listen("tcp", "*", 443), Listen("tcp", "*", 8883)
A, B = Address("192.0.2.1", 30443), Address("192.0.2.2", 30443)


def table(*servers: Server, listen: Listen = HTTPS, name: str = "web", policy: Policy | None = None) -> Table:
    return make_table(1, {listen: Frontend(name, listen, policy or Policy(), servers)})


def said(old: Table, new: Table) -> list[tuple[str, str]]:
    return [(str(line.what), line.text) for line in lines(old, new)]


ONE = Server("pod-1", A)


def test_ports_that_open_and_close() -> None:
    assert said(Table(), table(ONE)) == [("opened", "port 443 (web) opened -> pod-1 192.0.2.1:30443")]
    assert said(Table(), table()) == [("opened", "port 443 (web) opened -> no server yet")]
    static = replace(ONE, name=str(ONE.address))
    assert said(Table(), table(static)) == [("opened", "port 443 (web) opened -> 192.0.2.1:30443")]
    assert said(table(ONE), Table()) == [("closed", "port 443 (web) closed")]
    both = lines(table(ONE), table(ONE, listen=MQTT))
    assert [(line.what, line.listen.port, line.server) for line in both] == [
        (ChangeKind.CLOSED, 443, None),
        (ChangeKind.OPENED, 8883, None),
    ]


def test_servers_that_come_go_and_move() -> None:
    two = Server("pod-2", B, weight=3)
    assert said(table(ONE), table(ONE, two)) == [("added", "port 443 (web): + pod-2 192.0.2.2:30443 (in service, weight 3)")]
    assert said(table(ONE, two), table(ONE)) == [("removed", "port 443 (web): - pod-2 192.0.2.2:30443 (in service, weight 3)")]
    moved = lines(table(ONE), table(replace(ONE, address=B)))
    assert [line.text for line in moved] == ["port 443 (web): pod-1 moved from 192.0.2.1:30443 to 192.0.2.2:30443"]
    assert moved[0].server == A  # whose live sessions stay
    assert {line.what for line in moved} <= PASSING


def test_what_becomes_of_a_server() -> None:
    assert said(table(ONE), table(replace(ONE, rank=LAST_RESORT))) == [
        ("state", "port 443 (web): pod-1 192.0.2.1:30443 is last resort, was in service")
    ]
    drained = replace(ONE, rank=OUT, weight=0, admin=AdminState.DRAIN)
    assert said(table(ONE), table(drained)) == [
        ("state", "port 443 (web): pod-1 192.0.2.1:30443 is taken out (drain), was in service")
    ]
    assert said(table(ONE), table(replace(ONE, weight=5, health=HealthPolicy()))) == [
        ("changed", "port 443 (web): pod-1 192.0.2.1:30443: weight 1 -> 5, another check")
    ]
    assert said(table(ONE), table(ONE, name="other", policy=Policy(retries=1))) == [
        ("policy", "port 443 (other): other settings, was web")
    ]
    assert said(table(ONE), table(ONE, policy=Policy(retries=1))) == [("policy", "port 443 (web): other settings")]


SERVERS = st.builds(
    Server,
    st.sampled_from(["a", "b", "c"]),
    st.builds(Address, st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.3"]), st.just(30443)),
    weight=st.integers(1, 2),
    rank=st.integers(0, 5),
)
TABLES = st.dictionaries(
    st.sampled_from([HTTPS, MQTT]), st.lists(SERVERS, max_size=3, unique_by=(lambda s: s.name, lambda s: s.address))
).map(lambda found: make_table(1, {key: Frontend("web", key, Policy(), tuple(servers)) for key, servers in found.items()}))


@given(TABLES, TABLES)
def test_a_difference_is_said_and_none_is_made_up(old: Table, new: Table) -> None:
    assert bool(lines(old, new)) == any(_set(old.frontends.get(key)) != _set(new.frontends.get(key)) for key in (HTTPS, MQTT))
    assert lines(new, new) == []


def _set(frontend: Frontend | None) -> object:
    """The order of servers is no difference to people. Of a server that is taken out the weight is none either."""
    if frontend is None:
        return None
    return frozenset(replace(server, weight=0) if server.rank == OUT else server for server in frontend.servers)
