"""PUT and DELETE /v1/registrations/{name}/{instance}, GET /v1/whoami, literally."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.instance import Pylb, answers, call, is_open, secret, serving, wants
from tests.support.ports import free_port, free_ports
from tests.support.waiting import eventually

BEARER = {"Authorization": f"Bearer {secret('app')}"}


def test_the_full_body_is_answered_by_201_and_the_documented_json_and_again_by_200(pylb: Pylb) -> None:
    port, target = free_ports(2)
    frontend = {"port": port, "target_port": target, "proxy_protocol": "none"}
    body = {"frontends": [frontend], "address": None, "ttl": 60, "state": "ready"}
    with serving("app", target, "127.0.0.7"):
        created = pylb.put("full/one", body, source="127.0.0.7")
        assert created.status == 201
        assert created.headers["Content-Type"].startswith("application/json")
        answer = created.json
        generation = answer.pop("generation")
        assert isinstance(generation, int)
        assert answer == {
            "result": "created",
            "durable": True,
            "lease": {"ttl": 60, "expires_in": 60},
            "frontends": [{"port": port, "address": "127.0.0.7", "target_port": target, "reachable": "yes"}],
        }
        again = pylb.put("full/one", body, source="127.0.0.7")
        assert again.status == 200
        assert again.json == answer | {"result": "unchanged", "generation": generation}
        assert answers(port) == "app"


def test_only_frontends_is_required_and_the_peer_address_is_the_target(pylb: Pylb) -> None:
    port, target = free_ports(2)
    answer = pylb.put("minimal/one", wants((port, target)), source="127.0.0.8")
    assert answer.status == 201
    assert answer.json["frontends"][0]["address"] == "127.0.0.8"
    assert answer.json["frontends"][0]["reachable"] == "refused"
    assert answer.json["lease"]["ttl"] == 60


def test_a_move_is_200_moved_and_new_connections_follow_it(pylb: Pylb) -> None:
    port, target = free_ports(2)
    with serving("old", target, "127.0.0.2"), serving("new", target, "127.0.0.3"):
        first = pylb.put("mover/one", wants((port, target)), source="127.0.0.2")
        moved = pylb.put("mover/one", wants((port, target)), source="127.0.0.3")
        assert (moved.status, moved.json["result"]) == (200, "moved")
        assert moved.json["generation"] > first.json["generation"]
        assert answers(port) == "new"


def test_a_second_instance_is_one_more_server_in_the_pool(pylb: Pylb) -> None:
    port, target = free_ports(2)
    with serving("a", target, "127.0.0.2"), serving("b", target, "127.0.0.3"):
        pylb.put("pool/a", wants((port, target)), source="127.0.0.2")
        assert pylb.put("pool/b", wants((port, target)), source="127.0.0.3").status == 201
        assert {answers(port) for _ in range(6)} == {"a", "b"}
        assert pylb.delete("pool/a").status == 200
        assert {answers(port) for _ in range(4)} == {"b"}


def test_delete_releases_closes_the_port_and_is_idempotent(pylb: Pylb) -> None:
    port = free_port()
    pylb.put("gone/one", wants((port, free_port())))
    assert is_open(port)
    for _ in range(2):
        answer = pylb.delete("gone/one")
        assert (answer.status, answer.json["result"]) == (200, "released")
    assert not is_open(port)
    assert "gone/one" not in pylb.registrations()


@pytest.mark.parametrize(("ttl", "expires"), [(10, 10), (86400, 86400), (None, None)])
def test_a_ttl_of_10_to_86400_seconds_or_null_is_granted(pylb: Pylb, ttl: int | None, expires: int | None) -> None:
    answer = pylb.put(f"ttl-{ttl}/one", wants((free_port(), free_port()), ttl=ttl))
    assert answer.status == 201
    assert answer.json["lease"] == {"ttl": ttl, "expires_in": expires}


def test_draining_is_the_goodbye_of_a_registration(pylb: Pylb) -> None:
    ports = free_port(), free_port()
    for state, shown in (("ready", "fresh"), ("draining", "draining"), ("ready", "fresh")):
        assert pylb.put("goodbye/one", wants(ports, state=state)).status in {200, 201}
        assert pylb.registrations()["goodbye/one"]["state"] == shown


def test_a_goodbye_of_somebody_unknown_opens_nothing(pylb: Pylb) -> None:
    port = free_port()
    assert pylb.put("unknown/one", wants((port, free_port()), state="draining")).status == 200
    assert "unknown/one" not in pylb.registrations()
    assert not is_open(port)


def test_weight_backup_and_proxy_protocol_of_a_frontend_are_taken(pylb: Pylb) -> None:
    port, target = free_ports(2)
    with serving("app", target):
        frontend = {"port": port, "target_port": target, "proxy_protocol": "v1", "weight": 3, "backup": True}
        assert pylb.put("extras/one", {"frontends": [frontend]}).status == 201
        assert answers(port) == "app"


BAD_PORTS: list[Any] = ["443", "443 ", 443.0, True, -1, 0, 65536, None, [], {}, "x", 1e3]


@pytest.mark.parametrize("value", BAD_PORTS, ids=repr)
@pytest.mark.parametrize("field", ["port", "target_port"])
def test_a_port_that_is_no_port_is_422_and_changes_nothing(pylb: Pylb, field: str, value: Any) -> None:
    frontend = {"port": free_port(), "target_port": free_port(), field: value}
    before = pylb.get("/v1/table").json
    answer = pylb.put("bad/one", {"frontends": [frontend]})
    assert (answer.status, answer.error) == (422, "invalid")
    assert field in answer.json["detail"]
    assert pylb.get("/v1/table").json == before


P = 20001
BAD_BODIES: list[Any] = [
    {},
    [],
    "text",
    1,
    None,
    {"frontends": []},
    {"frontends": {}},
    {"frontends": None},
    {"frontends": [1]},
    {"frontends": [{"port": P}]},
    {"frontends": [{"target_port": P}]},
    wants((P, P), colour="red"),
    {"frontends": [{"port": P, "target_port": P, "send-proxy": ""}]},
    {"frontends": [{"port": P, "target_port": P, "proxy_protocol": "v3"}]},
    {"frontends": [{"port": P, "target_port": P, "proxy_protocol": ""}]},
    {"frontends": [{"port": P, "target_port": P, "weight": -1}]},
    {"frontends": [{"port": P, "target_port": P, "weight": 1.5}]},
    {"frontends": [{"port": P, "target_port": P, "weight": True}]},
    {"frontends": [{"port": P, "target_port": P, "backup": 1}]},
    {"frontends": [{"port": P, "target_port": P, "backup": "false"}]},
    wants((P, P), (P, P + 1)),
    wants((P, P), ttl=9),
    wants((P, P), ttl=86401),
    wants((P, P), ttl=0),
    wants((P, P), ttl=10**3000),
    wants((P, P), ttl=-(10**3000)),
    wants((P, P), address="\ud800"),
    {"frontends": [{"port": P, "target_port": P, "health": {"send": "\ud800", "expect": "x"}}]},
    {"frontends": [{"port": P, "target_port": P, "health": {"http": "/", "host": "\udfff"}}]},
    {"frontends": [{"port": P, "target_port": P, "\ud800": 1}]},
    {"frontends": [{"port": P, "target_port": P, "health": {"http": "/", "port": 10**3000}}]},
    wants((P, P), ttl=-60),
    wants((P, P), ttl="60"),
    wants((P, P), ttl=60.5),
    wants((P, P), ttl=True),
    wants((P, P), state="gone"),
    wants((P, P), state=None),
    wants((P, P), state=1),
    wants((P, P), address="nodes.example.net"),
    wants((P, P), address=""),
    wants((P, P), address=2130706433),
    wants((P, P), address="127.0.0.1/32"),
    wants((P, P), address="127.0.0.1:80"),
    wants((P, P), address="127.1"),
    wants((P, P), address=" 127.0.0.1"),
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=json.dumps)
def test_a_body_that_says_something_else_is_422_and_changes_nothing(pylb: Pylb, body: Any) -> None:
    before = pylb.get("/v1/table").json
    answer = pylb.put("bad/one", body)
    assert (answer.status, answer.error) == (422, "invalid")
    assert pylb.get("/v1/table").json == before


NOT_JSON = [
    b"",
    b"{",
    b"frontends=443",
    b"\xff\xfe{}",
    b'{"frontends":[{"port":20001,"target_port":20001}],"ttl":NaN}',
    b'{"frontends":[{"port":20001,"target_port":20001}],"ttl":Infinity}',
    b'{"frontends":[{"port":20001,"target_port":20001}],"ttl":1e999}',
    b'{"frontends":[{"port":20001,"target_port":20001}]} {}',
    b'{"frontends":[{"port":20001,"port":20002,"target_port":20001}]}',
    b'{"frontends":[{"port":20001,"target_port":20001}],"ttl":60,"ttl":70}',
    b'{"frontends":' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"frontends":[{"port":' + b"9" * 4000 + b',"target_port":20001}]}',
]


@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:60]))
def test_a_body_that_is_not_json_is_400_and_changes_nothing(pylb: Pylb, body: bytes) -> None:
    before = pylb.get("/v1/table").json
    answer = pylb.put("bad/one", body)
    assert answer.status in ({400, 422} if b"999" in body else {400})
    assert answer.error in {"invalid_json", "invalid"}
    assert pylb.get("/v1/table").json == before


def test_several_ports_are_one_change_or_none(pylb: Pylb) -> None:
    one, two, owned = free_ports(3)
    assert pylb.put("both/one", wants((one, 30001), (two, 30002))).status == 201
    assert is_open(one)
    assert is_open(two)
    pylb.put("holder/one", wants((owned, 30001)), by="other")
    free, generation = free_port(), pylb.get("/v1/table").json["generation"]
    refused = pylb.put("none/one", wants((free, 30001), (owned, 30002)))
    assert (refused.status, refused.error) == (409, "port_owned")
    assert not is_open(free)
    assert pylb.get("/v1/table").json["generation"] == generation
    assert "none/one" not in pylb.registrations()


def test_a_port_dropped_from_the_next_call_is_closed(pylb: Pylb) -> None:
    one, two = free_ports(2)
    pylb.put("shrinks/one", wants((one, 30001), (two, 30002)))
    answer = pylb.put("shrinks/one", wants((one, 30001)))
    assert answer.status == 200
    assert is_open(one)
    assert not is_open(two)


def test_a_port_in_use_by_another_process_is_409_and_changes_nothing(pylb: Pylb) -> None:
    port, free = free_ports(2)
    with serving("somebody", port, "0.0.0.0"):
        refused = pylb.put("taken/one", wants((free, 30001), (port, 30001)))
        assert refused.status == 409
        assert refused.error.startswith("port_")
        assert not is_open(free)
        assert answers(port) == "somebody"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": secret("app")},
        {"Authorization": f"Basic {secret('app')}"},
        {"Authorization": f"Bearer {secret('app')}x"},
        {"Authorization": f"Bearer {secret('app')[:-1]}"},
        {"X-Funkypenguin-Token": secret("app")},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_a_missing_or_wrong_token_is_401(pylb: Pylb, method: str, headers: dict[str, str]) -> None:
    body = json.dumps(wants((free_port(), 30001))).encode() if method == "PUT" else None
    answer = call(pylb.webhook, method, "/v1/registrations/app/one", body, headers)
    assert (answer.status, answer.error) == (401, "unauthorized")
    assert secret("app") not in answer.text


def test_the_scheme_of_the_token_is_not_case_sensitive(pylb: Pylb) -> None:
    """RFC 9110, section 11.1."""
    body = json.dumps(wants((free_port(), 30001))).encode()
    headers = {"Authorization": f"bearer {secret('app')}"}
    assert call(pylb.webhook, "PUT", "/v1/registrations/case/one", body, headers).status == 201


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "OPTIONS", "TRACE"])
def test_another_method_is_405_and_says_which_are_allowed(pylb: Pylb, method: str) -> None:
    answer = call(pylb.webhook, method, "/v1/registrations/app/one", headers=BEARER)
    assert answer.status == 405
    assert answer.error == "method_not_allowed"
    assert {each.strip() for each in answer.headers["Allow"].split(",")} >= {"PUT", "DELETE"}


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/registrations/", "/v1/registrations/a/b/c", "/metrics", "/nothing"],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_an_unknown_path_is_a_json_404(pylb: Pylb, method: str, path: str) -> None:
    answer = call(pylb.webhook, method, path, headers=BEARER)
    assert (answer.status, answer.error) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"), [("PUT", "/v1/registrations", {"GET"}), ("GET", "/v1/registrations/app", {"PUT", "DELETE"})]
)
def test_the_paths_of_sets_say_what_they_accept(pylb: Pylb, method: str, path: str, allow: set[str]) -> None:
    answer = call(pylb.webhook, method, path, headers=BEARER)
    assert (answer.status, answer.error) == (405, "method_not_allowed")
    assert {each.strip() for each in answer.headers["Allow"].split(",")} >= allow


@pytest.mark.parametrize(
    "who", ["a%20b/one", "a%2Fb/one", "app/..%2Fetc", "%00/one", "a%0Ab/one", "-%22/one", "x" * 300 + "/one"]
)
def test_a_name_that_is_none_is_refused(pylb: Pylb, who: str) -> None:
    answer = pylb.put(who, wants((free_port(), 30001)))
    assert answer.status in {404, 422}
    assert answer.error in {"not_found", "invalid"}


def test_whoami_needs_no_token_and_says_address_and_time(pylb: Pylb) -> None:
    answer = call(pylb.webhook, "GET", "/v1/whoami", source="127.0.0.9")
    assert answer.status == 200
    assert set(answer.json) == {"address", "time"}
    assert answer.json["address"] == "127.0.0.9"
    assert abs(answer.json["time"] - time.time()) < 60


def test_whoami_answers_head_without_a_body_and_refuses_post(pylb: Pylb) -> None:
    head = call(pylb.webhook, "HEAD", "/v1/whoami")
    assert (head.status, head.body) == (200, b"")
    assert call(pylb.webhook, "POST", "/v1/whoami").status == 405


def test_a_forwarded_for_header_of_an_untrusted_caller_is_ignored(pylb: Pylb) -> None:
    headers = {"X-Forwarded-For": "198.51.100.9", "Forwarded": "for=198.51.100.9"}
    assert call(pylb.webhook, "GET", "/v1/whoami", headers=headers).json["address"] == "127.0.0.1"


def test_a_connection_is_kept_for_the_next_call(pylb: Pylb) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", pylb.webhook, timeout=10)
    try:
        for status, method, path in [(200, "GET", "/v1/whoami"), (404, "GET", "/nothing"), (200, "GET", "/v1/whoami")]:
            connection.request(method, path)
            sock = connection.sock
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (status, True)
            assert connection.sock is sock
    finally:
        connection.close()


# ---------------------------------------------------------------- who owns what


def test_another_name_on_an_owned_port_is_409_and_names_the_owner(pylb: Pylb) -> None:
    port = free_port()
    pylb.put("owner/one", wants((port, 30001)))
    answer = pylb.put("thief/one", wants((port, 30001)))
    assert (answer.status, answer.error) == (409, "port_owned")
    assert "owner" in answer.json["detail"]
    assert str(port) in answer.json["detail"]


def test_the_same_name_of_another_token_is_409_and_names_the_owner(pylb: Pylb) -> None:
    port = free_port()
    pylb.put("shared/one", wants((port, 30001)))
    answer = pylb.put("shared/one", wants((port, 30001)), by="other")
    assert (answer.status, answer.error) == (409, "port_owned")
    assert "'app'" in answer.json["detail"]


def test_only_its_own_token_may_release_a_registration(pylb: Pylb) -> None:
    port = free_port()
    pylb.put("mine/one", wants((port, 30001)))
    assert pylb.delete("mine/one", by="other").status in {200, 403, 409}
    assert is_open(port)
    assert "mine/one" in pylb.registrations()


def test_two_instances_of_one_node_hold_one_server_until_the_last_leaves(pylb: Pylb) -> None:
    port, target = free_ports(2)
    with serving("app", target, "127.0.0.2"):
        for instance in ("old", "new"):
            pylb.put(f"rolling/{instance}", wants((port, target)), source="127.0.0.2")
        assert pylb.put("rolling/old", wants((port, target), state="draining"), source="127.0.0.2").status == 200
        assert answers(port) == "app"
        assert pylb.delete("rolling/old", source="127.0.0.2").status == 200
        assert answers(port) == "app"
        held = [s["held_by"] for f in pylb.get("/v1/table").json["frontends"] if f["port"] == port for s in f["servers"]]
        assert held == [["app/rolling/new"]]
        pylb.delete("rolling/new", source="127.0.0.2")
        assert not is_open(port)


def test_a_draining_server_is_left_alone_while_a_fresh_one_is_there_and_is_the_last_resort(pylb: Pylb) -> None:
    port, target = free_ports(2)
    with serving("a", target, "127.0.0.2"), serving("b", target, "127.0.0.3"):
        pylb.put("drains/a", wants((port, target)), source="127.0.0.2")
        pylb.put("drains/b", wants((port, target)), source="127.0.0.3")
        pylb.put("drains/a", wants((port, target), state="draining"), source="127.0.0.2")
        assert {answers(port) for _ in range(6)} == {"b"}
        pylb.put("drains/b", wants((port, target), state="draining"), source="127.0.0.3")
        assert {answers(port) for _ in range(6)} <= {"a", "b"}
        pylb.put("drains/a", wants((port, target)), source="127.0.0.2")
        assert {answers(port) for _ in range(6)} == {"a"}


def test_a_moved_server_that_does_not_answer_keeps_the_proven_one_in_service(pylb: Pylb) -> None:
    port, target = free_ports(2)
    with serving("old", target, "127.0.0.2"):
        pylb.put("unproven/one", wants((port, target)), source="127.0.0.2")
        moved = pylb.put("unproven/one", wants((port, target)), source="127.0.0.3")
        assert moved.json["result"] == "moved"
        assert moved.json["frontends"][0]["address"] == "127.0.0.3"
        assert moved.json["frontends"][0]["reachable"] == "refused"
        assert moved.json["frontends"][0]["hint"]
        assert answers(port) == "old"
        with serving("new", target, "127.0.0.3"):
            eventually(lambda: answers(port) == "new", what="the new one serves once it has answered")


def test_of_two_tokens_that_race_for_a_port_exactly_one_wins(pylb: Pylb) -> None:
    for _ in range(5):
        port = free_port()
        callers = [("app", f"race-{port}/one"), ("other", f"rival-{port}/one")] * 5
        with ThreadPoolExecutor(len(callers)) as pool:
            said = list(pool.map(lambda who: pylb.put(who[1], wants((port, 30001)), by=who[0]), callers))  # noqa: B023
        winners = {by for (by, _), answer in zip(callers, said, strict=True) if answer.status in {200, 201}}
        assert len(winners) == 1
        assert [answer.status for answer in said].count(201) == 1
        assert all(answer.error == "port_owned" for answer in said if answer.status not in {200, 201})
        [held] = [s["held_by"] for f in pylb.get("/v1/table").json["frontends"] if f["port"] == port for s in f["servers"]]
        assert [each.partition("/")[0] for each in held] == list(winners)
