"""What would make pylb send connections to itself."""

from dataclasses import replace

import pytest

from pylb.core.claims import Claims
from pylb.core.errors import Code
from pylb.core.loops import looping
from pylb.core.ownership import readmitting
from pylb.core.policy import Check, HealthOverride, HealthPolicy, Policy
from pylb.core.registration import Registration
from tests.core.claiming import (
    FREE,
    A,
    B,
    adopt,
    counted_steps,
    enter,
    finished,
    having,
    native,
    on,
    readmit,
    refused,
    static,
    static_rules,
)


def test_a_target_that_is_a_port_of_pylb_itself_is_refused() -> None:
    rules = static_rules(static("s", "*:80"), own_ips=frozenset({A}), reserved_ports=frozenset({9000}))
    claims = having(native(name="x", ip=B, ports={8443: 30843}), static_rules=rules)
    for port in (443, 8443, 80, 9000):
        found = refused(lambda port=port: enter(claims, native(ip=A, ports={443: port}), rules))
        assert found.code is Code.TARGET_REFUSED
    assert enter(claims, native(ip=A, ports={443: 30443}), rules).result == "created"
    assert refused(lambda: enter(claims, native(ip="127.0.0.1", ports={443: 8443}), rules)).code is Code.TARGET_REFUSED


def test_a_port_that_another_target_on_this_machine_uses_is_not_opened() -> None:
    rules = static_rules(own_ips=frozenset({A}))
    claims = having(native(ip=A, ports={443: 30443}), static_rules=rules)
    found = refused(lambda: enter(claims, native(name="x", ip=B, ports={30443: 31000}), rules))
    assert found.code is Code.TARGET_REFUSED
    assert enter(claims, native(name="x", ip=B, ports={30444: 31000}), rules).result == "created"


def test_who_leaves_this_machine_may_open_the_port_that_was_aimed_at() -> None:
    rules = static_rules(own_ips=frozenset({A}))
    claims = having(native(ip=A, ports={443: 30443}), native(name="x", ip=B, ports={80: 30443}), static_rules=rules)
    assert enter(claims, native(ip=B, ports={30443: 31000}), rules).result == "moved"


@pytest.mark.parametrize("port", [443, 8443, 80, 9000])
def test_a_check_of_pylb_itself_is_refused_whoever_chose_its_port(port: int) -> None:
    """It would answer for the server: one that is dead would count as up."""
    asked = Check(port=port)
    rules = static_rules(static("s", "*:80"), own_ips=frozenset({A}), reserved_ports=frozenset({9000}))
    claims = having(native(name="x", ip=B, ports={8443: 30843}), static_rules=rules)
    one = native(ip=A)
    one = replace(one, wanted=tuple(replace(item, health=HealthOverride(asked)) for item in one.wanted))
    assert "health.port" in refused(lambda: enter(claims, one, rules)).detail
    defaults = Policy(health=HealthPolicy(check=asked))
    rules = static_rules(static("s", "*:80"), own_ips=frozenset({A}), reserved_ports=frozenset({9000}), defaults=defaults)
    assert "health.port" in refused(lambda: enter(claims, native(ip=A), rules)).detail
    assert enter(claims, native(ip=B), rules).result == "created"


def test_a_port_that_a_static_line_aims_at_on_this_machine_is_not_opened() -> None:
    rules = static_rules(static("s", "203.0.113.9:80", "127.0.0.1:8080", "127.0.0.1:80"))
    assert refused(lambda: enter(Claims(), native(ports={8080: 30080}), rules)).code is Code.TARGET_REFUSED
    assert enter(Claims(), native(name="s", ports={80: 30080}), rules).result == "created"  # nothing new is opened


def test_a_restart_keeps_a_registration_whose_target_has_become_pylb_itself() -> None:
    """Its servers are out (compose.py) until the address is somebody else's again; losing it would be an outage for good."""
    ones = [native(ip=A, ports={443: 30443}), native(name="x", ip=B, ports={30443: 31000})]
    rules = static_rules(own_ips=frozenset({A}))
    fresh, refusals = readmit(ones, rules)
    assert set(fresh.holders) == {on(443), on(30443)}
    assert refusals == []
    assert list(finished(looping(fresh, rules))) == [ones[0].key]
    assert finished(looping(fresh, FREE)) == {}


def test_a_reload_that_would_begin_a_loop_is_refused_and_one_that_finds_it_is_not() -> None:
    claims = having(native(ip=A, ports={443: 30443}))
    rules = static_rules(static("new", "*:30443"), own_ips=frozenset({A}))
    found = refused(lambda: adopt(claims, rules))
    assert (found.code, "'web'" in found.detail) == (Code.TARGET_REFUSED, True)
    assert adopt(claims, rules, looped=finished(looping(claims, rules))).claims.registrations == claims.registrations


def many(count: int) -> list[Registration]:
    """Each has a port and an address of its own."""
    return [native(name=f"app-{n}", ip=f"203.0.{n // 250}.{n % 250 + 1}", ports={2000 + n: 30443}) for n in range(count)]


@pytest.mark.parametrize("meant", [0, 150, 249])
def test_loops_are_found_in_steps_wherever_they_are(meant: int) -> None:
    ones = many(250)
    ip = ones[meant].ip
    ones[meant] = native(name=f"app-{meant}", ip=ip, ports={2000 + meant: 2100})
    claims, _ = finished(readmitting(ones, FREE))
    found, steps = counted_steps(looping(claims, static_rules(own_ips=frozenset({ip}))))
    assert list(found) == [ones[meant].key]
    assert steps >= 4


def test_that_there_is_no_loop_is_found_in_steps() -> None:
    claims, _ = finished(readmitting(many(250), FREE))
    found, steps = counted_steps(looping(claims, static_rules(own_ips=frozenset({"198.51.100.1"}))))
    assert found == {}
    assert steps >= 4
