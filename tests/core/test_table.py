"""The table is frozen, and the diff of two is exactly what is between them."""

from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.address import Address, Listen
from pylb.core.policy import Check, CheckKind, HealthPolicy, Policy, ProxyProtocol, WhenAllDown
from pylb.core.table import DOWN, Diff, Frontend, Server, Table, diff, make_table

LISTENS = st.builds(Listen, st.just("tcp"), st.sampled_from(["*", "203.0.113.9", "2001:db8::9"]), st.integers(1, 6))
SERVERS = st.builds(
    Server,
    st.sampled_from("ab"),
    st.builds(Address, st.just("198.51.100.7"), st.integers(1, 3)),
    st.integers(0, 2),
    st.integers(0, 4),
    st.sampled_from(ProxyProtocol),
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    listens = draw(st.lists(LISTENS, unique=True, max_size=6))
    frontends = {
        listen: Frontend(
            draw(st.sampled_from("xy")),
            listen,
            Policy(retries=draw(st.integers(0, 1))),
            tuple(draw(st.lists(SERVERS, max_size=2))),
        )
        for listen in listens
    }
    return make_table(draw(st.integers(0, 9)), frontends)


def applied(change: Diff, old: Table) -> dict[Listen, Frontend]:
    frontends = dict(old.frontends)
    for frontend in change.closed:
        del frontends[frontend.listen]
    for before, after in change.changed:
        assert frontends[before.listen] == before
        frontends[after.listen] = after
    for frontend in change.opened:
        assert frontend.listen not in frontends
        frontends[frontend.listen] = frontend
    return frontends


@given(tables(), tables())
def test_applying_the_diff_to_the_old_table_gives_the_new_one(old: Table, new: Table) -> None:
    assert applied(diff(old, new), old) == new.frontends


@given(tables(), tables(), tables())
def test_the_diff_of_an_edited_table_looks_at_the_edits_and_finds_what_a_look_at_all_would(
    old: Table, new: Table, other: Table
) -> None:
    edits = {listen: new.frontends.get(listen) for listen in {**old.frontends, **new.frontends}}
    edited = old.edited(old.generation + 1, edits)
    assert diff(old, edited) == diff(old, make_table(edited.generation, edited.frontends))
    assert applied(diff(other, edited), other) == edited.frontends  # from any table but its own base


@given(tables())
def test_the_diff_of_a_table_and_itself_is_empty(table: Table) -> None:
    assert not diff(table, table)
    assert not diff(table, make_table(table.generation + 1, table.frontends))


@given(tables(), tables())
def test_a_diff_touches_nothing_that_stays_and_comes_in_the_order_of_the_listen_address(old: Table, new: Table) -> None:
    change = diff(old, new)
    assert all(before != after and before.listen == after.listen for before, after in change.changed)
    for keys in ([f.listen for f in change.opened], [f.listen for f in change.closed], [f.listen for f, _ in change.changed]):
        assert keys == sorted(keys)
    assert bool(change) == (old.frontends != new.frontends)


def test_what_neither_table_has_is_no_difference() -> None:
    """Of an edit that closes a port that was never open."""
    table = make_table(1, {})
    assert diff(table, table.edited(2, {Listen("tcp", "*", 443): None})) == Diff((), (), ())


def test_nobody_can_edit_a_table_not_even_through_what_it_was_made_of() -> None:
    listen = Listen("tcp", "*", 443)
    source = {listen: Frontend("web", listen, Policy(), ())}
    table = make_table(1, source)
    source.clear()
    assert list(table.frontends) == [listen]
    with pytest.raises(TypeError):
        table.frontends[listen] = table.frontends[listen]  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        table.generation = 2  # type: ignore[misc]
    with pytest.raises(TypeError):
        Table().frontends[listen] = table.frontends[listen]  # type: ignore[index]


def test_a_server_that_is_down_is_dialled_as_a_last_resort_unless_its_check_permits_it() -> None:
    down, up = (Server("a", Address("198.51.100.7", 1), rank=rank) for rank in (DOWN, 0))
    refusing = HealthPolicy(check=Check(CheckKind.HTTP, path="/primary"), when_all_down=WhenAllDown.REFUSE)
    for policy, served in ((Policy(), [True, True]), (Policy(health=refusing), [False, True])):
        frontend = Frontend("web", Listen("tcp", "*", 443), policy, (down, up))
        assert [frontend.serves(server) for server in frontend.servers] == served
    own = Server("b", Address("198.51.100.8", 1), rank=DOWN, health=refusing)
    assert not Frontend("web", Listen("tcp", "*", 443), Policy(), (own,)).serves(own)
