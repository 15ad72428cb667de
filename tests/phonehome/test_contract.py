"""The two halves of the wire were written apart: what phonehome says is what pylb understands, and the other way round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phonehome.message import DRAINING, READY, Accepted, Placed, Refused, Reply, read, registration
from phonehome.values import MAX_TTL, MAX_WEIGHT, MIN_TTL, is_name
from pylb.control.views import FrontendOutcome, Outcome
from pylb.core.announcement import parse_native
from pylb.core.errors import Code
from pylb.core.errors import Refused as ServerRefused
from pylb.core.policy import Check, CheckKind, LeaseBounds, ProxyProtocol
from pylb.core.registration import FrontendRequest, check_name
from pylb.web.answers import json_refusal
from pylb.web.types import json_answer
from pylb.web.webhook import outcome_json
from tests.phonehome.peer import TOKEN, settings_for


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def test_pylb_understands_every_notation_of_a_registration() -> None:
    frontends = f"443:30443 25:30025/proxy=v2/weight={MAX_WEIGHT}/backup 80:30080/proxy=none"
    settings = settings_for(PYLB_FRONTENDS=frontends, PYLB_ADDRESS="192.0.2.7", PYLB_TTL="5m")
    heard = parse_native(registration(settings, READY).body or b"")

    assert heard.frontends == (
        FrontendRequest(443, 30443, None, 1, False),
        FrontendRequest(25, 30025, ProxyProtocol.V2, 256, True),
        FrontendRequest(80, 30080, ProxyProtocol.NONE, 1, False),
    )
    assert (heard.address, heard.ttl, heard.draining) == ("192.0.2.7", 300, False)


def test_pylb_understands_the_check_of_a_phonehome() -> None:
    settings = settings_for(PYLB_HEALTH='{"http": "/health", "expect": 200, "port": 30880}')
    [wanted] = parse_native(registration(settings, READY).body or b"").frontends

    assert wanted.health.check == Check(CheckKind.HTTP, path="/health", status=(200, 200), port=30880)


def test_pylb_understands_the_goodbye_and_a_lease_without_an_end() -> None:
    heard = parse_native(registration(settings_for(REPEAT_INTERVAL="once"), DRAINING).body or b"")
    assert (heard.address, heard.ttl, heard.draining) == (None, None, True)


def test_both_sides_have_the_same_rules() -> None:
    assert (LeaseBounds().min_ttl, LeaseBounds().max_ttl) == (MIN_TTL, MAX_TTL)


@given(st.text("aZ0._-/ \u00e9", max_size=6) | st.integers(250, 256).map("x".__mul__))
def test_both_sides_take_the_same_names(text: str) -> None:
    try:
        check_name("name", text)
        taken = True
    except ServerRefused:
        taken = False
    assert is_name(text) == taken


@pytest.mark.parametrize("result", ["created", "unchanged", "moved", "updated", "released"])
def test_an_outcome_of_pylb_is_read_whole(result: str) -> None:
    placed = (
        FrontendOutcome(443, "203.0.113.7", 30443, "timeout", "a firewall"),
        FrontendOutcome(25, "203.0.113.7", 30025, "yes"),
    )
    answer = json_answer(200, outcome_json(Outcome(result, 7, False, 60.0, 59.97, placed, "dst-ip was not used")))
    ttl = None if result == "released" else 60

    assert read(Reply(answer.status, lower(dict(answer.headers)), answer.body), 0.0, TOKEN) == Accepted(
        result,
        7,
        False,
        ttl,
        (Placed(443, "203.0.113.7", 30443, "timeout", "a firewall"), Placed(25, "203.0.113.7", 30025, "yes", "")),
        "dst-ip was not used",
    )


@pytest.mark.parametrize("code", list(Code))
def test_every_refusal_of_pylb_is_read_whole(code: Code) -> None:
    answer = json_refusal(ServerRefused(code, "what and where", "what to do", retry_after=2.5))
    found = read(Reply(answer.status, lower(dict(answer.headers)), answer.body), 0.0, TOKEN)

    assert isinstance(found, Refused)
    assert (found.status, found.error, found.detail, found.hint) == (answer.status, code, "what and where", "what to do")
    assert found.retry_after == (3.0 if answer.status in (429, 503) else None)
