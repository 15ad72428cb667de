"""What of health contradicts itself, what is warned of, and what a server may say of its own."""

import pytest

from pylb.config import ConfigErrors, parse
from pylb.core.address import Address
from pylb.core.policy import Backups, Check, CheckKind, HealthMode, HealthOverride, Step, WhenAllDown


def frontend(more: str, defaults: str = "{}") -> str:
    return f'defaults: {defaults}\nfrontends: [{{name: a, listen: "*:1", {more}}}]'


SERVER = 'servers: [{address: "192.0.2.1:8080"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (frontend("health: {interval: 5s, max_interval: 2s}"), "max_interval is shorter than interval"),
        (frontend("", "{health: {max_interval: 1s}}"), "max_interval is shorter than interval"),
        (frontend("health: {when_all_down: never}"), "'never' is not a value of 'when_all_down'"),
        (frontend("health: {check: {steps: []}}"), "is not a list of 1 to 16 steps"),
    ],
)
def test_what_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, "pylb.yaml")
    [line] = str(caught.value).splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        ('servers: ["192.0.2.1:30443"], health: {check: {http: /up}}', True),
        ('servers: ["192.0.2.1:443"], health: {check: {http: /up, port: 30880}}', True),
        ('servers: [{address: "192.0.2.1:443", health: {check: {http: /up}, port: 30880}}]', True),
        ('servers: ["192.0.2.1:30443"]', False),
        ('servers: ["192.0.2.1:443"], health: {check: {http: /up}}', False),
    ],
)
def test_a_check_through_a_nodeport_is_warned_of(more: str, warned: bool) -> None:
    warnings = [warning for warning in parse(frontend(more), "pylb.yaml").warnings if "asks a random pod" in warning]
    assert len(warnings) == warned
    assert all("externalTrafficPolicy: Local" in warning for warning in warnings)


def test_all_of_it_arrives() -> None:
    text = frontend(
        "backups: all, slow_start: 30s, "
        "health: {check: {steps: [{send: PING, expect: PONG}, {send: QUIT}]}, max_interval: 30s, when_all_down: refuse}, "
        f"{SERVER}, backup: true, health: {{check: {{http: /up}}, port: 8008, interval: 1s, rise: 1, fall: 4}}}}]"
    )
    [one] = parse(text, "pylb.yaml").rules().frontends
    policy = one.policy
    assert (policy.backups, policy.slow_start, policy.health.max_interval) == (Backups.ALL, 30.0, 30.0)
    assert policy.health.check == Check(CheckKind.SEND, (Step(b"PING", b"PONG"), Step(b"QUIT")))
    assert (policy.health.mode, policy.health.when_all_down) == (HealthMode.ACTIVE, WhenAllDown.REFUSE)
    [server] = one.servers
    assert server.address == Address("192.0.2.1", 8080)
    assert server.health == HealthOverride(Check(CheckKind.HTTP, path="/up"), 8008, 1.0, 1, 4)


def test_an_explicit_mode_of_the_defaults_counts_for_frontends_too() -> None:
    [one] = parse(frontend("health: {check: {http: /up}}", "{health: {mode: passive}}"), "pylb.yaml").rules().frontends
    assert one.policy.health.mode is HealthMode.PASSIVE
