"""Frontends of UDP in the config: how the protocol is written, and which keys it has no use for."""

import pytest

from pylb.config import ConfigErrors, parse
from pylb.config.root import Config, token_of
from pylb.core.address import TCP, UDP, Address, Listen
from pylb.core.policy import CONNECT, CheckKind, ProxyProtocol, StaticFrontend

CHECK = "health: {check: {http: /healthz, port: 10256}}"


def frontend(more: str, defaults: str = "{}") -> str:
    return f'defaults: {defaults}\nfrontends: [{{name: a, listen: "*:1", servers: ["192.0.2.1:8080"], {more}}}]'


def only(config: Config) -> StaticFrontend:
    [found] = config.rules().frontends
    return found


@pytest.mark.parametrize(
    "written", ['protocol: udp, listen: "*:3478"', 'listen: "*:3478/udp"', 'protocol: udp, listen: "*:3478/udp"']
)
def test_the_protocol_is_a_key_or_stands_behind_the_port(written: str) -> None:
    config = parse(f'frontends: [{{name: stun, {written}, servers: ["192.0.2.1:8080"], {CHECK}}}]', "pylb.yaml")
    assert only(config).listen == Listen(UDP, "*", 3478)
    assert [server.address for server in only(config).servers] == [Address("192.0.2.1", 8080, UDP)]
    assert not config.warnings


def test_without_a_word_it_is_tcp() -> None:
    assert only(parse('frontends: [{name: a, listen: "*:1/tcp"}]', "pylb.yaml")).listen == Listen(TCP, "*", 1)


def test_a_port_of_tcp_and_one_of_udp_are_two_and_a_server_may_have_the_other_s_number() -> None:
    text = f"""
        frontends:
          - {{name: web, listen: "*:443", servers: ["192.0.2.1:30443"]}}
          - {{name: quic, listen: "*:443/udp", servers: ["127.0.0.1:443"], {CHECK}, registrations: any}}
    """
    with pytest.raises(ConfigErrors, match=r"127\.0\.0\.1:443 is frontend 'quic' of pylb itself: a loop"):
        parse(text, "pylb.yaml")
    config = parse(text.replace('"*:443"', '"*:444"').replace("127.0.0.1:443", "127.0.0.1:444"), "pylb.yaml")
    assert [str(one.listen) for one in config.rules().frontends] == ["*:444", "*:443/udp"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('frontends: [{name: a, listen: "*:1/udp", protocol: tcp}]', "1:13: error: protocol tcp contradicts listen: '*:1/udp'"),
        ('frontends: [{name: a, listen: "*:1/sctp"}]', "the protocol is neither tcp nor udp"),
        ('frontends: [{name: a, listen: "*:1", protocol: quic}]', "1:48: error:"),
        (
            'frontends: [{name: a, listen: "*:1/udp"}, {name: b, protocol: udp, listen: "*:1"}]',
            "frontend 'b' cannot listen on *:1/udp: frontend 'a' does on *:1/udp",
        ),
        (frontend("responses: 1"), "2:78: error: responses has no effect: the frontend is of TCP (protocol: udp)"),
        (frontend("requests: 1"), "requests has no effect: the frontend is of TCP"),
        (frontend("timeouts: {udp_idle: 9s}"), "timeouts.udp_idle has no effect: the frontend is of TCP"),
        (frontend("proxy_protocol: {each: true}"), "proxy_protocol.each has no effect: the frontend is of TCP"),
        (frontend("protocol: udp, retries: 3"), "2:91: error: retries has no effect for UDP: a datagram is not sent"),
        (frontend("protocol: udp, max_queue: 3"), "max_queue has no effect for UDP: nothing waits"),
        (frontend("protocol: udp, timeouts: {connect: 5s}"), "timeouts.connect has no effect for UDP: there are no"),
        (frontend("protocol: udp, timeouts: {queue: 5s}"), "timeouts.queue has no effect for UDP"),
        (
            frontend("protocol: udp, timeouts: {idle: 5s}"),
            "timeouts.idle has no effect for UDP: flows have a time of their own",
        ),
        (frontend("protocol: udp, timeouts: {half_close: 5s}"), "timeouts.half_close has no effect for UDP"),
        (frontend("protocol: udp, timeouts: {flush: 5s}"), "timeouts.flush has no effect for UDP: nothing is buffered"),
        (frontend("protocol: udp, limits: {source_share: 9}"), "limits.source_share has no effect for UDP"),
        (frontend("protocol: udp, proxy_protocol: {accept_from: [192.0.2.0/24]}"), "accept_from has no effect for UDP"),
        (frontend("protocol: udp, proxy_protocol: {accept_timeout: 5s}"), "accept_timeout has no effect for UDP"),
        (frontend("protocol: udp, proxy_protocol: {pass_tlvs: true}"), "pass_tlvs has no effect for UDP: no header comes in"),
        (frontend("protocol: udp, proxy_protocol: {send: v2, unique_id: true}"), "unique_id has no effect for UDP"),
        (frontend("protocol: udp, names: allowed"), "names has no effect for UDP: names are read from TLS over TCP"),
        (
            frontend('protocol: udp, routes: [{server_names: [git.example.net], servers: ["192.0.2.1:1"]}]'),
            "routes has no effect for UDP: names are read from TLS over TCP",
        ),
        (frontend("protocol: udp, timeouts: {hello: 5s}"), "timeouts.hello has no effect for UDP"),
        (frontend("protocol: udp, proxy_protocol: {each: true}"), "proxy_protocol.each has no effect: servers are not sent"),
        (
            frontend("protocol: udp, proxy_protocol: {send: v1}"),
            "2:105: error: proxy_protocol.send: v1 cannot describe UDP (proxy_",
        ),
        (
            frontend("protocol: udp", "{proxy_protocol: {send: v1}}"),
            "2:13: error: proxy_protocol.send: v1 cannot describe UDP, and `defaults` says it for all frontends",
        ),
        (frontend("protocol: udp, health: {check: {http: /up}}"), "a connect or an HTTP request says nothing of a UDP port"),
        (frontend("protocol: udp, health: {check: tcp}"), "2:98: error: a connect or an HTTP request says nothing"),
        (
            'frontends: [{name: a, listen: "*:1/udp", servers: [{address: "192.0.2.1:8", health: {check: {http: /up}}}]}]',
            "a connect or an HTTP request says nothing of a UDP port",
        ),
        ("tokens: [{name: a, secret: a-secret-of-more-than-22-characters, ports: [1/sctp]}]", "is neither tcp nor udp"),
        (
            "tokens: [{name: a, secret: a-secret-of-more-than-22-characters, ports: [1], target_ports: [2/udp]}]",
            "'2/udp': a protocol has no place here (the number alone",
        ),
    ],
)
def test_what_means_nothing_is_refused_at_its_place_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "pylb.yaml")
    assert message in str(caught.value)


def test_defaults_that_mean_nothing_for_udp_are_not_inherited() -> None:
    text = """
        defaults: {retries: 1, max_queue: 9, health: {check: {http: /up}, interval: 9s}, timeouts: {connect: 9s, udp_idle: 9s}}
        frontends:
          - {name: dns, listen: "*:53/udp", servers: ["192.0.2.1:30053"], responses: 1}
          - {name: web, listen: "*:80", servers: ["192.0.2.1:30080"]}
    """
    dns, web = parse(text, "pylb.yaml").rules().frontends
    assert (web.policy.health.check.kind, dns.policy.health.check) == (CheckKind.HTTP, CONNECT)
    assert (dns.policy.health.interval, dns.policy.timeouts.udp_idle, dns.policy.max_queue) == (9.0, 9.0, 0)
    assert (dns.policy.responses, web.policy.responses) == (1, None)


def test_a_check_with_a_port_of_its_own_is_inherited_and_so_is_version_2() -> None:
    text = frontend("protocol: udp", "{health: {check: {http: /healthz, port: 10256}}, proxy_protocol: {send: v2}}")
    config = parse(text, "pylb.yaml")
    assert only(config).policy.health.check.port == 10256
    assert only(config).policy.send_proxy is ProxyProtocol.V2
    assert not config.warnings


@pytest.mark.parametrize("more", ["", ", health: {mode: active}", ", health: {mode: none}"])
def test_servers_whose_silent_death_nobody_would_see_are_warned_about(more: str) -> None:
    config = parse(f'frontends: [{{name: a, listen: "*:1/udp", servers: ["192.0.2.1:8080"]{more}}}]', "pylb.yaml")
    [warning] = config.warnings
    assert "1:51: warning: without a check nobody sees that 192.0.2.1:8080/udp died silently (health: {check: …}" in warning


def test_a_token_s_ports_have_a_protocol() -> None:
    text = 'tokens: [{name: a, secret: a-secret-of-more-than-22-characters, ports: [443, "443/udp", "10000-20000/udp", 25]}]'
    [entry] = parse(text, "pylb.yaml").tokens
    token = token_of(entry, ("a-secret-of-more-than-22-characters",))
    assert str(token.ports) == "25, 443, 443/udp, 10000-20000/udp"
    assert [token.may_open(10000, protocol) for protocol in (TCP, UDP)] == [False, True]
