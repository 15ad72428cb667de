"""Any order of calls from several tokens, names and instances keeps the promises of claims and tables."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from operator import itemgetter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pylb.core.address import Address, Listen, is_loopback
from pylb.core.claims import Claims
from pylb.core.compose import ServerStates
from pylb.core.errors import Refused
from pylb.core.ownership import announce, become, release, settle
from pylb.core.policy import JoinRule
from pylb.core.registration import SET, FrontendRequest, Key, Registration, State
from pylb.core.server_set import Member
from pylb.core.table import DOWN, Table
from tests.core.claiming import FREE, A, B, adopt, compose, legacy, native, readmit, static, static_rules

TOKENS, NAMES, INSTANCES, IPS, PORTS = ("t", "u"), ("web", "mail"), ("old", "new"), (A, B), (443, 25, 80)
SERVER_NAMES = ("", "git.example.net", "*.example.net")
LAYOUTS = (
    FREE,
    static_rules(static("web", "*:443", f"{A}:30001")),
    static_rules(static("x", "*:25", joining=JoinRule.ANY)),
    static_rules(static("web", "*:443", allows_names=True), static("web:git", "*:443 git.example.net", f"{A}:30001")),
    static_rules(static("x", "*:443", f"{A}:30001", joining=JoinRule.ANY, allows_names=True)),
)


def natives() -> st.SearchStrategy[Registration]:
    places = st.tuples(st.sampled_from(PORTS), st.sampled_from(SERVER_NAMES))
    requests = st.dictionaries(places, st.tuples(st.sampled_from((30001, 30002)), st.booleans()), min_size=1)
    return st.builds(
        lambda name, instance, ip, requests, token, state: replace(
            native(name, instance, ip, token=token, state=state),
            wanted=tuple(
                FrontendRequest(port, target, server_name=server_name, allows_names=allows and not server_name)
                for (port, server_name), (target, allows) in requests.items()
            ),
        ),
        st.sampled_from(NAMES),
        st.sampled_from(INSTANCES),
        st.sampled_from(IPS),
        requests,
        st.sampled_from(TOKENS),
        st.sampled_from((State.FRESH, State.FRESH, State.DRAINING)),
    )


def sets() -> st.SearchStrategy[Registration]:
    members = st.lists(st.builds(Member, st.sampled_from(INSTANCES), st.sampled_from(IPS)), min_size=1, unique_by=itemgetter(0))
    return st.builds(
        lambda one, members: replace(one, key=one.key._replace(instance=SET), ip="", members=tuple(members)), natives(), members
    )


def legacies() -> st.SearchStrategy[Registration]:
    return st.builds(
        lambda port, ip, token: legacy(port, ip, token=token),
        st.sampled_from(PORTS),
        st.sampled_from(IPS),
        st.sampled_from(TOKENS),
    )


class Calls(RuleBasedStateMachine):
    """The model beside the claims: `open`, the ports that somebody was given and nobody has released since."""

    def __init__(self) -> None:
        super().__init__()
        self.claims = Claims()
        self.table = Table()
        self.proven: frozenset[Address] = frozenset()
        self.down: frozenset[tuple[Listen, Address]] = frozenset()
        self.static_rules = FREE

    @initialize(static_rules=st.sampled_from(LAYOUTS))
    def start(self, static_rules: object) -> None:
        self.static_rules = static_rules  # type: ignore[assignment]
        self.swap(None)

    def swap(self, touched: Iterable[Listen] | None) -> None:
        self.table = compose(self.claims, self.static_rules, ServerStates(self.proven, self.down), self.table, touched)

    def places_of(self, key: Key) -> tuple[Listen, ...]:
        return self.claims.registrations[key].places if key in self.claims.registrations else ()

    @rule(one=natives() | sets() | legacies(), takeover=st.booleans())
    def somebody_calls(self, one: Registration, takeover: bool) -> None:
        before, held = self.claims, dict(self.claims.registrations)
        try:
            change = announce(before, self.static_rules, one, takeover=takeover, proven=self.proven)
        except Refused:
            assert dict(before.registrations) == held
            return
        self.claims = change.claims
        self.swap(change.touched)
        for key, other in held.items():
            lost = set(other.places) - set(self.places_of(key))
            assert key == one.key or lost <= set(self.places_of(one.key))
            # only a takeover takes from others, except from the legacy registration of the same token
            assert key == one.key or not lost or takeover or (key.is_legacy and key.token == one.key.token)
        if one.key in self.claims.registrations:
            for item, place in zip(one.wanted, self.claims.registrations[one.key].places, strict=True):
                assert {*one.addresses(item)} <= {server.address for server in self.table.frontends[place].servers}
        for place in {place for other in held.values() for place in other.places} - set(self.claims.holders):
            # a call closes a port only if it is the one registration that held it and no longer wants it
            assert before.holders[place] == (one.key,)

    @precondition(lambda self: self.claims.registrations)
    @rule(data=st.data())
    def somebody_leaves(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.claims.registrations)))
        before = self.claims
        change = release(before, [key])
        self.claims = change.claims
        self.swap(change.touched)
        for place in before.registrations[key].places:
            others = [before.registrations[other] for other in before.holders[place] if other != key]
            servers = {server.address for server in self.table.frontends[place].servers} if others else set()
            for other in others:  # whoever else holds it keeps its server
                assert servers.issuperset(other.addresses(other.wanted[other.places.index(place)]))

    @precondition(lambda self: self.claims.holders)
    @rule(data=st.data(), whole_port=st.booleans())
    def a_route_or_a_port_is_released(self, data: st.DataObject, whole_port: bool) -> None:
        """By name or the default one, of some of its holders; or the port with all its routes."""
        place = data.draw(st.sampled_from(list(self.claims.holders)))
        keys = data.draw(st.sets(st.sampled_from(list(self.claims.registrations)), min_size=1))
        before = self.claims
        change = release(before, keys, place.port, server_name=None if whole_port else place.server_name)
        self.claims = change.claims
        self.swap(change.touched)
        for key, one in before.registrations.items():
            gone = {other for other in one.places if other.port == place.port and (whole_port or other == place)}
            assert set(self.places_of(key)) == set(one.places) - (gone if key in keys else set())

    @precondition(lambda self: self.claims.registrations)
    @rule(data=st.data(), state=st.sampled_from(State))
    def leases_end_or_come_back(self, data: st.DataObject, state: State) -> None:
        keys = data.draw(st.sets(st.sampled_from(list(self.claims.registrations))))
        before = set(self.claims.holders)
        change = become(self.claims, keys, state)
        self.claims = change.claims
        self.swap(change.touched)
        assert set(self.claims.holders) == before  # no port closes because somebody fell silent

    @rule(ip=st.sampled_from(IPS), port=st.sampled_from((30001, 30002, 30025, 30080, 30443)))
    def a_server_answers(self, ip: str, port: int) -> None:
        self.proven |= {Address(ip, port)}
        change = settle(self.claims, self.claims.waiting, self.proven)
        self.claims = change.claims
        self.swap(None)

    @rule(data=st.data())
    def servers_go_down_and_come_back(self, data: st.DataObject) -> None:
        all_of_them = [(place, s.address) for place, f in self.table.frontends.items() for s in f.servers]
        if all_of_them:
            self.down = frozenset(data.draw(st.sets(st.sampled_from(all_of_them))))
            self.swap(None)

    @rule(static_rules=st.sampled_from(LAYOUTS))
    def the_config_is_reloaded(self, static_rules: object) -> None:
        before = self.claims
        try:
            change = adopt(before, static_rules)  # type: ignore[arg-type]
        except Refused:
            assert self.claims is before
            return
        assert set(change.claims.registrations) == set(before.registrations)
        self.claims, self.static_rules = change.claims, static_rules  # type: ignore[assignment]
        self.swap(None)

    @invariant()
    def a_port_has_one_owner(self) -> None:
        for listen, keys in self.claims.holders.items():
            if not self.static_rules.joined_by_any(listen):
                assert len({(key.token, key.name, key.legacy_port) for key in keys}) == 1
            else:
                assert sum(key.is_legacy for key in keys) <= 1

    @invariant()
    def a_default_route_that_allows_no_names_is_alone_or_beside_its_owners_own(self) -> None:
        for listen, keys in self.claims.holders.items():
            static = self.static_rules.frontends.get(listen.default)
            if not listen.server_name:
                continue
            if static is not None:
                assert static.allows_names
                continue
            for key in self.claims.holders.get(listen.default, ()):
                one = self.claims.registrations[key]
                allows = one.wanted[one.places.index(listen.default)].allows_names
                assert allows or {(key.token, key.name)} == {(other.token, other.name) for other in keys}

    @invariant()
    def holders_and_places_say_the_same(self) -> None:
        held = {(listen, key) for listen, keys in self.claims.holders.items() for key in keys}
        assert held == {(place, key) for key, one in self.claims.registrations.items() for place in one.places}
        assert all(one.wanted and len(one.wanted) == len(one.places) for one in self.claims.registrations.values())

    @invariant()
    def the_table_worked_out_in_steps_is_the_whole_one(self) -> None:
        whole = compose(self.claims, self.static_rules, ServerStates(self.proven, self.down))
        ranks = {
            listen: {(s.address, s.rank, s.name) for s in frontend.servers} for listen, frontend in whole.frontends.items()
        }
        assert ranks == {
            listen: {(s.address, s.rank, s.name) for s in frontend.servers} for listen, frontend in self.table.frontends.items()
        }
        ports = {listen.default for listen in self.claims.holders}
        assert set(self.table.frontends) == set(self.claims.holders) | set(self.static_rules.frontends) | ports

    @invariant()
    def a_registered_port_always_has_a_server_and_labels_are_unique(self) -> None:
        for listen in self.claims.holders:
            servers = self.table.frontends[listen].servers
            assert servers
            assert len({server.name for server in servers}) == len({server.address for server in servers}) == len(servers)

    @invariant()
    def a_proven_server_that_is_up_is_never_behind_an_unproven_one_alone(self) -> None:
        for frontend in self.table.frontends.values():
            best = min((server.rank for server in frontend.servers), default=DOWN)
            usable = [s for s in frontend.servers if s.address in self.proven and s.rank < DOWN]
            if best == 1:
                assert all(server.rank == 2 for server in usable)  # a backup is displaced by anybody fresh

    @invariant()
    def what_each_edit_worked_out_is_what_a_picture_from_nothing_says(self) -> None:
        ones = list(self.claims.registrations.values())
        held = list(self.claims.holders)
        assert {k: set(v) for k, v in self.claims.ports.items()} == {
            port: {listen.default for listen in held if listen.port == port} for port in {listen.port for listen in held}
        }
        assert {k: set(v) for k, v in self.claims.routes.items()} == {
            port: {listen for listen in held if listen.server_name and listen.default == port}
            for port in {listen.default for listen in held if listen.server_name}
        }
        assert self.claims.sent_to == Counter(
            Address("loopback" if is_loopback(ip) else ip, item.target_port)
            for one in ones
            for ip in one.ips
            for item in one.wanted
        )
        assert self.claims.owners == Counter((one.key.token, one.key.name, one.key.is_legacy) for one in ones)
        assert self.claims.of_token == Counter(one.key.token for one in ones)
        assert self.claims.not_fresh == {one.key: one.state for one in ones if one.state is not State.FRESH}
        assert set(self.claims.waiting) == {one.key for one in ones if one.displaced}

    @invariant()
    def a_restart_finds_the_same_picture(self) -> None:
        again, refusals = readmit(self.claims.registrations.values(), self.static_rules)
        assert refusals == []
        assert again.registrations == self.claims.registrations
        assert {k: set(v) for k, v in again.holders.items()} == {k: set(v) for k, v in self.claims.holders.items()}


Calls.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
test_any_order_of_calls_keeps_the_promises = Calls.TestCase


def goodbyes(order: tuple[str, ...]) -> Claims:
    """Two pods of a rolling update on one node: both register 203.0.113.1:30443, the old one says goodbye."""
    claims = Claims()
    for step in order:
        if step == "drain":
            one = native(instance="old", state=State.DRAINING)
            claims = announce(claims, FREE, one, takeover=False, proven=frozenset()).claims
        elif step == "delete":
            claims = release(claims, [Key("t", "web", "old")]).claims
        else:
            claims = announce(claims, FREE, native(instance=step), takeover=False, proven=frozenset()).claims
    return claims


def test_the_goodbye_of_the_old_pod_never_takes_the_new_pods_server_away() -> None:
    from itertools import permutations

    for order in permutations(("new", "drain", "delete")):
        claims = goodbyes(("old", *order))
        (server,) = compose(claims, FREE, ServerStates()).frontends[Listen("tcp", "*", 443)].servers
        assert server.address == Address(A, 30443)
        assert server.rank == 1  # fresh, by the new pod's word alone
