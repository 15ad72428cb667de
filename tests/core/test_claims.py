"""The picture of who holds what."""

from dataclasses import replace

import pytest

from pylb.core.address import parse_listen
from pylb.core.registration import Key
from tests.core.claiming import having, native, static, static_rules


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
