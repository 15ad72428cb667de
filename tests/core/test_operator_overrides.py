"""What the operator said overrules weights, whatever registrations and reloads do."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pylb.core.address import Address, Listen
from pylb.core.claims import Claims
from pylb.core.compose import ServerStates
from pylb.core.errors import Code, Refused
from pylb.core.operator_overrides import (
    NONE,
    Override,
    Overrides,
    affected,
    changed,
    checked,
    ended,
    find,
    still_valid,
    with_overrides,
)
from pylb.core.policy import AdminState, Policy, Rules, StaticFrontend, StaticServer
from pylb.core.static_rules import StaticRules
from pylb.core.table import OUT, Frontend, Server, Table, make_table
from tests.core.claiming import compose, counted_steps, finished

WEB, MAIL = Listen("tcp", "*", 443), Listen("tcp", "203.0.113.9", 25)
LISTENS = [Listen("tcp", "*", port) for port in range(20050, 20000, -1)]
ONE, TWO = Address("198.51.100.7", 30443), Address("198.51.100.8", 30443)


def table() -> Table:
    servers = (Server("pod-1", ONE), Server("pod-2", TWO))
    return make_table(1, {listen: Frontend(name, listen, Policy(), servers) for listen, name in ((WEB, "web"), (MAIL, "mail"))})


def statics(*listens: Listen) -> StaticRules:
    return StaticRules(
        Rules(tuple(StaticFrontend(f"at-{listen.port}", listen, (StaticServer(ONE, weight=3),)) for listen in listens))
    )


@pytest.mark.parametrize("state", [AdminState.DRAIN, AdminState.MAINT])
def test_a_server_out_of_service_has_no_weight_whatever_was_said_of_it(state: AdminState) -> None:
    said = changed(changed(NONE, [(WEB, ONE)], weight=9), [(WEB, ONE)], state=state)
    assert with_overrides(Server("a", ONE, 5), WEB, said) == Server("a", ONE, 0, OUT, admin=state)
    assert with_overrides(Server("a", ONE, 5), MAIL, said) == Server("a", ONE, 5)
    again = changed(said, [(WEB, ONE)], state=AdminState.READY)
    assert with_overrides(Server("a", ONE, 5), WEB, again) == Server("a", ONE, 9)


def test_a_word_taken_back_leaves_nothing_behind() -> None:
    said = changed(changed(NONE, [(WEB, ONE)], weight=0), [(WEB, TWO)], state=AdminState.DRAIN)
    assert with_overrides(Server("a", ONE, 5), WEB, said).weight == 0
    assert changed(changed(said, [(WEB, ONE)], weight=None), [(WEB, TWO)], state=AdminState.READY) == {}


def test_words_go_with_their_frontend() -> None:
    said: Overrides = {(WEB, ONE): Override(weight=1), (MAIL, ONE): Override(weight=2)}
    assert still_valid(said, Claims(), statics(WEB)) == {(WEB, ONE): Override(weight=1)}
    assert still_valid(said, Claims(), statics(WEB, MAIL)) is said


def test_words_are_looked_for_only_on_the_frontends_that_were_touched() -> None:
    said: Overrides = {(WEB, ONE): Override(weight=1), (MAIL, ONE): Override(weight=2), ONE.ip: Override(AdminState.DRAIN)}
    assert still_valid(said, Claims(), statics(), {MAIL}) == {key: said[key] for key in ((WEB, ONE), ONE.ip)}
    assert still_valid(said, Claims(), statics(), set()) is said


@example(set(LISTENS), set(LISTENS[10:40]), None)
@given(
    st.sets(st.sampled_from(LISTENS), max_size=50),
    st.sets(st.sampled_from(LISTENS)),
    st.none() | st.sets(st.sampled_from(LISTENS)),
)
def test_words_checked_in_steps_are_those_checked_at_once(
    said_of: set[Listen], there: set[Listen], touched: set[Listen] | None
) -> None:
    said: Overrides = {ONE.ip: Override(AdminState.DRAIN), **{(listen, ONE): Override(weight=1) for listen in said_of}}
    looked_for = len(said_of if touched is None else said_of & touched)
    found, steps = counted_steps(checked(said, Claims(), statics(*there), touched))
    assert found == still_valid(said, Claims(), statics(*there), touched)
    assert steps == max(1, -(-looked_for // 25))


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("web/pod-1", [("web", "pod-1")]),
        ("443/pod-2", [("web", "pod-2")]),
        ("*:443/198.51.100.8:30443", [("web", "pod-2")]),
        ("203.0.113.9:25/pod-1", [("mail", "pod-1")]),
        ("198.51.100.7", [("mail", "pod-1"), ("web", "pod-1")]),
    ],
)
def test_a_server_is_named_as_people_see_it(target: str, meant: list[tuple[str, str]]) -> None:
    assert [(frontend.name, server.name) for frontend, server in finished(find(table(), target))] == meant


@pytest.mark.parametrize("target", ["web", "web/pod-3", "mail/", "/pod-1", "198.51.100.9", "x" * 1000])
def test_what_names_nobody_is_refused_with_what_there_is(target: str) -> None:
    with pytest.raises(Refused) as refused:
        finished(find(table(), target))
    assert refused.value.code is Code.NOT_FOUND
    assert refused.value.hint == "there are mail/pod-1, mail/pod-2, web/pod-1, web/pod-2"


def test_of_many_servers_only_some_are_listed_and_none_is_said_so() -> None:
    servers = tuple(Server(f"pod-{number}", ONE._replace(port=30000 + number)) for number in range(10))
    many = make_table(1, {WEB: Frontend("web", WEB, Policy(), servers)})
    with pytest.raises(Refused) as refused:
        finished(find(many, "x"))
    assert refused.value.hint.endswith("web/pod-7 and 2 more")
    with pytest.raises(Refused) as refused:
        finished(find(Table(), "x"))
    assert refused.value.hint == "the table has no servers"


Word = dict[str, Any]
SAID: st.SearchStrategy[Word] = st.fixed_dictionaries({"state": st.sampled_from(AdminState)}) | st.fixed_dictionaries(
    {"weight": st.none() | st.integers(0, 256)}
)
WORDS = st.lists(st.tuples(st.sampled_from([(WEB, ONE), (WEB, TWO), (MAIL, ONE)]), SAID), max_size=12)


@given(WORDS, st.sets(st.sampled_from([WEB, MAIL])))
def test_the_last_word_on_each_thing_counts_in_every_table(
    words: list[tuple[tuple[Listen, Address], Word]], there: set[Listen]
) -> None:
    said: Overrides = NONE
    states: dict[Listen, AdminState] = {}
    weights: dict[Listen, int | None] = {}
    for place, word in words:
        said = changed(said, [place], **word)
        if place[1] == ONE:
            states[place[0]] = word.get("state", states.get(place[0], AdminState.READY))
            weights[place[0]] = word.get("weight", weights.get(place[0]))
    assert Override() not in said.values()
    static_rules = statics(*there)
    made = compose(Claims(), static_rules, ServerStates(overrides=still_valid(said, Claims(), static_rules)))
    for listen in there:
        [server] = made.frontends[listen].servers
        assert server.admin is states.get(listen, AdminState.READY)
        weight = weights.get(listen)
        usual = 3 if weight is None else weight
        assert server.weight == (usual if server.admin is AdminState.READY else 0)


def test_a_word_is_about_a_node_on_every_frontend_or_about_one_server_of_one() -> None:
    gone = (Listen("tcp", "*", 1), TWO)
    found = finished(affected(table(), [ONE.ip, (WEB, TWO), gone]))
    assert {target: [(one.name, other.name) for one, other in there] for target, there in found.items()} == {
        ONE.ip: [("mail", "pod-1"), ("web", "pod-1")],
        (WEB, TWO): [("web", "pod-2")],
        gone: [],
    }
    assert finished(affected(table(), [gone])) == {gone: []}


def test_a_word_ends_at_its_time_and_one_without_a_time_does_not() -> None:
    said = changed(changed(NONE, [ONE.ip], 100.0, state=AdminState.DRAIN), [(WEB, TWO)], weight=9)
    assert [ended(said, now) for now in (99.9, 100.0)] == [(), (ONE.ip,)]


def test_what_is_found_comes_in_the_order_of_ports() -> None:
    many = {listen: Frontend(f"p{listen.port}", listen, Policy(), (Server("a", ONE),)) for listen in LISTENS}
    wide = make_table(1, many)
    for found in (finished(find(wide, ONE.ip)), finished(affected(wide, [ONE.ip]))[ONE.ip]):
        assert [frontend.listen.port for frontend, _ in found] == sorted(listen.port for listen in LISTENS)


def test_servers_are_looked_for_in_steps() -> None:
    listens = [Listen("tcp", "*", 20000 + number) for number in range(120)]
    wide = make_table(1, {listen: Frontend(f"p{listen.port}", listen, Policy(), (Server("a", ONE),)) for listen in listens})
    found, steps = counted_steps(find(wide, "p20050/a"))
    assert ([one.listen.port for one, _ in found], steps) == ([20050], 3)
    with pytest.raises(Refused, match="no server is 'p1/a'"):
        counted_steps(find(wide, "p1/a"))
    found_all, steps = counted_steps(affected(wide, [ONE.ip, *((listen, ONE) for listen in listens[:60])]))
    assert ([len(there) for there in found_all.values()], steps) == ([120, *[1] * 60], 5)
