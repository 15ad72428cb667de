"""What is asked, and how answers are read, whoever sends them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phonehome.message import DRAINING, READY, Accepted, Placed, Refused, Reply, Request, read, registration, release
from phonehome.outcome_log import OutcomeLog
from tests.phonehome.peer import TOKEN, settings_for

NOW = 1_700_000_000.0


def reply(status: int, document: object = None, **headers: str) -> Reply:
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(document).encode())


def refused(answer: object) -> Refused:
    assert isinstance(answer, Refused)
    return answer


def test_all_ports_go_into_one_registration() -> None:
    settings = settings_for(PYLB_FRONTENDS="443:30443 25:30025/proxy=v2/weight=3/backup", PYLB_TTL="5m")
    request = registration(settings, READY)

    assert (request.method, request.path) == ("PUT", "/v1/registrations/mosquitto/pod-1")
    assert json.loads(request.body or b"") == {
        "frontends": [
            {"port": 443, "target_port": 30443},
            {"port": 25, "target_port": 30025, "proxy_protocol": "v2", "weight": 3, "backup": True},
        ],
        "address": None,
        "ttl": 300,
        "state": "ready",
    }


def test_a_port_of_udp_and_a_range_go_into_it_too_and_are_named_as_they_are_written() -> None:
    request = registration(settings_for(PYLB_FRONTENDS="443/udp:30443 20000-20099:30000-30099"), READY)
    assert json.loads(request.body or b"")["frontends"] == [
        {"port": 443, "target_port": 30443, "protocol": "udp"},
        {"port": "20000-20099", "target_port": "30000-30099"},
    ]
    placed = [
        {"port": 443, "protocol": "udp", "address": "192.0.2.7", "target_port": 30443, "reachable": "unknown"},
        {"port": 20000, "last_port": 20099, "address": "192.0.2.7", "target_port": 30000, "reachable": "unknown"},
    ]
    answer = read(Reply(200, {}, json.dumps({"result": "created", "frontends": placed}).encode()), 0.0, "token")
    assert isinstance(answer, Accepted)
    assert [one.text for one in answer.frontends] == ["443/udp", "20000-20099"]


@pytest.mark.parametrize(
    ("address", "wire"), [("source", None), ("source4", None), ("source6", None), ("192.0.2.7", "192.0.2.7")]
)
def test_only_an_explicit_address_is_named(address: str, wire: str | None) -> None:
    settings = settings_for("http://lb.example.net", PYLB_ADDRESS=address)
    assert json.loads(registration(settings, READY).body or b"")["address"] == wire


def test_the_goodbye_is_a_registration_that_drains() -> None:
    assert json.loads(registration(settings_for(), DRAINING).body or b"")["state"] == "draining"


def test_a_release_is_a_delete_without_a_body() -> None:
    assert release(settings_for()) == Request("DELETE", "/v1/registrations/mosquitto/pod-1", None)


def test_names_are_one_path_segment_each() -> None:
    settings = settings_for()._replace(name="my app?", instance="caf\u00e9%2F")
    assert release(settings).path == "/v1/registrations/my%20app%3F/caf%C3%A9%252F"


def test_an_accepted_registration_says_what_goes_where() -> None:
    answer = read(
        reply(
            200,
            {
                "result": "moved",
                "generation": 7,
                "durable": False,
                "lease": {"ttl": 60, "expires_in": 60},
                "frontends": [
                    {"port": 443, "address": "203.0.113.7", "target_port": 30443, "reachable": "timeout", "hint": "firewall"}
                ],
                "note": "dst not used",
                "of a later version": [1],
            },
        ),
        NOW,
        TOKEN,
    )
    assert answer == Accepted(
        "moved", 7, False, 60, (Placed(443, "203.0.113.7", 30443, "timeout", "firewall"),), "dst not used"
    )


@pytest.mark.parametrize("document", [{}, {"lease": None, "frontends": None}, {"frontends": [1, {}], "generation": True}])
def test_an_answer_with_less_in_it_is_still_an_answer(document: object) -> None:
    answer = read(reply(200, document), NOW, TOKEN)
    assert isinstance(answer, Accepted)
    assert (answer.generation, answer.durable, answer.ttl) == (0, True, None)


def test_of_an_answer_with_more_ports_than_a_call_may_have_the_first_are_read() -> None:
    answer = read(reply(200, {"frontends": [{"port": port} for port in range(1, 2000)]}), NOW, TOKEN)
    assert isinstance(answer, Accepted)
    assert [placed.port for placed in answer.frontends] == [*range(1, 65)]


def test_a_refusal_keeps_error_detail_and_hint() -> None:
    answer = refused(read(reply(409, {"error": "port_owned", "detail": "443 is mqtt's", "hint": "takeover"}), NOW, TOKEN))
    assert answer == Refused(409, "port_owned", "443 is mqtt's", "takeover", None)
    assert not answer.passing


def test_a_redirect_is_not_followed_and_says_so() -> None:
    answer = refused(read(reply(301, {}, location="https://elsewhere.example.net/"), NOW, TOKEN))
    assert "redirects are not followed" in answer.detail
    assert "https://elsewhere.example.net:443;" in answer.detail


@pytest.mark.parametrize("status", [200, 404, 502])
@pytest.mark.parametrize("body", [b"", b"<html>\n\x1b[31mhello", b"[]", b"\xff", b"[" * 100_000])
def test_an_answer_of_somebody_else_is_named_as_such(status: int, body: bytes) -> None:
    answer = refused(read(Reply(status, {}, body), NOW, TOKEN))
    assert answer.error == "not_pylb"
    assert answer.detail.isprintable()


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "7", 7.0),
        (503, "0", 0.0),
        (503, "99999999999999", 999999999.0),
        (503, "Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        (503, "Tue, 14 Nov 2000 22:13:50 GMT", 0.0),
        (503, "soon", None),
        (503, "-1", None),
        (503, "\u0663", None),
        (409, "7", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(status: int, header: str, seconds: float | None) -> None:
    assert refused(read(reply(status, {"error": "busy"}, retry_after=header), NOW, TOKEN)).retry_after == seconds
    assert refused(read(Reply(status, {"retry-after": header}, b"nginx"), NOW, TOKEN)).retry_after == seconds


def test_text_of_the_other_side_is_one_printable_line() -> None:
    answer = refused(read(reply(403, {"error": "e", "detail": "a\nb\x1b[2J\u202e" + "x" * 1000, "hint": 5}), NOW, TOKEN))
    assert answer.detail.isprintable()
    assert answer.detail.startswith(r"a\nb\x1b[2J\u202exx")
    assert len(answer.detail) <= 300
    assert answer.hint == ""


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, {"result": "created", "frontends": [{"port": 10**400, "address": f"{TOKEN}\x1b", "reachable": "timeout"}]}),
        reply(200, {"result": "created", "frontends": [{"port": 443, "address": f"fe80::1%{TOKEN}", "reachable": "yes"}]}),
        reply(401, {"error": TOKEN, "detail": TOKEN}),
        reply(401, {"error": "two words\n", "hint": TOKEN.upper()}),
        reply(307, {}, location=f"https://{TOKEN}.example.net/{TOKEN}?a={TOKEN}"),
        reply(307, {}, location=f"javascript:{TOKEN}"),
        Reply(502, {}, f"Authorization: Bearer {TOKEN[:14]}".encode()),
        Reply(200, {}, f"<html>{TOKEN[::-1]}".encode()),
    ],
)
def test_no_field_of_an_answer_is_logged_as_it_came(answer: Reply) -> None:
    outcome_log = OutcomeLog("lb", "source")
    found = read(answer, NOW, TOKEN)
    lines = outcome_log.refused(found, 0.0) if isinstance(found, Refused) else outcome_log.accepted(found, READY, 0.0)
    text = "".join(lines)
    assert lines
    assert text.isprintable()
    assert len(text) < 600
    assert TOKEN[:12] not in text.lower()
    assert TOKEN[::-1][:12] not in text.lower()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(["result", "generation", "durable", "lease", "frontends", "error", "detail", "hint", "note"])


@given(st.integers(100, 599), st.dictionaries(KEYS, JSON) | JSON, st.text(max_size=10))
def test_no_answer_whatever_raises(status: int, document: object, header: str) -> None:
    answer = read(reply(status, document, retry_after=header), NOW, TOKEN)
    assert isinstance(answer, (Accepted, Refused))


@given(st.binary(max_size=50))
def test_no_body_whatever_raises(body: bytes) -> None:
    assert isinstance(read(Reply(200, {}, body), NOW, TOKEN), (Accepted, Refused))


def test_server_names_are_said_only_where_there_are_some() -> None:
    settings = settings_for(PYLB_FRONTENDS="443:30443/names=git.example.net+*.apps.example.net 443:30444/names=allowed")
    assert json.loads(registration(settings, READY).body or b"")["frontends"] == [
        {"port": 443, "target_port": 30443, "server_names": ["git.example.net", "*.apps.example.net"]},
        {"port": 443, "target_port": 30444, "names": "allowed"},
    ]
