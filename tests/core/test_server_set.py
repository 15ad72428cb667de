"""Sets: one registration with servers on many machines."""

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from pylb.core.access import AccessList, AccessRule
from pylb.core.address import Listen
from pylb.core.announcement import parse_set
from pylb.core.claims import Claims
from pylb.core.codec import from_plain, to_plain
from pylb.core.compose import ServerStates, compose_frontend
from pylb.core.errors import Code, Refused
from pylb.core.loops import loop
from pylb.core.ownership import become, settle
from pylb.core.policy import Bounds, Policy, Rules, Timeouts
from pylb.core.registration import SET, FrontendRequest, Key, Registration, State, parse_sequence
from pylb.core.server_set import MOST_SERVERS, NO_TERMS, Member, Terms, parse_access, written_access
from pylb.core.static_rules import StaticRules
from tests.core.claiming import FREE, A, B, C, at, enter, having, native, on, refused, static, static_rules

HTTPS = on(443)
KEY = Key("t", "web", SET)


def servers(*ips: str, target: int = 30443, **changes: object) -> Registration:
    """A set on port 443, with its machines called m-LAST-PART."""
    members = tuple(Member(f"m-{ip.rpartition('.')[2]}", ip) for ip in ips)
    one = replace(native(ports={443: target}), key=KEY, ip="", members=members)
    return replace(one, **changes)  # type: ignore[arg-type]


def ranks(claims: Claims, *proven: str) -> dict[str, int]:
    made = compose_frontend(claims, FREE, ServerStates(frozenset(map(at, proven))), HTTPS)
    assert made is not None
    return {f"{one.name} {one.address}": one.rank for one in made.servers}


def parsed(**fields: object) -> Refused:
    body = {"frontends": [{"port": 443, "target_port": 30443}], "servers": [{"instance": "m-1", "address": A}]}
    with pytest.raises(Refused) as caught:
        parse_set(json.dumps(body | fields).encode())
    return caught.value


# ---------------------------------------------------------------- the body


def test_everything_that_a_set_may_say_is_understood() -> None:
    body = {
        "frontends": [{"port": 443, "target_port": 30443}],
        "servers": [{"instance": "m-1", "address": A}, {"instance": "m-2", "address": B, "weight": 3}],
        "access": [{"allow": "198.51.100.0/24"}, {"deny": "198.51.100.9/32"}],
        "idle_timeout": 7200,
        "ttl": 900,
        "state": "draining",
    }
    said = parse_set(json.dumps(body).encode())
    assert said.members == (("m-1", A, None), ("m-2", B, 3))
    assert written_access(said.terms.access) == body["access"]
    assert (said.terms.idle, said.ttl, said.draining, said.address) == (7200.0, 900.0, True, None)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"servers": []}, "servers: "),
        ({"servers": [{"instance": "m-1"}]}, "servers[0].address: missing"),
        ({"servers": [{"instance": "m-1", "adress": A}]}, "servers[0].adress: unknown key"),
        ({"servers": [{"instance": "a/b", "address": A}]}, "servers[0].instance: 'a/b' is not a valid name"),
        ({"servers": [{"instance": "m", "address": A}] * 2}, "servers[1].instance: 'm' appears twice"),
        ({"address": A}, "address: unknown key"),
        ({"acess": []}, "acess: unknown key"),
        ({"access": [{"allow": "198.51.100.0/24", "deny": "::/0"}]}, "access[0]: neither allow nor deny alone"),
        ({"access": [{"allow": "198.51.100.7/24"}]}, "access[0].allow: 198.51.100.7/24 has host bits set"),
        ({"idle_timeout": 0}, "idle_timeout: "),
    ],
)
def test_a_refusal_names_the_field(fields: dict[str, object], where: str) -> None:
    found = parsed(**fields)
    assert found.code is Code.INVALID
    assert found.detail.startswith(where)


def test_a_set_has_a_bound_over_frontends_and_machines_together() -> None:
    many = [{"instance": f"m-{number}", "address": A} for number in range(512)]
    ports = [{"port": number, "target_port": 30443} for number in range(1, MOST_SERVERS // 512 + 2)]
    assert f"a set may have {MOST_SERVERS}" in parsed(servers=many, frontends=ports).detail
    spread = [{"port": "20000-20009", "target_port": "30000-30009"}]
    assert f"a set may have {MOST_SERVERS}" in parsed(servers=many, frontends=spread).detail, "each port of a range counts"


def test_a_sequence_is_a_whole_number() -> None:
    assert parse_sequence("9007199254740993") == 9007199254740993
    for text in ("", "-1", "1.5", "1" * 30, "latest"):
        with pytest.raises(Refused, match="Pylb-Sequence"):
            parse_sequence(text)


# ---------------------------------------------------------------- its servers


def test_each_member_is_a_server_of_each_port() -> None:
    claims = having(servers(A, B))
    assert ranks(claims, f"{A}:30443") == {f"m-1 {A}:30443": 0, f"m-2 {B}:30443": 1}
    weighty = enter(claims, servers(members=(Member("m-1", A, 7),))).claims
    made = compose_frontend(weighty, FREE, ServerStates(), HTTPS)
    assert made is not None
    assert [(one.name, one.weight) for one in made.servers] == [("m-1", 7)]


def test_a_member_more_or_less_is_a_move_of_the_whole_set() -> None:
    claims = having(servers(A))
    more = enter(claims, servers(A, B))
    assert (more.result, more.opened, more.touched) == ("moved", (), {HTTPS})
    less = enter(more.claims, servers(B))
    assert ranks(less.claims, f"{A}:30443", f"{B}:30443") == {f"m-2 {B}:30443": 0}


def test_a_set_and_single_instances_of_its_name_are_one_pool() -> None:
    claims = having(native(instance="pod-1", ip=C), servers(A))
    assert ranks(claims) == {f"m-1 {A}:30443": 1, f"pod-1 {C}:30443": 1}
    other = refused(lambda: enter(claims, servers(B, key=Key("t", "mail", SET), name="mail")))
    assert (other.code, other.port) == (Code.PORT_OWNED, "443")


def test_the_server_before_stays_only_until_one_of_the_new_ones_has_answered() -> None:
    proven = frozenset({at(f"{A}:30443")})
    moved = enter(having(servers(A)), servers(B, C), proven=proven).claims
    assert ranks(moved, f"{A}:30443") == {f"m-2 {B}:30443": 1, f"m-3 {C}:30443": 1, f"m-1 {A}:30443": 0}
    settled = settle(moved, [KEY], proven | {at(f"{C}:30443")}).claims
    assert ranks(settled, f"{C}:30443") == {f"m-2 {B}:30443": 1, f"m-3 {C}:30443": 0}


def test_a_server_that_leaves_is_no_fallback_where_another_has_answered_or_the_target_port_is_another() -> None:
    proven = frozenset({at(f"{A}:30443"), at(f"{B}:30443")})
    for after in (servers(B), servers(C, target=30999)):
        assert not enter(having(servers(A, B)), after, proven=proven).claims.registrations[KEY].displaced


def test_a_range_has_one_server_on_each_machine_which_nobody_asks() -> None:
    spread = FrontendRequest(20000, 30000, last=20009, target_last=30009)
    one = servers(A, B, wanted=(*servers().wanted, spread))
    assert list(one.asked) == [at(f"{A}:30443"), at(f"{B}:30443")]
    claims = having(one)
    made = compose_frontend(claims, FREE, ServerStates(), Listen("tcp", "*", 20000, 20009))
    assert made is not None
    assert [(str(server.address), server.rank) for server in made.servers] == [(f"{A}:30000-30009", 0), (f"{B}:30000-30009", 0)]


def test_another_range_of_target_ports_is_another_application() -> None:
    to_one = servers(A, wanted=(FrontendRequest(20000, 30000, last=20009),))
    to_each = servers(A, wanted=(FrontendRequest(20000, 30000, last=20009, target_last=30009),))
    proven = frozenset({at(f"{A}:30000")})
    after = enter(having(to_one, proven=proven), to_each, proven=proven).claims
    assert not after.registrations[KEY].displaced


def test_each_machine_counts_for_the_bound_of_a_port() -> None:
    rules = static_rules(bounds=Bounds(servers_per_frontend=2))
    claims = having(servers(A, B), static_rules=rules)
    assert "2 servers" in refused(lambda: enter(claims, servers(A, B, C), rules)).detail
    assert "2 servers" in refused(lambda: enter(claims, native(ip=C), rules)).detail
    assert enter(claims, servers(A, C), rules).result == "moved"


def test_one_member_that_is_pylb_itself_refuses_the_set_and_later_only_leaves_it() -> None:
    here = static_rules(own_ips=frozenset({A}))
    looped = servers(A, B, target=443)
    assert "is pylb itself" in refused(lambda: enter(Claims(), looped, here)).detail
    claims = having(looped)
    assert loop(claims, here, claims.registrations[KEY]) is not None
    made = compose_frontend(claims, here, ServerStates(), HTTPS)
    assert made is not None
    assert [one.name for one in made.servers] == ["m-2"]


# ---------------------------------------------------------------- sequence


def test_an_older_state_is_superseded_while_the_newer_lease_is_fresh() -> None:
    claims = having(servers(A, sequence=7))
    late = enter(claims, servers(B, sequence=6))
    assert (late.result, late.claims is claims) == ("superseded", True)
    assert "7" in late.note
    stale = become(claims, [KEY], State.STALE).claims
    assert enter(stale, servers(B, sequence=6)).result == "moved"
    assert enter(claims, servers(B)).result == "moved", "without a sequence there is no order"


def test_a_newer_state_that_asks_for_the_same_is_remembered_and_touches_nothing() -> None:
    newer = enter(having(servers(A, sequence=7)), servers(A, sequence=8))
    assert (newer.result, newer.touched) == ("unchanged", frozenset())
    assert enter(newer.claims, servers(B, sequence=7)).result == "superseded"


# ---------------------------------------------------------------- terms


def test_terms_narrow_what_the_operator_lets_in_and_never_widen_it() -> None:
    everywhere = parse_access([{"allow": "0.0.0.0/0"}, {"allow": "203.0.113.0/24"}])
    operator = Policy(access=AccessList([AccessRule(False, ip_network("203.0.113.0/28"))]))
    both = Terms(everywhere).over(operator).access
    assert both.allows(ip_address("203.0.113.77").packed)
    assert not both.allows(ip_address("203.0.113.7").packed)
    assert not both.allows(ip_address("2001:db8::1").packed)
    assert from_plain(AccessList, to_plain(both)) == both
    assert both != everywhere
    assert hash(both) != hash(everywhere)
    assert everywhere.narrowing(AccessList()) == everywhere


def test_terms_hold_for_ports_that_registrations_opened_alone() -> None:
    terms = Terms(parse_access([{"allow": "198.51.100.0/24"}]), 7200.0)
    change = enter(having(servers(A)), servers(A, terms=terms))
    assert change.result == "updated"
    made = compose_frontend(change.claims, FREE, ServerStates(), HTTPS)
    assert made is not None
    assert (made.policy.access, made.policy.timeouts.idle) == (terms.access, 7200.0)
    rules = static_rules(static("web", "*:443"))
    joined = compose_frontend(having(servers(A, terms=terms), static_rules=rules), rules, ServerStates(), HTTPS)
    assert joined is not None
    assert joined.policy == Policy()


def test_who_may_connect_is_not_for_a_set_to_say_on_a_port_that_it_shares_by_server_names() -> None:
    """It is decided before the name is known, so it would be for the clients of others, too."""
    only = {"access": [{"allow": "198.51.100.0/24"}]}
    for shared in ({"server_names": ["git.example.net"]}, {"names": "allowed"}):
        found = parsed(frontends=[{"port": 443, "target_port": 30443, **shared}], **only)
        assert (found.code, found.detail.partition(":")[0]) == (Code.INVALID, "access")


def test_a_route_that_a_set_opened_has_its_idle_timeout_unless_its_port_is_in_the_config() -> None:
    wanted = (FrontendRequest(443, 30443, server_name="git.example.net"),)
    one, route = servers(A, wanted=wanted, terms=Terms(idle=7200.0)), HTTPS._replace(server_name="git.example.net")
    rules = static_rules(static("web", "*:443", allows_names=True))
    for layout, idle in ((FREE, 7200.0), (rules, Policy().timeouts.idle)):
        made = compose_frontend(having(one, static_rules=layout), layout, ServerStates(), route)
        assert made is not None
        assert made.policy.timeouts.idle == idle


def test_the_idle_time_of_a_set_is_that_of_its_flows_too_on_top_of_what_udp_inherits() -> None:
    one = servers(A, terms=Terms(AccessList(), 7200.0))
    one = replace(one, wanted=tuple(replace(item, protocol="udp") for item in one.wanted))
    rules = StaticRules(Rules(defaults=Policy(max_queue=9)))
    made = compose_frontend(having(one, static_rules=rules), rules, ServerStates(), HTTPS._replace(protocol="udp"))
    assert made is not None
    assert (made.policy.timeouts.udp_idle, made.policy.max_queue) == (7200.0, 0)


def test_no_terms_are_the_operators_own_policy() -> None:
    policy = Policy(timeouts=Timeouts(idle=5.0))
    assert NO_TERMS.over(policy) is policy
