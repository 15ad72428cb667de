"""Names of routes: which are refused and why, which one a client gets, and what a token's scope covers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.server_names import MOST, covers, find_route, parse_scope, parse_server_name


@pytest.mark.parametrize(
    "text",
    ["git.example.net", "localhost", "_x.a-b.net", "*.apps.example.net", "**.example.net", "xn--bcher-kva.example", "*.net"],
)
def test_a_name_that_clients_can_send(text: str) -> None:
    assert parse_server_name(text) == text


def test_case_does_not_matter() -> None:
    assert parse_server_name("*.Apps.Example.NET") == "*.apps.example.net"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "default route"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("\ud800.example", "not ASCII"),
        ("git.example.net.", "without it"),
        ("a." * 127 + "net", f"at most {MOST}"),
        ("192.0.2.7", "no server name"),
        ("2001:db8::7", "no server name"),
        ("[2001:db8::7]", "no server name"),
        ("*", "default route"),
        ("**", "default route"),
        ("a*.example.net", "whole labels"),
        ("a.*.example.net", "only at the beginning"),
        ("*.*.example.net", "only at the beginning"),
        ("***.example.net", "whole labels"),
        ("a..net", "a label is empty"),
        (".net", "a label is empty"),
        ("*.", "without it"),
        ("-a.net", "'-' not first"),
        ("a b.net", "is not a label"),
        ("a" * 64 + ".net", "up to 63"),
        ("https://git.example.net", "is not a label"),
        ("git.example.net:443", "is not a label"),
    ],
)
def test_a_name_that_no_client_can_send_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_server_name(text)


def test_a_scope_may_be_any_name() -> None:
    assert parse_scope("*") == "*"
    assert parse_scope("*.Example.net") == "*.example.net"
    with pytest.raises(ValueError, match="default route"):
        parse_scope("**")


@pytest.mark.parametrize(
    ("scope", "covered", "not_covered"),
    [
        ("*", ("a.net", "*.a.net", "**.net", "localhost"), ()),
        ("a.net", ("a.net",), ("b.a.net", "*.a.net", "**.a.net", "aa.net", "net")),
        ("*.a.net", ("b.a.net", "*.a.net"), ("a.net", "c.b.a.net", "*.b.a.net", "**.a.net", "b.aa.net")),
        (
            "**.a.net",
            ("b.a.net", "c.b.a.net", "*.a.net", "*.b.a.net", "**.a.net", "**.b.a.net"),
            ("a.net", "b.aa.net", "**.net"),
        ),
    ],
)
def test_what_a_tokens_scope_covers(scope: str, covered: tuple[str, ...], not_covered: tuple[str, ...]) -> None:
    assert [name for name in covered if not covers(scope, name)] == []
    assert [name for name in not_covered if covers(scope, name)] == []


ROUTES = {
    name: name for name in ("git.example.net", "*.example.net", "**.example.net", "**.net", "*.apps.example.net", "localhost")
}


@pytest.mark.parametrize(
    ("asked", "route"),
    [
        ("git.example.net", "git.example.net"),
        ("www.example.net", "*.example.net"),
        ("a.b.example.net", "**.example.net"),
        ("a.apps.example.net", "*.apps.example.net"),
        ("a.b.apps.example.net", "**.example.net"),
        ("example.net", "**.net"),
        ("localhost", "localhost"),
        ("net", None),
        ("git.example.org", None),
        ("", None),
        (".example.net", None),
        ("git.example.net.", None),
        ("\xc0\x1b.org", None),
        ("a." * 200 + "example.net", None),
    ],
)
def test_the_most_exact_name_has_the_client(asked: str, route: str | None) -> None:
    assert find_route(ROUTES, asked) == route


LABELS = st.lists(st.sampled_from(("a", "b", "net")), min_size=1, max_size=4)
PATTERNS = st.builds(lambda star, labels: ".".join([*star, *labels]), st.sampled_from(((), ("*",), ("**",))), LABELS)


def matches(pattern: str, name: str) -> bool:
    """Written down as the words say it."""
    first, *rest = pattern.split(".")
    labels = name.split(".")
    if first == "*":
        return labels[1:] == rest
    return labels[-len(rest) :] == rest and len(labels) > len(rest) if first == "**" else pattern == name


@given(patterns=st.sets(PATTERNS, max_size=8), labels=LABELS)
def test_the_route_is_the_narrowest_that_matches(patterns: set[str], labels: list[str]) -> None:
    name = ".".join(labels)
    fitting = [one for one in patterns if matches(one, name)]
    # exact before one star before two, a longer name before a shorter one
    best = max(fitting, key=lambda one: (not one.startswith("*"), not one.startswith("**"), len(one.split("."))), default=None)
    assert find_route({one: one for one in patterns}, name) == best


@given(scope=PATTERNS, pattern=PATTERNS, labels=LABELS)
def test_whoever_may_register_a_name_gets_no_client_outside_the_scope(scope: str, pattern: str, labels: list[str]) -> None:
    name = ".".join(labels)
    if covers(scope, pattern) and matches(pattern, name):
        assert matches(scope, name)
