"""What may happen to registrations, and what changes by it."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused
from pylb.core.ownership import Change, announce, become, give_up, in_parts, pass_on, release, settle
from pylb.core.policy import JoinRule, Policy
from pylb.core.registration import DisplacedServer, Key, State, legacy_key
from tests.core.claiming import (
    FREE,
    A,
    B,
    C,
    adopt,
    at,
    counted_steps,
    enter,
    having,
    legacy,
    native,
    on,
    readmit,
    refused,
    static,
    static_rules,
)

# ---------------------------------------------------------------- native registrations


def test_the_first_call_creates_and_opens_its_ports() -> None:
    change = enter(Claims(), native(ports={443: 30443, 80: 30080}))
    assert change.result == "created"
    assert change.opened == (on(443), on(80))
    assert change.new_name
    assert change.touched == {on(443), on(80)}


def test_the_same_call_again_is_no_change_at_all() -> None:
    claims = having(native())
    again = enter(claims, native())
    assert again.result == "unchanged"
    assert again.claims is claims
    assert again.touched == frozenset()


def test_another_address_or_other_frontends_are_a_move() -> None:
    claims = having(native(ports={443: 30443, 80: 30080}))
    assert enter(claims, native(ip=B, ports={443: 30443, 80: 30080})).result == "moved"
    fewer = enter(claims, native(ports={443: 30443}))
    assert fewer.result == "moved"
    assert fewer.touched == {on(443), on(80)}
    assert set(fewer.claims.holders) == {on(443)}


def test_another_ttl_is_an_update() -> None:
    assert enter(having(native()), native(ttl=90.0)).result == "updated"


def test_another_instance_is_one_more_holder_and_opens_nothing() -> None:
    change = enter(having(native()), native(instance="pod-2", ip=B))
    assert (change.result, change.opened, change.new_name) == ("created", (), False)
    assert change.claims.holders[on(443)] == (Key("t", "web", "pod-1"), Key("t", "web", "pod-2"))


def test_a_goodbye_drains_and_a_call_ends_the_draining() -> None:
    claims = having(native())
    goodbye = enter(claims, native(state=State.DRAINING))
    assert goodbye.result == "updated"
    assert goodbye.claims.registrations["t", "web", "pod-1", 0].state is State.DRAINING
    assert enter(goodbye.claims, native()).result == "updated"


def test_a_goodbye_of_somebody_unknown_opens_nothing() -> None:
    change = enter(Claims(), native(state=State.DRAINING))
    assert change.claims == Claims()
    assert "goodbye" in change.note


def test_a_stale_one_that_calls_again_is_a_beat_that_changes_the_picture() -> None:
    claims = become(having(native()), [Key("t", "web", "pod-1")], State.STALE).claims
    change = enter(claims, native())
    assert change.result == "unchanged"
    assert change.touched == {on(443)}
    assert change.claims.registrations["t", "web", "pod-1", 0].state is State.FRESH


# ---------------------------------------------------------------- leaving


def test_a_port_closes_with_its_last_registration_only() -> None:
    claims = having(native(), native(instance="pod-2"))
    one = release(claims, [Key("t", "web", "pod-1")]).claims
    assert set(one.holders) == {on(443)}
    assert release(one, [Key("t", "web", "pod-2")]).claims == Claims()


def test_releasing_what_is_not_there_changes_nothing() -> None:
    claims = having(native())
    change = release(claims, [Key("t", "web", "pod-9")])
    assert (change.result, change.claims) == ("released", claims)
    assert change.claims is claims
    assert release(claims, [Key("t", "web", "pod-1")], port=80).claims is claims


def test_one_port_of_a_registration_can_be_released() -> None:
    claims = having(native(ports={443: 30443, 80: 30080}))
    assert set(release(claims, list(claims.registrations), port=80).claims.holders) == {on(443)}


def test_a_state_that_is_already_so_is_no_change() -> None:
    claims = having(native())
    assert become(claims, [Key("t", "web", "pod-1"), Key("t", "web", "gone")], State.FRESH).claims is claims


# ---------------------------------------------------------------- legacy registrations


def test_legacy_ports_of_a_token_are_one_owner_each_its_own_registration() -> None:
    claims = having(legacy(25), legacy(110))
    assert set(release(claims, [legacy_key("t", 25)]).claims.holders) == {on(110)}
    assert not enter(claims, legacy(143)).new_name


# ---------------------------------------------------------------- static frontends


def test_a_registration_joins_a_static_frontend_of_its_name() -> None:
    rules = static_rules(static("web", "203.0.113.9:443"))
    change = enter(Claims(), native(), rules)
    assert change.claims.registrations["t", "web", "pod-1", 0].places == (on(443, "203.0.113.9"),)


def test_a_port_beside_a_static_frontend_on_another_address_is_free() -> None:
    rules = static_rules(static("https", "203.0.113.9:443"), defaults=Policy(bind="203.0.113.10"))
    assert enter(Claims(), native(), rules).opened == (on(443, "203.0.113.10"),)


def test_a_legacy_call_joins_no_other_static_frontend_but_the_one_of_its_name() -> None:
    rules = static_rules(static("https", "*:443"))
    found = refused(lambda: enter(Claims(), legacy(name="whatever"), rules))
    assert (found.code, "`registrations: legacy`" in found.hint) == (Code.PORT_OWNED, True)
    assert enter(Claims(), legacy(name="https"), rules).result == "created"
    native_too = refused(
        lambda: enter(Claims(), native(name="whatever"), static_rules(static("https", "*:443", joining=JoinRule.LEGACY)))
    )
    assert (native_too.code, "`registrations: any`" in native_too.hint) == (Code.PORT_OWNED, True)


def test_a_legacy_name_is_the_tokens_matter_only_where_it_opens_a_static_frontend() -> None:
    rules = static_rules(static("web", "*:443"), static("old", "*:80", joining=JoinRule.LEGACY))
    asked = ((443, "web"), (443, "other"), (80, "old"), (8443, "web"))
    assert [rules.joins_by_name(port, name) for port, name in asked] == [True, False, False, False]


def test_pylbs_own_ports_are_nobodys() -> None:
    rules = static_rules(reserved_ports=frozenset({9000}))
    assert refused(lambda: enter(Claims(), native(ports={9000: 30000}), rules)).code is Code.PORT_FORBIDDEN


# ---------------------------------------------------------------- proven before trusted


def test_a_proven_server_stays_behind_an_unproven_one_that_replaces_it() -> None:
    proven = frozenset({at(f"{A}:30443")})
    moved = enter(having(native()), native(ip=B), proven=proven).claims
    old = DisplacedServer(on(443), "pod-1", at(f"{A}:30443"))
    assert moved.registrations["t", "web", "pod-1", 0].displaced == (old,)
    again = enter(moved, native(ip=C), proven=proven).claims
    assert again.registrations["t", "web", "pod-1", 0].displaced == (old,)
    back = enter(again, native(ip=A), proven=proven).claims
    assert back.registrations["t", "web", "pod-1", 0].displaced == ()


def test_a_beat_of_the_unproven_one_changes_nothing() -> None:
    proven = frozenset({at(f"{A}:30443")})
    moved = enter(having(native()), native(ip=B), proven=proven).claims
    assert enter(moved, native(ip=B), proven=proven).claims is moved


def test_an_unproven_server_leaves_at_once_and_so_does_a_proven_one_replaced_by_a_proven_one() -> None:
    moved = enter(having(native()), native(ip=B)).claims
    assert moved.registrations["t", "web", "pod-1", 0].displaced == ()
    both = frozenset({at(f"{A}:30443"), at(f"{B}:30443")})
    assert enter(having(native()), native(ip=B), proven=both).claims.registrations["t", "web", "pod-1", 0].displaced == ()


def test_who_was_evicted_stays_behind_an_unproven_newcomer_too() -> None:
    proven = frozenset({at(f"{A}:30443")})
    claims = enter(having(legacy()), native(ip=B), proven=proven).claims
    (old,) = claims.registrations["t", "web", "pod-1", 0].displaced
    assert (old.server, str(old.address)) == ("legacy", f"{A}:30443")


def test_another_target_port_leaves_no_fallback_for_it_is_another_application() -> None:
    proven = frozenset({at(f"{A}:30443")})
    moved = enter(having(native()), native(ports={443: 30999}), proven=proven).claims
    assert moved.registrations["t", "web", "pod-1", 0].displaced == ()
    elsewhere = enter(having(native()), native(ip=B, ports={443: 30999}), proven=proven).claims
    assert elsewhere.registrations["t", "web", "pod-1", 0].displaced == ()
    waiting = enter(having(native()), native(ip=B), proven=proven).claims
    then = enter(waiting, native(ip=B, ports={443: 30999}), proven=proven).claims
    assert then.registrations["t", "web", "pod-1", 0].displaced == ()


def test_a_fallback_is_given_up_whoever_has_answered() -> None:
    proven = frozenset({at(f"{A}:30443")})
    waiting = enter(having(native()), native(ip=B), proven=proven).claims
    change = give_up(waiting, list(waiting.registrations))
    assert change.touched == {on(443)}
    assert change.claims.registrations["t", "web", "pod-1", 0].displaced == ()
    assert give_up(change.claims, list(waiting.registrations)).result == "unchanged"


def test_the_displaced_leave_when_the_new_one_has_answered() -> None:
    proven = frozenset({at(f"{A}:30443"), at(f"{A}:30080")})
    ports = {443: 30443, 80: 30080}
    moved = enter(having(native(ports=ports)), native(ip=B, ports=ports), proven=proven).claims
    assert settle(moved, moved.waiting, proven).claims is moved
    half = settle(moved, moved.waiting, proven | {at(f"{B}:30443")})
    assert half.touched == {on(443), on(80)}
    (left,) = half.claims.registrations["t", "web", "pod-1", 0].displaced
    assert left.listen == on(80)


def test_the_displaced_go_with_the_port_that_they_were_on() -> None:
    proven = frozenset({at(f"{A}:30443"), at(f"{A}:30080")})
    ports = {443: 30443, 80: 30080}
    moved = enter(having(native(ports=ports)), native(ip=B, ports=ports), proven=proven).claims
    rest = release(moved, list(moved.registrations), port=80).claims
    assert [old.listen for old in rest.registrations["t", "web", "pod-1", 0].displaced] == [on(443)]


# ---------------------------------------------------------------- many at once

BEFORE, AFTER = at(f"{A}:30443"), at(f"{B}:30443")


@pytest.mark.parametrize(
    "change",
    [
        partial(become, state=State.STALE),
        release,
        partial(release, port=443),
        partial(settle, proven=frozenset({BEFORE, AFTER})),
        give_up,
    ],
)
@pytest.mark.parametrize("found", [range(250), range(100, 250), range(100), ()])
def test_a_change_of_many_is_one_change_made_in_steps(
    change: Callable[[Claims, Sequence[Key]], Change], found: Sequence[int]
) -> None:
    claims, keys = Claims(), []
    for number in range(250):
        if number in found:
            for ip in (A, B):  # the server at the old address is displaced
                ports = {443: 30443, 1000 + number: 30443}
                one = native(instance=f"pod-{number}", ip=ip, ports=ports)
                claims = enter(claims, one, proven=frozenset({BEFORE})).claims
        keys.append(Key("t", "web", f"pod-{number}"))
    whole, steps = counted_steps(in_parts(claims, keys, change))
    assert whole == change(claims, keys)
    assert (whole.claims is claims, bool(whole.touched)) == (not found, bool(found))
    assert steps == 3


# ---------------------------------------------------------------- reload and restart


def test_a_reload_that_makes_a_registered_port_static_adopts_it() -> None:
    proven = frozenset({at(f"{A}:30443")})
    claims = enter(having(native()), native(ip=B), proven=proven).claims
    change = adopt(claims, static_rules(static("web", "203.0.113.9:443")))
    one = change.claims.registrations["t", "web", "pod-1", 0]
    assert one.places == (on(443, "203.0.113.9"),)
    assert one.displaced[0].listen == on(443, "203.0.113.9")
    assert change.touched == {on(443), on(443, "203.0.113.9")}


def test_a_reload_that_takes_a_port_from_its_owner_is_refused_whole() -> None:
    claims = having(native(), native(name="x", ports={80: 30080}))
    found = refused(lambda: adopt(claims, static_rules(static("https", "*:443"), static("x", "*:80"))))
    assert found.code is Code.PORT_OWNED
    assert "registration 'web' of token 't'" in found.detail


def test_a_restart_leaves_out_only_what_no_longer_fits() -> None:
    claims = having(native(ports={443: 30443, 80: 30080}), native(name="x", ports={81: 30081}))
    fresh, refusals = readmit(claims.registrations.values(), static_rules(static("https", "*:443"), static("y", "*:81")))
    assert set(fresh.holders) == {on(80)}
    assert len(refusals) == 2


def test_a_restart_under_the_same_rules_is_the_same_picture() -> None:
    claims = having(native(), native(instance="pod-2", ip=B), legacy(25))
    assert readmit(claims.registrations.values(), FREE) == (claims, [])


def test_a_snapshot_that_gives_one_port_to_two_keeps_the_first() -> None:
    twice = [legacy(), native()], [native(), native(name="other")]
    for pair in twice:
        fresh, refusals = readmit(pair, FREE)
        assert len(fresh.holders[on(443)]) == 1
        assert refusals[0].code is Code.PORT_OWNED


def test_a_refused_call_leaves_the_picture_as_it_was() -> None:
    claims = having(native())
    before = (dict(claims.registrations), dict(claims.holders))
    with pytest.raises(Refused):
        announce(claims, FREE, native(name="other", ports={80: 1, 443: 2}), takeover=False, proven=frozenset())
    assert (dict(claims.registrations), dict(claims.holders)) == before


def test_what_passes_on_to_another_token_keeps_all_it_has_and_what_cannot_stays() -> None:
    claims = having(native(), native("mail", ports={25: 30025}))
    change = pass_on(claims, {Key("t", "web", "pod-1"): Key("u", "web", "pod-1")})
    assert change.result == "updated"
    assert {key.token for key in change.claims.registrations} == {"t", "u"}
    assert change.touched == {on(443)}
    again = pass_on(change.claims, {Key("t", "web", "pod-1"): Key("u", "web", "pod-1")})
    assert (again.result, again.claims) == ("unchanged", change.claims)
