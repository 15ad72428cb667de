"""From a file to the values the other layers take: defaults, policies, tokens, paths."""

import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pylb.config import Config, ConfigErrors, default_state_dir, first_run_token, load, parse
from pylb.core.access import AccessList, AccessRule, Networks
from pylb.core.address import Address, Listen, Ports, parse_network
from pylb.core.policy import (
    Balance,
    Check,
    CheckKind,
    HealthMode,
    HealthOverride,
    HealthPolicy,
    JoinRule,
    LeaseBounds,
    OnDown,
    Policy,
    ProxyAccept,
    ProxyProtocol,
    Rules,
    SourceLimits,
    StaticServer,
    Step,
    Timeouts,
)

EXAMPLE = Path(__file__).parents[2] / "docs" / "pylb.example.yaml"
STRONG = "correct-horse-battery-staple"


def write(path: Path, text: str, mode: int = 0o640) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(path, {})
    return [str(problem) for problem in caught.value.problems]


def test_no_file_at_all_is_a_valid_config_with_tls() -> None:
    config = load(None, {"HOME": "/home/pylb"})
    assert [listener.listen for listener in config.webhook] == [Listen("tcp", "*", 9000)]
    assert config.admin.listen == Listen("tcp", "127.0.0.1", 8404)
    assert config.rules() == Rules(
        defaults=Policy(limits=SourceLimits(source_share=50)), reserved_ports=frozenset({9000, 8404})
    )
    assert config.tokens == ()
    assert config.keyring().tokens == ()
    assert config.webhook[0].tls is not None
    assert config.webhook[0].tls.self_signed
    assert config.warnings == ()


def test_the_example_uses_every_key_and_loads() -> None:
    config = parse(EXAMPLE.read_text(), "pylb.example.yaml")
    rules = config.rules(frozenset({"198.51.100.1"}))
    assert rules.own_ips == {"198.51.100.1", "203.0.113.8", "203.0.113.9"}
    assert rules.reserved_ports == {9000, 9001, 8404, 9404}
    assert rules.defaults == Policy(limits=SourceLimits(source_share=50))
    assert rules.leases == LeaseBounds()
    mqtt, https = rules.frontends
    assert mqtt.servers == (StaticServer(Address("198.51.100.7", 30843)),)
    assert mqtt.policy == rules.defaults
    assert https.servers == (
        StaticServer(Address("198.51.100.7", 30443), weight=2, max_connections=500),
        StaticServer(Address("198.51.100.8", 30443), backup=True, health=HealthOverride(interval=10.0)),
    )
    lines = [(False, "192.0.2.0/24"), (True, "0.0.0.0/0"), (True, "::/0")]
    assert https.policy == replace(
        rules.defaults,
        balance=Balance.ROUNDROBIN,
        timeouts=Timeouts(idle=600.0),
        access=AccessList([AccessRule(allow, parse_network(network)) for allow, network in lines]),
        health=HealthPolicy(HealthMode.ACTIVE, Check(CheckKind.HTTP, path="/healthz", status=(200, 200), port=30444)),
    )
    assert config.webhook[0].tls is not None
    assert config.webhook[0].tls.self_signed
    assert {*Config.model_fields} == config.model_fields_set


def test_every_policy_of_a_pool_is_reached_and_merged_key_by_key() -> None:
    text = """
defaults:
  balance: source
  max_queue: 100
  on_down: close
  access: {deny: 192.0.2.0/24}
  source_addresses: [198.51.100.2, "2001:db8::2"]
  limits: {rate: 500, per_source: 20, per_source_rate: 5, ipv6_prefix: 56}
  timeouts: {queue: 10s}
  health: {check: {send: "EHLO x\\r\\n", expect: "250 ", port: 30026}, timeout: 3s}
  proxy_protocol: {send: v2, crc32c: true, unique_id: true, accept_from: [10.0.0.0/8], accept_timeout: 2s}
frontends:
  - {name: a, listen: "*:1"}
  - name: b
    listen: "*:2"
    balance: first
    on_down: keep
    access: []
    limits: {per_source: 0}
    health: {check: tcp}
    proxy_protocol: {send: none, accept_from: []}
"""
    a, b = parse(text, "pylb.yaml").rules().frontends
    check = Check(CheckKind.SEND, (Step(b"EHLO x\r\n", b"250 "),), port=30026)
    assert a.policy == Policy(
        balance=Balance.SOURCE,
        timeouts=Timeouts(queue=10.0),
        max_queue=100,
        on_down=OnDown.CLOSE,
        access=AccessList([AccessRule(False, parse_network("192.0.2.0/24"))]),
        source_addresses=("198.51.100.2", "2001:db8::2"),
        limits=SourceLimits(500, 20, 5, 56, 50),
        health=HealthPolicy(check=check, timeout=3.0),
        send_proxy=ProxyProtocol.V2,
        send_crc32c=True,
        send_unique_id=True,
        accept_proxy=ProxyAccept(Networks([parse_network("10.0.0.0/8")]), 2.0),
    )
    assert b.policy == replace(
        a.policy,
        balance=Balance.FIRST,
        on_down=OnDown.KEEP,
        access=AccessList(),
        limits=SourceLimits(500, 0, 5, 56, 50),
        health=HealthPolicy(timeout=3.0),
        send_proxy=ProxyProtocol.NONE,
        accept_proxy=ProxyAccept(timeout=2.0),
    )


def test_an_idle_timeout_of_0_is_none_over_the_defaults_too() -> None:
    text = """
defaults: {timeouts: {idle: 7d}}
frontends: [{name: a, listen: "*:1", timeouts: {idle: 0}}, {name: b, listen: "*:2"}]
"""
    a, b = (one.policy.timeouts.idle for one in parse(text, "pylb.yaml").rules().frontends)
    assert (a, b) == (math.inf, 7 * 86400)


def test_what_a_frontend_says_wins_over_the_defaults_key_by_key() -> None:
    text = """
defaults:
  retries: 1
  timeouts: {connect: 500ms, idle: 10m}
  health: {mode: active, fall: 5}
  proxy_protocol: {send: v1}
  bind: 192.0.2.1
  freebind: true
frontends:
  - {name: a, listen: "*:1"}
  - {name: b, listen: "*:2", retries: 0, timeouts: {idle: 1h}, health: {mode: none}, proxy_protocol: {send: none},
     registrations: any, freebind: false}
"""
    rules = parse(text, "pylb.yaml").rules()
    base = Policy(
        limits=SourceLimits(source_share=50),
        retries=1,
        bind="192.0.2.1",
        freebind=True,
        timeouts=Timeouts(connect=0.5, idle=600.0),
        health=HealthPolicy(HealthMode.ACTIVE, fall=5),
        send_proxy=ProxyProtocol.V1,
    )
    assert rules.defaults == rules.frontends[0].policy == base
    assert rules.frontends[0].joining is JoinRule.NAME
    assert rules.frontends[1].policy == replace(
        base,
        retries=0,
        freebind=False,
        timeouts=Timeouts(connect=0.5),
        health=HealthPolicy(HealthMode.NONE, fall=5),
        send_proxy=ProxyProtocol.NONE,
    )
    assert rules.frontends[1].joining is JoinRule.ANY


def test_one_webhook_listener_may_stand_without_a_list() -> None:
    config = parse('webhook: {listen: "127.0.0.1:9000"}', "pylb.yaml")
    assert [listener.listen.ip for listener in config.webhook] == ["127.0.0.1"]
    assert config.warnings == ()


@pytest.mark.parametrize(
    ("ip", "insecure"), [("127.0.0.1", False), ("127.8.9.10", False), ("[::1]", False), ("192.0.2.1", True), ("*", True)]
)
def test_plain_http_is_insecure_beyond_loopback_only(ip: str, *, insecure: bool) -> None:
    text = f'webhook: {{listen: "{ip}:9000", insecure: true}}'
    assert parse(text, "pylb.yaml").insecure is insecure


def test_faces_that_are_open_or_closed_by_mistake_warn() -> None:
    config = parse('webhook: {listen: "127.0.0.1:1"}\nadmin: {listen: "*:2"}\nmetrics: {listen: "127.0.0.1:3"}\n', "pylb.yaml")
    assert [line.split(" (")[0] for line in config.warnings] == [
        "pylb.yaml:2:17: warning: anyone who can reach *:2 can read all routes and sessions",
        "pylb.yaml:3:19: warning: nobody may read 127.0.0.1:3/metrics: allow is empty",
    ]


def test_an_ip_as_advertise_is_this_machines_own_and_a_name_is_left_to_the_caller() -> None:
    assert parse('advertise: "2001:DB8::1"', "x").rules().own_ips == {"2001:db8::1"}
    assert parse("advertise: lb.example.net", "x").rules().own_ips == frozenset()


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"STATE_DIRECTORY": "/var/lib/pylb:/var/lib/other", "HOME": "/root"}, "/var/lib/pylb"),
        ({"STATE_DIRECTORY": "", "HOME": "/home/a"}, "/home/a/.local/state/pylb"),
        ({}, "/var/lib/pylb"),
    ],
)
def test_the_state_directory_comes_from_systemd_or_from_home(environ: dict[str, str], path: str) -> None:
    assert default_state_dir(environ) == load(None, environ).state_dir == Path(path)


def test_paths_start_at_the_directory_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "token", STRONG + "\n")
    write(tmp_path / "cert.pem", "")
    file = write(
        tmp_path / "pylb.yaml",
        "state_dir: state\ntokens: [{name: a, ports: [1], secret_file: token}]\n"
        'webhook: {listen: "*:9000", tls: {certificate: cert.pem, key: cert.pem}}\n',
    )
    config = load(file, {})
    assert config.state_dir == tmp_path / "state"
    assert config.keyring().find(STRONG) is not None
    assert config.warnings == ()


def test_a_token_gets_its_scope_and_documented_defaults() -> None:
    text = (
        f"tokens:\n  - {{name: a, secret: {STRONG}, ports: [8443, 8883-8899]}}\n"
        f"  - {{name: b, secret: x{STRONG}, ports: 1-65535, names: [b, '*']}}\n"
    )
    first, second = parse(text, "pylb.yaml").keyring().tokens
    assert first.may_use_name("a")
    assert not first.may_use_name("b")
    assert first.ports == Ports(((8443, 8443), (8883, 8899)))
    assert (first.targets, first.target_ports, first.takeover) == ((), Ports(((30000, 32767),)), False)
    assert first.sources == (parse_network("0.0.0.0/0"), parse_network("::/0"))
    assert second.names == ("*",)
    assert STRONG not in repr(parse(text, "pylb.yaml"))


def test_a_secret_in_the_config_or_readable_by_all_warns_with_its_place(tmp_path: Path) -> None:
    write(tmp_path / "token", STRONG, 0o644)
    text = f"tokens:\n  - {{name: a, ports: [1], secret_file: token}}\n  - {{name: b, ports: [2], secret: x{STRONG}}}\n"
    warnings = load(write(tmp_path / "pylb.yaml", text), {}).warnings
    assert [line.removeprefix(f"{tmp_path}/").split(" (")[0] for line in warnings] == [
        f"pylb.yaml:2:40: warning: every user of this machine can read {tmp_path}/token",
        "pylb.yaml:3:35: warning: the secret of token 'b' is in the config",
    ]


def test_a_short_secret_needs_allow_weak_and_then_warns(tmp_path: Path) -> None:
    write(tmp_path / "token", "banana\r\n")
    file = write(tmp_path / "pylb.yaml", "tokens: [{name: a, ports: [1], secret_file: token}]")
    assert "the secret of token 'a' has 6 characters, 22 are needed (make one with: pylb token" in mistakes(file)[0]
    write(file, "tokens: [{name: a, ports: [1], secret_file: token, allow_weak: true}]")
    config = load(file, {})
    assert "it works on the legacy route only" in config.warnings[0]
    assert config.keyring().find("banana", "legacy") is not None
    assert config.keyring().find("banana", "native") is None


def test_unusable_secret_files_and_certificates_are_errors_at_their_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    write(tmp_path / "empty", "\n")
    write(tmp_path / "two", f"{STRONG}\nnot printable: \x01\n")
    write(tmp_path / "big", "x" * 5000)
    write(tmp_path / "one", STRONG)
    files = ["missing", "fifo", ".", "empty", "two", "big", "one", "one"]
    lines = [f"  - {{name: t{n}, ports: [1], secret_file: {name}}}\n" for n, name in enumerate(files)]
    text = 'webhook: {listen: "*:9000", tls: {certificate: missing, key: missing}}\ntokens:\n' + "".join(lines)
    found = mistakes(write(tmp_path / "pylb.yaml", text))
    assert [line.removeprefix(f"{tmp_path}/pylb.yaml:").replace(f"{tmp_path}/", "").split(" (")[0] for line in found] == [
        "1:48: error: missing cannot be read: No such file or directory",
        "1:62: error: missing cannot be read: No such file or directory",
        "3:41: error: missing cannot be read: No such file or directory",
        "4:41: error: fifo is not a regular file",
        f"5:41: error: {tmp_path} is not a regular file",
        "6:41: error: empty is empty, or a line of it is not printable ASCII",
        "7:41: error: two is empty, or a line of it is not printable ASCII",
        "8:41: error: big is larger than 4096 bytes",
        "10:41: error: tokens 't6' and 't7' have the same secret",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"log: {}\na: \xff\n", ":2:4: error: this byte is not UTF-8"),
        (None, ": error: cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_no_text_or_not_there_is_an_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "pylb.yaml"
    if content is not None:
        file.write_bytes(content)
    assert mistakes(file) == [f"{file}{message}"]


def test_a_remembered_text_is_read_in_place_of_the_files_with_the_files_paths(tmp_path: Path) -> None:
    write(tmp_path / "token", STRONG)
    broken = write(tmp_path / "pylb.yaml", "tokens: [")
    config = load(broken, {}, text="tokens: [{name: a, ports: [1], secret_file: token}]")
    assert config.keyring().find(STRONG) is not None
    with pytest.raises(ConfigErrors, match=f"{broken}:1:1: error: unknown key 'a'"):
        load(broken, {}, text="a: 1")


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "pylb.yaml"
    file.write_bytes(b"\xef\xbb\xbfadvertise: lb.example.net\n")
    assert load(file, {}).advertise == "lb.example.net"


def test_the_first_runs_token_can_be_tried_from_loopback_and_opens_any_port_but_ours_and_ssh() -> None:
    token = first_run_token(STRONG, frozenset({9000, 8404}))
    assert token.may_use_name("anything")
    assert [port for port in (22, 443, 8404, 9000, 65535) if token.may_open(port)] == [443, 65535]
    assert parse_network("127.0.0.0/8") in token.targets
    assert 8080 in token.target_ports
    assert not token.takeover
    assert load(None, {}).keyring(token).find(STRONG, "native") is token


def test_a_server_of_the_config_may_have_a_name() -> None:
    text = 'frontends: [{name: mqtt, listen: "*:1", servers: [{address: "192.0.2.1:2", name: m1}, "192.0.2.2:2"]}]'
    [frontend] = parse(text, "pylb.yaml").rules().frontends
    assert [server.name for server in frontend.servers] == ["m1", ""]
