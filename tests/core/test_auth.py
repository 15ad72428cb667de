"""Tokens and their scopes."""

import pytest

from pylb.core.address import Ports, parse_network, parse_ports
from pylb.core.auth import (
    Caller,
    Keyring,
    Token,
    check_name,
    check_port,
    check_server_name,
    check_source,
    fingerprint,
)
from pylb.core.errors import Code, Refused

STRONG = "correct-horse-battery-staple"


def token(**changes: object) -> Token:
    given: dict[str, object] = {"name": "mosquitto", "secrets": (STRONG,), "ports": parse_ports([8443, "8883-8899"])}
    return Token(**(given | changes))  # type: ignore[arg-type]


def refusal(call: object, *args: object) -> Refused:
    with pytest.raises(Refused) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value


def test_a_secret_finds_its_token_and_nothing_else_does() -> None:
    other = token(name="other", secrets=("another-secret-of-some-length", "its-successor-while-rotating"))
    keyring = Keyring([token(), other])
    assert keyring.find(STRONG) is keyring.tokens[0]
    assert keyring.find("its-successor-while-rotating") is other
    assert keyring.find(STRONG + "x") is None
    assert keyring.find("\udcff\udcfe") is None  # bytes of a header that are no UTF-8


def test_a_keyring_has_a_token_only_just_as_it_is() -> None:
    keyring = Keyring([token(), token(name="other")])
    assert keyring.has(token())
    assert not keyring.has(token(takeover=True))
    assert not keyring.has(token(name="third"))


def test_an_empty_secret_is_nobodys_even_if_a_token_has_an_empty_one() -> None:
    keyring = Keyring([token(secrets=("", "\n"))])
    assert keyring.find("") is None
    assert keyring.find("\n") is None


def test_a_trailing_newline_of_the_configured_secret_does_not_count() -> None:
    assert Keyring([token(secrets=(STRONG + "\n",))]).find(STRONG) is not None


def test_a_weak_secret_is_known_only_where_weak_ones_are_allowed() -> None:
    keyring = Keyring([token(secrets=("short",))])
    assert keyring.find("short", "legacy") is not None
    assert keyring.find("short", "native") is None


def test_a_token_that_is_not_for_the_legacy_route_is_not_known_there() -> None:
    keyring = Keyring([token(legacy=False)])
    assert keyring.find(STRONG, "native") is not None
    assert keyring.find(STRONG, "legacy") is None


def test_a_token_never_shows_its_secrets() -> None:
    assert STRONG not in repr(token())


def test_a_secret_where_none_belongs_is_not_quoted_cut_or_whole() -> None:
    long, other, short = "first-secret-of-the-mail-token-0123456789", "second-secret-of-the-mail-token-012345678", "mail"
    keyring = Keyring([token(secrets=(long + "\n", other)), token(secrets=(short,))])
    text = f"mail: {long}, {long[:40]}…, {other[:22]}/{long}; {long[:21]}"
    assert keyring.without_secrets(text) == f"mail: [secret], [secret]…, [secret]/[secret]; {long[:21]}"
    assert keyring.without_secrets("") == ""


def test_sources_bound_from_where_a_token_may_be_used() -> None:
    inside = token(sources=(parse_network("203.0.113.0/24"),))
    check_source(Caller("203.0.113.7", inside))
    refused = refusal(check_source, Caller("198.51.100.7", inside))
    assert refused.code is Code.SOURCE_FORBIDDEN
    check_source(Caller("2001:db8::7", token()))


def test_a_token_may_use_its_own_name_or_those_listed_or_any() -> None:
    check_name(token(), "mosquitto")
    assert refusal(check_name, token(), "traefik").code is Code.NAME_FORBIDDEN
    check_name(token(names=("traefik", "unifi")), "unifi")
    assert "traefik, unifi" in refusal(check_name, token(names=("traefik", "unifi")), "mosquitto").detail
    check_name(token(names=("*",)), "whatever")


def test_a_token_opens_only_its_ports_and_never_pylbs_own() -> None:
    check_port(token(), 8890, frozenset())
    refused = refusal(check_port, token(), 22, frozenset())
    assert (refused.code, "8443, 8883-8899" in refused.detail) == (Code.PORT_FORBIDDEN, True)
    assert "pylb's own" in refusal(check_port, token(), 8443, frozenset({8443})).detail
    assert "none" in refusal(check_port, token(ports=Ports(())), 443, frozenset()).detail


def test_the_first_runs_token_opens_any_port_but_some() -> None:
    first = token(ports=Ports(()), any_port_except=frozenset({22, 9000}))
    check_port(first, 443, frozenset())
    assert "any except 22, 9000" in refusal(check_port, first, 22, frozenset()).detail


def test_the_registrations_of_a_replaced_token_are_its_heirs_if_it_might_have_made_them() -> None:
    heir = token(name="new", names=("web",), replaces=("old",), legacy=False)
    keyring = Keyring([token(name="old"), heir])
    assert keyring.has_heirs
    assert not Keyring([token()]).has_heirs
    assert keyring.heir("old", "web", [8443], legacy=False) == "new"
    assert keyring.heir("old", "web", [22], legacy=False) == "old"  # a port that the new one may not open
    assert keyring.heir("old", "mail", [8443], legacy=False) == "old"  # a name
    assert keyring.heir("old", "web", [8443], legacy=True) == "old"  # the new one is not for the legacy route
    assert keyring.heir("other", "web", [8443], legacy=False) == "other"


def test_a_secret_is_told_apart_by_a_fingerprint_that_does_not_show_it() -> None:
    assert fingerprint(STRONG) == fingerprint(STRONG) != fingerprint(STRONG + "x")
    assert len(fingerprint(STRONG)) == 8


def test_a_token_registers_the_server_names_of_its_scope_and_without_one_default_routes_only() -> None:
    check_server_name(token(), "")
    found = refusal(check_server_name, token(), "git.example.net")
    assert found.code is Code.NAME_FORBIDDEN
    assert "may not register the server name 'git.example.net' (it may: none)" in found.detail
    scoped = token(server_names=("git.example.net", "*.apps.example.net"))
    for name in ("", "git.example.net", "*.apps.example.net", "a.apps.example.net"):
        check_server_name(scoped, name)
    found = refusal(check_server_name, scoped, "**.apps.example.net")
    assert "it may: git.example.net, *.apps.example.net" in found.detail
    check_server_name(token(server_names=("*",)), "any.net")


def test_an_heir_takes_over_only_names_of_its_own_scope() -> None:
    keyring = Keyring([token(name="new", names=("web",), replaces=("old",), server_names=("*.example.net",))])
    for names, owner in ((["a.example.net", ""], "new"), (["a.example.org"], "old")):
        assert keyring.heir("old", "web", [8443], legacy=False, server_names=names) == owner
