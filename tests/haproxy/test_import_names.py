"""`use_backend` by the server name of TLS becomes a route; whatever pylb would decide differently is a difference."""

from dataclasses import replace
from typing import Any

import pytest
import yaml

from pylb.config import parse
from pylb.core.server_names import find_route
from pylb.haproxy.translate import translate
from tests.haproxy.test_translate import differences, frontends, notes

BACKENDS = "".join(f"backend {name}\n server {name} 192.0.2.{number}:30443\n" for number, name in enumerate("abc", 1))
DELAY = " tcp-request inspect-delay 3s\n tcp-request content accept if { req.ssl_hello_type 1 }\n"


def routed(*lines: str, backends: str = BACKENDS, delay: str = DELAY) -> str:
    return f"frontend f\n bind *:443\n{delay}" + "".join(f" {line}\n" for line in lines) + backends


def routes(*lines: str) -> dict[str, str]:
    """The server of each server name; "": of the default route."""
    [found] = frontends(routed(*lines))
    places = [{"server_names": [""], "servers": found["servers"]}] if found["servers"] else []
    return {name: one["servers"][0]["name"] for one in (*places, *found.get("routes", ())) for name in one["server_names"]}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["use_backend b if { req.ssl_sni -i git.example.net }"], {"git.example.net": "b"}),
        (["use_backend b if { req_ssl_sni a.net b.net }"], {"a.net": "b", "b.net": "b"}),
        (["use_backend b if { req.ssl_sni -m end -i .example.net }"], {"**.example.net": "b"}),
        (["use_backend b if { req.ssl_sni,lower -m str -- A.net }"], {"a.net": "b"}),
        (["use_backend b if { req.ssl_hello_type 1 } { req.ssl_sni a.net }"], {"a.net": "b"}),
        (["use_backend b if { req.ssl_sni a.net } or { req.ssl_sni -m end .b.net }"], {"a.net": "b", "**.b.net": "b"}),
        (["acl n req.ssl_sni a.net", "acl n req.ssl_sni b.net", "use_backend b if n"], {"a.net": "b", "b.net": "b"}),
        (["use_backend b if { dst_port 443 } { req.ssl_sni a.net }"], {"a.net": "b"}),
        (["use_backend b if { dst_port 80 } { req.ssl_sni a.net }"], {}),
        (["use_backend b if { req.ssl_sni a.net } or { always_false }"], {"a.net": "b"}),
        (
            ["use_backend b if { req.ssl_sni a.net }", "use_backend c if { req.ssl_sni a.net b.net }"],
            {"a.net": "b", "b.net": "c"},
        ),
        (["use_backend b", "use_backend c if { req.ssl_sni a.net }"], {"": "b"}),
    ],
)
def test_names_become_routes(lines: list[str], expected: dict[str, str]) -> None:
    assert routes("default_backend a", *lines) == {"": "a"} | expected
    assert differences(routed("default_backend a", *lines)) == []


@pytest.mark.parametrize("suffix_first", [True, False])
def test_the_first_rule_wins_as_in_haproxy_although_in_pylb_the_closest_name_does(suffix_first: bool) -> None:
    rules = [
        ("b", lambda asked: asked.endswith(".example.net"), "{ req.ssl_sni -i -m end .example.net }"),
        ("c", lambda asked: asked == "git.example.net", "{ req.ssl_sni -i git.example.net }"),
        ("a", lambda asked: asked.endswith(".apps.example.net"), "{ req.ssl_sni -i -m end .apps.example.net }"),
    ]
    if not suffix_first:
        rules.reverse()
    found = routes(*(f"use_backend {name} if {test}" for name, _, test in rules))
    for asked in ("git.example.net", "x.example.net", "y.apps.example.net", "x.y.apps.example.net", "example.net"):
        assert find_route(found, asked) == next((name for name, holds, _ in rules if holds(asked)), None), asked


@pytest.mark.parametrize(
    "condition",
    [
        "if { req.ssl_sni -m reg git }",
        "if { req.ssl_sni -m end example.net }",
        "if { req.ssl_sni GIT.example.net }",
        "if { req.ssl_sni -f /etc/names }",
        "if { req.ssl_sni *.example.net }",
        "if { req.ssl_sni a..net }",
        "if !{ req.ssl_sni a.net }",
        "if ! { req.ssl_sni a.net }",
        "unless { req.ssl_sni a.net }",
        "if { req.ssl_sni a.net } { req.ssl_sni b.net }",
        "if { req.ssl_sni a.net } { src 10.0.0.0/8 }",
        "if { req.ssl_sni a.net } unknown",
        "if { ssl_fc_sni a.net }",
        "if { req.ssl_hello_type 1 }",
    ],
)
def test_what_pylb_cannot_tell_is_a_difference(condition: str) -> None:
    [found] = differences(routed("default_backend a", f"use_backend b {condition}"))
    assert f"use_backend b {condition}: HAProxy would send some connections to b" in found


def test_a_frontend_without_default_backend_has_only_routes_and_waits_as_long_as_haproxy() -> None:
    [found] = frontends(routed("use_backend b if { req.ssl_sni a.net }"))
    assert (found["servers"], found["timeouts"]["hello"]) == ([], "3s")
    assert notes(routed("use_backend b if { req.ssl_sni a.net }")) == [
        "6: backend a is left out: no frontend sends to it",
        "10: backend c is left out: no frontend sends to it",
    ]


def test_without_inspect_delay_haproxy_would_rarely_know_the_name() -> None:
    text = routed("default_backend a", "use_backend b if { req.ssl_sni a.net }", delay="")
    assert differences(text) == []
    assert any("without tcp-request inspect-delay HAProxy would choose" in note for note in notes(text))


SPECIAL = """
backend a
 balance leastconn
 timeout server 5s
 default-server check inter 5s rise 1 send-proxy-v2
 server a 192.0.2.1:30443
backend b
 server b 192.0.2.2:30443
backend c
 default-server check
 server c 192.0.2.3:30443 slowstart 9s
"""
BOTH = ("default_backend a", "use_backend b if { req.ssl_sni b.net }", "use_backend c if { req.ssl_sni c.net }")


def policies(text: str) -> dict[str, Any]:
    config = parse(yaml.safe_dump(yaml.safe_load(translate([("h", text)]).text)), "pylb.yaml")
    return {one.listen.server_name: one.policy for one in config.rules().frontends}


def test_a_route_has_the_settings_of_its_backend_and_inherits_none_of_the_default_one() -> None:
    """Each is what it would be in a frontend of its own."""
    found = policies(routed(*BOTH, backends=SPECIAL))
    for name in "bc":
        own = policies(routed(f"default_backend {name}", backends=SPECIAL))[""]
        route = found[f"{name}.net"]
        for key in ("balance", "retries", "send_proxy"):
            assert getattr(route, key) == getattr(own, key), (name, key)
        assert replace(route.timeouts, hello=own.timeouts.hello) == own.timeouts
        assert (route.health.mode, route.health.refuses) == (own.health.mode, own.health.refuses)
        if name == "c":
            assert route.health == own.health


def test_what_only_a_frontend_can_have_is_a_difference() -> None:
    [found] = differences(routed(*BOTH, backends=SPECIAL))
    assert "the route to c: HAProxy would have another slow_start there than for the other clients" in found
