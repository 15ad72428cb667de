"""A setting that nobody would read because another one is missing: refused at its place, with what is missing."""

import pytest

from pylb.config import ConfigErrors, parse


def frontend(more: str, defaults: str = "{}") -> str:
    return f'defaults: {defaults}\nfrontends: [{{name: a, listen: "*:1", {more}}}]'


def server(more: str) -> str:
    return f'servers: [{{address: "192.0.2.1:8080", {more}}}]'


SERVERS = 'servers: ["192.0.2.1:8080"]'
NO_PROXIES = "no proxy is named from which a header is accepted"
NO_V2 = "servers are not sent a PROXY header of version 2"
NO_FULL = "no server has max_connections, so none is ever full"
NO_CHECKS = "the mode is none, so there are no checks"
TLVS = "proxy_protocol: {pass_tlvs: true, send: v2}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (frontend(TLVS), f"proxy_protocol.pass_tlvs has no effect: {NO_PROXIES} (accept_from: "),
        (
            frontend(f"{SERVERS}, proxy_protocol: {{pass_tlvs: true, accept_from: [192.0.2.0/24]}}"),
            f"proxy_protocol.pass_tlvs has no effect: {NO_V2} (send: v2)",
        ),
        (frontend(f"{SERVERS}, proxy_protocol: {{send: v1, crc32c: true}}"), f"proxy_protocol.crc32c has no effect: {NO_V2}"),
        (frontend(f"{SERVERS}, proxy_protocol: {{unique_id: true}}"), f"proxy_protocol.unique_id has no effect: {NO_V2}"),
        (frontend("proxy_protocol: {accept_timeout: 9s}"), f"proxy_protocol.accept_timeout has no effect: {NO_PROXIES}"),
        (frontend("max_queue: 9"), f"max_queue has no effect: {NO_FULL}"),
        (frontend(f"{SERVERS}, timeouts: {{queue: 9s}}"), f"timeouts.queue has no effect: {NO_FULL}"),
        (frontend("limits: {ipv6_prefix: 48}"), "limits.ipv6_prefix has no effect: neither limits.per_source nor"),
        (frontend("slow_start: 9s, balance: first"), "slow_start has no effect: with balance: first there are no shares"),
        (frontend("freebind: true"), "freebind has no effect: it listens on all addresses"),
        (frontend("on_down: close, health: {mode: none}"), "on_down has no effect: health.mode is none"),
        (frontend("health: {mode: none, check: {http: /up}}"), f"health.check has no effect: {NO_CHECKS}"),
        (frontend("health: {mode: none, when_all_down: refuse}"), f"health.when_all_down has no effect: {NO_CHECKS}"),
        (frontend("health: {interval: 5s}", "{health: {mode: none}}"), f"health.interval has no effect: {NO_CHECKS}"),
        (frontend(f"health: {{mode: none}}, {server('health: {port: 1}')}"), "health of 192.0.2.1:8080 has no effect"),
        (frontend(server("resolve: ipv4")), "resolve has no effect: 192.0.2.1:8080 is an address"),
        (frontend(f"balance: first, {server('weight: 2')}"), "weight of 192.0.2.1:8080 has no effect"),
        (frontend(server("health: {check: {http: /up, port: 1}, port: 2}")), "check is given twice: 1 and 2 (remove one"),
        ("defaults: {proxy_protocol: {pass_tlvs: true}}", f"1:40: error: proxy_protocol.pass_tlvs has no effect: {NO_PROXIES}"),
        ("defaults: {freebind: true}", "1:22: error: freebind has no effect"),
        ("log: {format: none, target: 'file:/x'}", "1:29: error: log.target has no effect: the format is none"),
        ("log: {format: none, sample: 9}", "1:29: error: log.sample has no effect: the format is none"),
        ("log: {format: none, dontlognull: true}", "1:34: error: log.dontlognull has no effect: the format is none"),
        ("log: {facility: local1}", "1:17: error: log.facility has no effect: stdout is not a syslog (target: udp:"),
        ("log: {tag: haproxy, target: 'file:/x'}", "1:12: error: log.tag has no effect: file:/x is not a syslog"),
        (
            "tokens: [{name: a, secret: hunter-2, ports: [1], allow_weak: true, legacy: false}]",
            "1:62: error: allow_weak of token 'a' has no effect: weak secrets work on the legacy route only",
        ),
        (
            "admin: {peers: [{name: me, url: 'http://127.0.0.1:8404/'}]}",
            "1:33: error: me has no effect: http://127.0.0.1:8404 is this pylb itself (name the others only)",
        ),
        ("metrics: {allow: [192.0.2.1]}", "1:18: error: metrics.allow without metrics.listen has no effect"),
    ],
)
def test_it_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "pylb.yaml")
    [line] = str(caught.value).splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ("timeouts: {queue: 9s}", f"timeouts.queue has no effect: {NO_FULL}"),
        ("max_queue: 9", f"max_queue has no effect: {NO_FULL}"),
        ("health: {mode: none, interval: 9s}", f"health.interval has no effect: {NO_CHECKS}"),
        ("limits: {ipv6_prefix: 48}", "limits.ipv6_prefix has no effect"),
        ("resolve_interval: 9s", "resolve_interval has no effect: no server is a host name"),
    ],
)
def test_a_value_for_frontends_to_come_is_a_warning(defaults: str, message: str) -> None:
    [warning] = parse(f"defaults: {{{defaults}}}", "pylb.yaml").warnings
    assert f"warning: {message}" in warning


@pytest.mark.parametrize(
    "text",
    [
        frontend("proxy_protocol: {accept_from: [192.0.2.1], send: v2}", "{proxy_protocol: {pass_tlvs: true}}"),
        frontend("proxy_protocol: {accept_from: [192.0.2.1], accept_timeout: 9s}"),
        frontend(
            "proxy_protocol: {pass_tlvs: true}", "{proxy_protocol: {accept_from: [192.0.2.1]}}"
        ),  # registrations may want v2
        "defaults: {proxy_protocol: {crc32c: true}}",
        frontend(f"{server('max_connections: 1')}, max_queue: 9, timeouts: {{queue: 9s}}"),
        frontend(server("max_connections: 1"), "{max_queue: 9, timeouts: {queue: 9s}}"),
        frontend("limits: {ipv6_prefix: 48, per_source: 1}"),
        frontend("slow_start: 9s"),
        frontend(server("weight: 2")),
        frontend(f"balance: first, {server('weight: 0')}"),
        frontend("", "{freebind: true, bind: 192.0.2.1}"),
        frontend('servers: ["app.example.net:80"]', "{resolve_interval: 9s}"),
        frontend("health: {mode: none}", "{health: {check: {http: /up}, when_all_down: refuse}}"),  # the frontend goes without
        frontend("health: {mode: active, interval: 5s}", "{health: {mode: none}}"),
        frontend(f"health: {{check: {{http: /up}}}}, {SERVERS}"),
        "log: {facility: local1, tag: haproxy, target: 'unix:/dev/log'}",
        # What holds anyway, written down:
        frontend(f"{SERVERS}, max_queue: 0, timeouts: {{queue: 5s}}, freebind: false, proxy_protocol: {{pass_tlvs: false}}"),
        "log: {target: stdout, format: none}",
    ],
)
def test_what_has_its_effect_is_taken_without_a_word(text: str) -> None:
    assert parse(text, "pylb.yaml").warnings == ()


def test_nothing_is_said_of_defaults_while_a_frontend_cannot_be_read() -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(frontend("balance: x", "{freebind: true}"), "pylb.yaml")
    [line] = str(caught.value).splitlines()
    assert "is not a way to balance" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "webhook: {listen: 127.0.0.1:1, legacy: false}\ntokens: [{name: a, secret_file: /x, ports: [1], allow_weak: true}]",
            "2:61: warning: allow_weak of token 'a' has no effect: no webhook serves the legacy route",
        ),
        (
            "tokens: [{name: a, secret_file: /x, ports: [1], replaces: [a, old]}]",
            "1:59: warning: replaces has no effect for the token itself",
        ),
    ],
)
def test_what_a_token_says_in_vain_is_a_warning(text: str, message: str) -> None:
    """An old token may stay when its route is closed: that must not stop a reload."""
    assert [f"pylb.yaml:{message}" in str(one) for one in parse(text, "pylb.yaml").warnings] == [True]
