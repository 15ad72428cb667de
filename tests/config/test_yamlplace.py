"""YAML's own traps and bombs, and JSON."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.config import ConfigErrors, Position, Problem, parse
from pylb.config.yamlplace import MAX_CHARACTERS, MAX_NODES


def mistakes(text: str, filename: str = "pylb.yaml") -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, filename)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "admin: {listen: *:8404}",
            'pylb.yaml:1:17: error: a bare * is YAML\'s sign for an alias (quote it, as in "*:443" or "*")',
        ),
        (
            "defaults:\n  bind: *\n",
            'pylb.yaml:2:9: error: a bare * is YAML\'s sign for an alias (quote it, as in "*:443" or "*")',
        ),
        (
            "tokens: [{name: a, secret: aaaaaaaaaaaaaaaaaaaaaa, ports: [22:30]}]",
            "1:60: error: 22:30 is a number in base 60 for YAML: 1350 (quote it, as in",
        ),
        ("defaults: {retries: 010}", "pylb.yaml:1:21: error: 010 is a number in base 8 for YAML: 8 (quote it, as in"),
        (
            "advertise: no",
            "false is not a host name or IP address (YAML reads a bare yes, no, on, off as true or false: quote it)",
        ),
        ("advertise: 1.5", '1.5 is a number, not a host name or IP address (quote it: "1.5")'),
        (
            "admin: {listen: 8404}",
            'pylb.yaml:1:17: error: 8404 is a port without an address (write "*:8404" for all addresses)',
        ),
        ('admin: {listen: ":8404"}', "pylb.yaml:1:17: error: '' is not an IP address (write \"*:8404\" for all addresses)"),
        ("admin:\n  listen: [2001:db8::9]:443", '(quote IPv6 addresses, as in "[2001:db8::9]:443")'),
        ("admin:\n\tlisten: a", "(YAML indents with spaces, not with tabs)"),
        ("a: b: c", "pylb.yaml:1:5: error: not YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "pylb.yaml:2:1: error: not YAML: but found another document"),
        ("a: \x07", "pylb.yaml:1:4: error: the character '\\x07' is not allowed"),
        (
            "advertise: !!python/object:os.system x",
            "error: the YAML tag 'tag:yaml.org,2002:python/object:os.system' does not belong here",
        ),
        ("<<: {log: {}}", "unknown key '<<'"),
        ("[a]: 1", "unknown key 'a list or mapping as a key'"),
        ("a: &x [*x]", "more than 100000 values, or an alias inside itself"),
        ("log: " + "[" * 30, "nested deeper than 16 levels"),
        ("#" * (MAX_CHARACTERS + 1), "the file has more than 1048576 characters"),
    ],
)
def test_a_trap_is_named_with_what_to_write_instead(text: str, message: str) -> None:
    assert any(message in line for line in mistakes(text)), mistakes(text)


def test_an_unquoted_asterisk_does_not_hide_the_mistakes_behind_it() -> None:
    found = mistakes("frontends:\n  - {name: a, listen: *:443}\n  - {name: b, listen: *:443, servres: []}\n")
    assert [line.split(" error: ")[0] for line in found] == [
        "pylb.yaml:2:23:",
        "pylb.yaml:3:23:",
        "pylb.yaml:3:23:",
        "pylb.yaml:3:30:",
    ]
    assert "frontend 'b' cannot listen on *:443" in found[2]


def test_aliases_are_followed_but_not_into_a_bomb() -> None:
    shared = parse("tokens: []\npublic_addresses: &a [192.0.2.1]\ntrusted_proxies: *a\n", "pylb.yaml")
    assert [str(network) for network in shared.trusted_proxies] == ["192.0.2.1/32"]
    levels = [f"  - &l{n} [" + ", ".join([f"*l{n - 1}"] * 10) + "]" for n in range(1, 10)]
    bomb = "tokens:\n  - &l0 x\n" + "\n".join(levels)
    assert f"more than {MAX_NODES} values" in mistakes(bomb)[0]


def test_a_json_file_is_read_with_its_tabs_and_escapes() -> None:
    data = {
        "advertise": "lb.example.net",
        "frontends": [{"name": "mqtt", "listen": "*:8443", "servers": ["198.51.100.7:30843"]}],
    }
    for indent in ("\t", 2, None):
        config = parse(json.dumps(data, indent=indent).replace("/", "\\/"), "pylb.json")
        assert config.frontends[0].servers[0].address.port == 30843
    assert mistakes('{\n\t"logg": 1\n}', "pylb.json")[0].startswith("pylb.json:2:2: error: unknown key 'logg'")


def test_empty_sections_are_no_mistake_but_an_empty_scope_of_a_token_is() -> None:
    config = parse(
        "webhook:\ntokens:\nfrontends:\ndefaults:\n  timeouts:\n  health:\nlog:\nadvertise:\nstate_dir:\n", "pylb.yaml"
    )
    assert config == parse("", "pylb.yaml")
    assert "'sources' has no value" in mistakes("tokens:\n  - name: a\n    secret_file: a\n    ports: [1]\n    sources:\n")[0]


_KEYS = ["webhook", "listen", "tls", "admin", "log", "tokens", "name", "secret", "ports", "targets", "defaults", "timeouts"]
_MORE = [
    "connect",
    "frontends",
    "servers",
    "address",
    "health",
    "weight",
    "workers",
    "state_dir",
    "advertise",
    "metrics",
    "x",
    "<<",
]
_TEXTS = [
    "*:443",
    "127.0.0.1:9000",
    "self-signed",
    "5s",
    "any",
    "22:30",
    "010",
    "a",
    "\ud800",
    "0x1f",
    "1e400",
    ".nan",
    "-1",
    "9" * 50,
]
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(_TEXTS) | st.text(max_size=8)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS + _MORE), inner, max_size=5),
    max_leaves=25,
)


def _problems(text: str, filename: str) -> list[Problem]:
    try:
        parse(text, filename).rules()
    except ConfigErrors as errors:
        return errors.problems or [Problem(filename, Position(), "raised, but said nothing")]
    return []


def _check(text: str, filename: str) -> None:
    lines = len(re.split("\r\n|[\r\n\x85\u2028\u2029]", text))
    for problem in _problems(text, filename):
        assert 1 <= problem.place.line <= lines
        assert problem.place.col >= 1
        assert "\n" not in str(problem)


@given(st.text(max_size=200) | st.text("{}[]:,-*&!|>#'\"\n\t a1", max_size=60))
def test_any_text_is_a_config_or_gets_errors_with_lines_inside_it(text: str) -> None:
    _check(text, "pylb.yaml")


@given(st.dictionaries(st.sampled_from(_KEYS + _MORE), _TREES, max_size=6), st.booleans())
def test_any_tree_of_known_keys_is_a_config_or_gets_errors_with_lines_inside_it(tree: dict[str, object], bare: bool) -> None:
    text = json.dumps(tree, indent=1)
    _check(text.replace('"', "") if bare else text, "pylb.json")
