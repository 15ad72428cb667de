"""The picture of who holds what."""

from dataclasses import fields, replace

import pytest

from pylb.core.address import parse_listen
from pylb.core.claims import Claims
from pylb.core.registration import Key
from tests.core.claiming import B, enter, having, legacy, native, on, routed, static, static_rules
from tests.support.counting import counting


def test_who_holds_a_port_number_is_found_on_every_address() -> None:
    two = static_rules(static("web", "203.0.113.9:443"))
    claims = having(native(), static_rules=two)
    assert [one.name for one in claims.on_port(443)] == ["web"]
    assert claims.on_port(80) == ()


def test_a_picture_cannot_be_edited() -> None:
    claims = having(native())
    with pytest.raises(TypeError):
        claims.registrations[Key("t", "x", "y")] = native()  # type: ignore[index]
    assert parse_listen("*:443") in claims.holders
    assert replace(claims) == claims


def test_the_buckets_of_claims_are_all_that_they_consist_of() -> None:
    """Whoever frees claims piece by piece would else free the rest in one go."""
    claims = having(native(), native(instance="pod-2", ip=B), legacy(444))
    maps = [getattr(claims, one.name) for one in fields(claims)]
    assert {id(bucket) for bucket in claims.buckets} == {id(bucket) for one in maps for bucket in one.buckets}
    assert sum(map(len, claims.buckets)) == sum(map(len, maps)) > 0


def test_5000_names_on_a_port_cost_a_call_no_more_than_five_hundred() -> None:
    """A move, and one more name: calls are counted, and what a copy of a small dict costs stays small."""
    costs = []
    for count in (500, 5000):
        ones = []
        for number in range(count):
            name = f"a{number}.example.net"
            one = routed(f"443 {name}", name=f"app-{number}", token=f"t{number}")
            ones.append(replace(one, places=(on(443, server_name=name),)))
        claims = Claims().edited({one.key: one for one in ones})
        with counting() as calls:
            claims = enter(claims, routed("443 one.more.net", name="more")).claims
            claims = enter(claims, routed("443 a7.example.net", name="app-7", token="t7", ip=B)).claims
            costs.append(calls())
        assert len(claims.on_port(443)) == count + 1
    assert costs[1] <= costs[0] + 50
