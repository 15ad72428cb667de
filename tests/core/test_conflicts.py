"""Who may have a port: who is refused, who has to leave, and how many there may be."""

import pytest

from pylb.core.claims import Claims
from pylb.core.conflicts import YieldPolicy
from pylb.core.errors import Code
from pylb.core.ownership import Change, announce, become
from pylb.core.policy import Bounds, JoinRule
from pylb.core.registration import Key, State, legacy_key
from tests.core.claiming import FREE, B, C, enter, having, legacy, native, on, refused, routed, static, static_rules


@pytest.mark.parametrize("intruder", [native(name="other"), native(token="u"), legacy(token="u")])
def test_somebody_elses_port_is_refused_naming_the_owner(intruder: object) -> None:
    claims = having(native())
    found = refused(lambda: enter(claims, intruder))  # type: ignore[arg-type]
    assert found.code is Code.PORT_OWNED
    assert "registration 'web' of token 't'" in found.detail


def test_one_port_of_several_that_is_owned_refuses_all_of_them() -> None:
    claims = having(native(ports={443: 30443}))
    found = refused(lambda: enter(claims, native(name="other", ports={80: 30080, 443: 30443})))
    assert found.code is Code.PORT_OWNED


def test_a_token_with_takeover_takes_the_port_from_everybody_on_it() -> None:
    claims = having(native(ports={443: 30443, 80: 30080}), native(instance="pod-2", ip=B))
    change = enter(claims, native(name="other", token="u", ip=C), takeover=True)
    assert set(change.claims.registrations) == {Key("t", "web", "pod-1"), Key("u", "other", "pod-1")}
    assert change.claims.registrations["t", "web", "pod-1", 0].places == (on(80),)
    assert change.claims.holders == {on(80): (Key("t", "web", "pod-1"),), on(443): (Key("u", "other", "pod-1"),)}


def test_the_last_legacy_writer_of_a_token_wins_whatever_its_name() -> None:
    change = enter(having(legacy(name="one")), legacy(ip=B, name="two"))
    assert change.result == "moved"
    assert change.claims.registrations[legacy_key("t", 443)].ip == B
    assert len(change.claims.holders[on(443)]) == 1


def test_a_native_registration_of_the_same_token_takes_a_legacy_one_over_for_good() -> None:
    claims = enter(having(legacy()), native(ip=B)).claims
    assert set(claims.registrations) == {Key("t", "web", "pod-1")}
    again = enter(claims, legacy())
    assert (again.result, again.claims) == ("superseded", claims)
    assert again.claims is claims
    assert "registration 'web'" in again.note


def test_another_name_may_not_join_unless_the_frontend_says_any() -> None:
    closed, open_ = static_rules(static("https", "*:443")), static_rules(static("https", "*:443", joining=JoinRule.ANY))
    found = refused(lambda: enter(Claims(), native(), closed))
    assert found.code is Code.PORT_OWNED
    assert "static frontend 'https'" in found.detail
    several = having(native(), native(name="other", token="u"), legacy(token="v"), static_rules=open_)
    assert len(several.holders[on(443)]) == 3


def test_a_second_token_of_the_same_name_may_not_join() -> None:
    rules = static_rules(static("web", "*:443"))
    assert refused(lambda: enter(having(native(), static_rules=rules), native(token="u"), rules)).code is Code.PORT_OWNED


@pytest.mark.parametrize("joining", [JoinRule.LEGACY, JoinRule.ANY])
def test_a_static_frontend_for_legacy_calls_has_one_legacy_server_whatever_it_calls_itself(joining: JoinRule) -> None:
    rules = static_rules(static("https", "*:443", "198.51.100.7:30443", joining=joining))
    claims = having(legacy(name="whatever"), static_rules=rules)
    assert claims.holders[on(443)] == (legacy_key("t", 443),)
    assert refused(lambda: enter(claims, legacy(token="u"), rules)).code is Code.PORT_OWNED


def test_a_frontend_has_so_many_servers_static_lines_included() -> None:
    rules = static_rules(static("web", "*:443", "198.51.100.7:30443"), bounds=Bounds(servers_per_frontend=3))
    claims = having(native(), native(instance="pod-2", ip=B), static_rules=rules)
    found = refused(lambda: enter(claims, native(instance="pod-3", ip=C), rules))
    assert (found.code, "bounds.servers_per_frontend" in found.detail, found.retry_after) == (Code.TOO_MANY, True, 60)
    assert enter(claims, native(ip=C), rules).result == "moved"
    narrower = static_rules(static("web", "*:443", "198.51.100.7:30443"), bounds=Bounds(servers_per_frontend=1))
    assert enter(claims, native(ip=C), narrower).result == "moved"  # who is there stays, and moves


def test_a_tokens_registrations_have_so_many_ports_in_all() -> None:
    rules = static_rules(bounds=Bounds(ports_per_token=3))
    claims = having(native(ports={443: 30443, 80: 30080}), legacy(25), static_rules=rules)
    assert claims.ports_of_token == {"t": 3}
    for more in (native(instance="pod-2", ip=B), native(ports={443: 30443, 80: 30080, 8080: 31000}), legacy(110)):
        found = refused(lambda more=more: enter(claims, more, rules))
        assert (found.code, "bounds.ports_per_token" in found.detail) == (Code.TOO_MANY, True)
    assert enter(claims, native(name="x", token="u", ports={8443: 30443}), rules).result == "created"
    fewer = enter(claims, native(ports={443: 30443}), rules).claims
    assert enter(fewer, native(name="x", ports={8443: 30443}), rules).result == "created"
    tiny = static_rules(bounds=Bounds(ports_per_token=1))
    assert enter(claims, native(ip=B, ports={443: 30443, 80: 30080}), tiny).result == "moved"


def test_who_leaves_for_a_call_makes_room_for_it() -> None:
    full = static_rules(bounds=Bounds(servers_per_frontend=1, ports_per_token=1))
    claims = having(legacy(443), static_rules=full)
    assert enter(claims, native(), full).removed == (legacy(443).key,)
    assert enter(claims, native(name="mail", token="u"), full, takeover=True).removed == (legacy(443).key,)


def test_who_seems_dead_gives_way_and_a_fresh_one_never() -> None:
    rival, yield_policy = native("mail", token="u"), YieldPolicy(yields=lambda _one: True, describe=lambda _one: " (words)")
    silent = become(having(native()), [Key("t", "web", "pod-1")], State.STALE).claims

    def asks(claims: Claims) -> Change:
        return announce(claims, FREE, rival, takeover=False, proven=frozenset(), yield_policy=yield_policy)

    refusal = refused(lambda: asks(having(native())))
    assert refusal.detail == "port 443 is owned by registration 'web' of token 't' (words)"
    change = asks(silent)
    assert change.removed == (Key("t", "web", "pod-1"),)
    assert change.evicted == {Key("t", "web", "pod-1"): {on(443)}}


# ---------------------------------------------------------------- server names

GIT, APPS = "443 git.example.net", "443 *.apps.example.net"


def test_each_server_name_of_a_port_has_an_owner_of_its_own() -> None:
    claims = having(routed(GIT), routed(APPS, token="u", name="apps"))
    assert set(claims.holders) == {on(443, server_name="git.example.net"), on(443, server_name="*.apps.example.net")}
    found = refused(lambda: enter(claims, routed(GIT, token="u", name="apps")))
    assert found.code is Code.PORT_OWNED
    assert "the name git.example.net on port 443 is owned by registration 'web' of token 't'" in found.detail
    assert "use another name, ask its owner, `pylb release 443 --name git.example.net`" in found.hint
    assert "`pylb release 443`" in refused(lambda: enter(having(routed("443")), routed("443", token="u"))).hint
    both = having(routed("443+"), routed(GIT, token="u"))
    found = refused(lambda: enter(both, routed("443+", token="v")))
    assert "the default route of port 443 is owned by registration 'web' of token 't'" in found.detail
    assert "`pylb release 443 --default`" in found.hint


def test_a_takeover_of_a_name_leaves_the_others_alone() -> None:
    claims = having(routed(GIT, APPS))
    change = enter(claims, routed(GIT, token="u"), takeover=True)
    assert change.claims.registrations["t", "web", "pod-1", 0].places == (on(443, server_name="*.apps.example.net"),)


def test_a_default_route_that_allows_names_is_beside_those_of_others_in_either_order() -> None:
    default, name = routed("443+"), routed(GIT, token="u", name="git")
    for order in ((default, name), (name, default)):
        assert set(having(*order).holders) == {on(443), on(443, server_name="git.example.net")}


@pytest.mark.parametrize("takeover", [False, True])
def test_nobody_makes_the_clients_of_a_default_route_wait_that_does_not_allow_it(takeover: bool) -> None:
    for default in (routed("443"), legacy()):
        found = refused(lambda default=default: enter(having(default), routed(GIT, token="u"), takeover=takeover))  # type: ignore[misc]
        assert found.code is Code.PORT_OWNED
        assert "allows no names" in found.detail
        assert '"names": "allowed"' in found.hint


@pytest.mark.parametrize("takeover", [False, True])
@pytest.mark.parametrize("default", [routed("443", token="u"), legacy(token="u")])
def test_a_default_route_that_would_not_wait_is_refused_where_others_have_names(default: object, takeover: bool) -> None:
    found = refused(lambda: enter(having(routed(GIT)), default, takeover=takeover))  # type: ignore[arg-type]
    assert "has routes, as git.example.net of registration 'web' of token 't'" in found.detail
    assert '"names": "allowed"' in found.hint


def test_an_owner_may_have_both_whatever_an_older_instance_of_it_said() -> None:
    claims = having(routed("443", instance="old"), routed("443+", GIT, instance="new"))
    assert len(claims.holders[on(443)]) == 2
    assert refused(lambda: enter(claims, routed(APPS, token="u"))).code is Code.PORT_OWNED


def test_dead_ones_give_way_to_names_and_to_a_default_route() -> None:
    dead = YieldPolicy(yields=lambda _one: True)
    for held, wanted in ((routed("443"), routed(GIT, token="u")), (routed(GIT, APPS), routed("443", token="u"))):
        claims = become(having(held), [held.key], State.STALE).claims
        change = announce(claims, FREE, wanted, takeover=False, proven=frozenset(), yield_policy=dead)
        assert set(change.claims.registrations) == {wanted.key}


def test_a_legacy_add_is_the_default_routes_even_if_its_token_holds_a_name_natively() -> None:
    claims = having(routed(GIT, token="u"), routed("443+", token="t"))
    assert enter(claims, legacy(token="t")).result == "superseded"
    assert refused(lambda: enter(having(routed(GIT)), legacy())).code is Code.PORT_OWNED


def test_names_join_a_static_frontend_by_the_rule_for_servers_if_it_has_routes() -> None:
    for joining, may in ((JoinRule.NAME, False), (JoinRule.ANY, True)):
        rules = static_rules(static("https", "*:443", joining=joining, allows_names=True))
        if may:
            assert having(routed(GIT), routed(GIT, token="u"), static_rules=rules).holders[
                on(443, server_name="git.example.net")
            ]
        else:
            assert refused(lambda rules=rules: enter(Claims(), routed(GIT), rules)).code is Code.PORT_OWNED  # type: ignore[misc]
    without = static_rules(static("web", "*:443", "198.51.100.7:30443"))
    found = refused(lambda: enter(Claims(), routed(GIT), without))
    assert "has no routes" in found.detail
    assert "`names: allowed`" in found.hint
