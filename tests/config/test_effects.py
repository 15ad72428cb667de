"""No setting is taken and forgotten. Every key of the config is named here with its effect; one that comes has to be.

What control and engine are given for a config (`rules()`, `keyring()`) must change with the key, and each of those values must
be read by something that acts on it. What only the composition root reads is named with the test that shows its effect in a
running pylb.
"""

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pylb.config import parse
from pylb.config.explain import section_of
from pylb.config.models import PolicySection
from pylb.config.root import Config
from pylb.config.section import Section
from pylb.core.auth import Token
from pylb.core.log import Selection, Target
from pylb.core.policy import (
    Bounds,
    CallLimits,
    HealthOverride,
    HealthPolicy,
    LeaseBounds,
    Policy,
    ProxyAccept,
    Rules,
    SourceLimits,
    StaticFrontend,
    StaticServer,
    Timeouts,
)

ROOT = Path(__file__).parents[2]

# By key of `defaults` and of a frontend: a value that is not the default's.
OTHER = {
    "balance": "random", "retries": 1, "max_connections": 7, "max_queue": 7, "backups": "all", "slow_start": "9s",
    "freebind": True, "on_down": "close", "access": [{"allow": "192.0.2.0/24"}], "source_addresses": ["192.0.2.1"],
    "timeouts.hello": "9s",
    "timeouts.connect": "9s", "timeouts.queue": "9s", "timeouts.idle": "9s", "timeouts.half_close": "9s",
    "timeouts.flush": "9s", "timeouts.drain": "9s", "timeouts.shutdown": "9s", "timeouts.upgrade": "9s",
    "limits.rate": 9, "limits.per_source": 9, "limits.per_source_rate": 9, "limits.ipv6_prefix": 48, "limits.source_share": 9,
    "health.mode": "active", "health.check": {"http": "/up"}, "health.timeout": "9s", "health.interval": "9s",
    "health.max_interval": "9s", "health.rise": 9, "health.fall": 9, "health.when_all_down": "refuse",
    "proxy_protocol.send": "v1", "proxy_protocol.crc32c": True, "proxy_protocol.unique_id": True,
    "proxy_protocol.pass_tlvs": True, "proxy_protocol.accept_from": ["192.0.2.0/24"], "proxy_protocol.accept_timeout": "9s",
    "bind": "192.0.2.1", "resolve_interval": "9s",
    "timeouts.udp_idle": "9s", "proxy_protocol.each": True, "requests": 9, "responses": 1,
}  # fmt: skip
# Keys that only a frontend of UDP may have (test_udp.py), and what they need beside that.
OF_UDP: dict[str, dict[str, Any]] = {
    "timeouts.udp_idle": {}, "requests": {}, "responses": {}, "proxy_protocol.each": {"proxy_protocol": {"send": "v2"}},
}  # fmt: skip
# What a key needs beside it, else it is refused (test_without_effect.py).
WITH: dict[str, dict[str, Any]] = {
    "limits.ipv6_prefix": {"limits": {"per_source": 9}},
    "timeouts.hello": {"names": "allowed"},
    "proxy_protocol.crc32c": {"proxy_protocol": {"send": "v2"}},
    "proxy_protocol.unique_id": {"proxy_protocol": {"send": "v2"}},
    "proxy_protocol.pass_tlvs": {"proxy_protocol": {"send": "v2", "accept_from": ["192.0.2.0/24"]}},
    "proxy_protocol.accept_timeout": {"proxy_protocol": {"accept_from": ["192.0.2.0/24"]}},
}
OF_SERVERS = {
    "address": "192.0.2.9:1", "weight": 9, "backup": True, "name": "other", "resolve": "ipv4", "max_connections": 7,
    "health.check": {"http": "/up"}, "health.port": 9, "health.interval": "9s", "health.rise": 9, "health.fall": 9,
}  # fmt: skip
OF_TOKENS = {
    "name": "other", "secret": "another-secret-of-enough-characters", "takeover": True, "names": ["*"],
    "ports": [444], "targets": ["192.0.2.0/24"], "target_ports": [1], "sources": ["192.0.2.0/24"], "legacy": False,
    "replaces": ["generated"], "server_names": ["*.example.net"],
}  # fmt: skip
OF_ALL = {
    "public_addresses": ["192.0.2.1"], "advertise": "192.0.2.1", "cluster.addresses": ["192.0.2.1"],
    "admin.listen": "127.0.0.1:1", "metrics.listen": "127.0.0.1:1",
    "webhook.listen": "127.0.0.1:1",
    "leases.min_ttl": "9s", "leases.max_ttl": "9h", "leases.keep_stale": "never", "leases.yield_after": "9h",
    "bounds.servers_per_frontend": 9, "bounds.ports_per_token": 9,
}  # fmt: skip
OF_ROUTES = {
    "server_names": ["www.example.net"], "servers": ["192.0.2.9:1"], "balance": "random", "retries": 1,
    "timeouts.connect": "9s", "timeouts.queue": "9s", "timeouts.idle": "9s", "timeouts.half_close": "9s",
    "timeouts.flush": "9s", "timeouts.drain": "9s", "proxy_protocol.send": "v1",
    **{key: value for key, value in OTHER.items() if key.startswith("health.")},
}  # fmt: skip
# By file and test: keys whose effect it shows in a running pylb.
SHOWN: dict[str, dict[str, str]] = {
    "tests/app/test_run.py": {
        "test_two_webhooks_one_with_its_own_certificate_and_one_plain_for_old_containers": (
            "webhook.tls.self_signed webhook.legacy"
        ),
        "test_a_metrics_listener_serves_its_allow_list_only_and_nothing_else": "metrics.allow",
        "test_a_second_pylb_on_the_same_state_directory_does_not_start": "state_dir",
    },
    "tests/app/test_plan.py": {
        "test_a_renewed_certificate_is_served_without_a_reload_and_a_broken_one_is_not": (
            "webhook.tls.certificate webhook.tls.key"
        ),
        "test_refused_calls_are_counted_by_reason_and_plain_http_is_a_metric": "webhook.insecure",
    },
    "tests/app/test_settings.py": {
        "test_of_connections_beyond_the_webhooks_limits_one_that_waits_is_cut": (
            "webhook.limits.connections webhook.limits.per_address"
        ),
        "test_burst_and_rate_say_how_many_changes_a_token_may_make": "webhook.limits.burst webhook.limits.rate",
        "test_lockout_says_how_many_guesses_an_address_has": "webhook.limits.lockout",
        "test_the_word_of_trusted_proxies_is_believed_and_a_reload_changes_whose": "trusted_proxies",
        "test_compat_puts_the_names_of_haproxys_exporter_into_every_scrape": "metrics.compat",
        "test_other_pylbs_are_asked_for_the_page_and_a_reload_changes_which": (
            "admin.peers.name admin.peers.url admin.peers.page"
        ),
        "test_the_level_of_its_own_messages": "log.level",
        "test_calls_says_whether_beats_are_lines": "log.calls",
    },
    "tests/app/test_hatop.py": {
        "test_a_socket_of_that_name_is_where_the_config_says": "runtime_socket",
    },
    "tests/app/test_workers.py": {
        "test_workers_are_small_and_the_only_children": "workers",
    },
    "tests/app/test_logs.py": {
        "test_a_file_that_logrotate_moved_away_is_opened_anew_on_sigusr1": "log.format log.target",
        "test_letters_are_those_of_the_metric_and_what_went_wrong_is_never_sampled_away": "log.sample log.dontlognull",
        "test_a_syslog_that_is_not_there_harms_nothing_and_is_counted": "log.facility log.tag",
    },
    "tests/app/test_sessions.py": {
        "test_a_recorder_that_is_off_says_so": "recorder.sessions",
    },
    "tests/app/test_tokens.py": {
        "test_a_secret_file_that_changes_counts_without_a_reload": "tokens.secret_file",
    },
    "tests/app/test_cluster.py": {
        "test_two_pylbs_serve_one_table": "cluster.name cluster.etcd.endpoints cluster.etcd.prefix",
        "test_etcd_with_users_and_tls": (
            "cluster.etcd.ca cluster.etcd.certificate cluster.etcd.key cluster.etcd.username cluster.etcd.password_file "
            "cluster.etcd.timeout"
        ),
    },
    "tests/config/test_etcd.py": {"test_plain_http_to_another_machine_has_to_be_wanted": "cluster.etcd.insecure"},
    "tests/contract/test_scopes.py": {
        "test_a_legacy_call_joins_only_the_static_frontend_of_its_name_and_token_or_one_that_lets_it": (
            "frontends.registrations"
        ),
        "test_a_weak_token_is_for_the_legacy_route_only": "tokens.allow_weak",
    },
}


def keys(section: type[Section], within: str = "") -> list[str]:
    """All of its leaves, as `limits.rate`."""
    found = []
    for key, field in section.model_fields.items():
        below = section_of(field.annotation)
        found += [f"{within}{key}"] if below is None else keys(below, f"{within}{key}.")
    return found


def test_every_key_is_named_here_and_no_other_one() -> None:
    of_frontends = [key for key in OTHER if key not in ("bind", "resolve_interval")]
    named = {
        *(key for tests in SHOWN.values() for keys_ in tests.values() for key in keys_.split()),
        *OF_ALL,
        *(f"defaults.{key}" for key in OTHER),
        *(f"frontends.{key}" for key in of_frontends),
        *(f"frontends.{key}" for key in ("name", "listen", "names", "protocol")),
        *(f"frontends.routes.{key}" for key in OF_ROUTES if key != "servers"),
        *(f"frontends.routes.servers.{key}" for key in OF_SERVERS),
        *(f"frontends.servers.{key}" for key in OF_SERVERS),
        *(f"tokens.{key}" for key in OF_TOKENS),
    }
    assert named == set(keys(Config))


def at(key: str, value: Any) -> dict[str, Any]:
    """`{outer: {inner: value}}` for `outer.inner`."""
    for step in reversed(key.split(".")):
        value = {step: value}
    return dict(value)


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(one[key], other[key]) for key in one.keys() & other.keys() if isinstance(one[key], dict)}
    return one | other | both


PLAIN: dict[str, Any] = {
    "tokens": [{"name": "app", "secret": "a-secret-of-more-than-22-characters", "ports": [443]}],
    "frontends": [
        {
            "name": "web",
            "listen": "192.0.2.8:443",
            "servers": [{"address": "app.example.net:8080", "max_connections": 1}],
        }
    ],
}


def given(section: str, more: dict[str, Any]) -> tuple[Any, ...]:
    """What control and engine are given for the plain config with that in one of its sections."""
    [frontend], [token] = PLAIN["frontends"], PLAIN["tokens"]
    data = dict(PLAIN)
    if section == "servers":
        data["frontends"] = [{**frontend, "servers": [merged(frontend["servers"][0], more)]}]
    elif section == "frontends":
        data["frontends"] = [merged(frontend, more)]
    elif section == "routes":
        data["frontends"] = [{**frontend, "routes": [merged({"server_names": ["git.example.net"]}, more)]}]
    elif section == "tokens":
        data["tokens"] = [merged(token, more)]
    else:
        data |= {section: more} if section else more
    config = parse(str(data).replace("True", "true").replace("False", "false"), "pylb.yaml")
    return config.rules(), config.keyring().tokens


WRITTEN = [
    *(("defaults", key, OTHER[key]) for key in OTHER),
    *(
        ("frontends", key, OTHER[key])
        for key in keys(PolicySection)
        if key not in ("timeouts.shutdown", "timeouts.upgrade")  # the process's alone: refused there
    ),
    *(("servers", key, OF_SERVERS[key]) for key in OF_SERVERS),
    *(("tokens", key, OF_TOKENS[key]) for key in OF_TOKENS),
    *(("", key, OF_ALL[key]) for key in OF_ALL),
    *(("routes", key, OF_ROUTES[key]) for key in OF_ROUTES),
    ("frontends", "names", "allowed"),
    ("frontends", "name", "other"),
    ("frontends", "listen", "*:444"),
    ("frontends", "protocol", "udp"),
    ("frontends", "registrations", "any"),
]


@pytest.mark.parametrize(("section", "key", "value"), WRITTEN, ids=lambda value: value if isinstance(value, str) else "")
def test_every_key_changes_what_control_and_engine_are_given(section: str, key: str, value: object) -> None:
    beside = {} if section in ("defaults", "routes") and key == "timeouts.hello" else WITH.get(key, {})
    if section == "frontends" and key in OF_UDP:
        beside = {"protocol": "udp"} | OF_UDP[key]
    before = given(section, beside)
    assert given(section, merged(beside, at(key, value))) != before


@pytest.mark.parametrize(
    "value",
    [
        *(Policy, Timeouts, HealthPolicy, SourceLimits, ProxyAccept, StaticServer, StaticFrontend, HealthOverride),
        *(Rules, LeaseBounds, Bounds, Token, CallLimits),
    ],
    ids=lambda value: value.__name__,
)
def test_each_of_those_values_is_read_outside_the_config(value: type) -> None:
    assert unread([field.name for field in fields(value)]) == []


def test_so_is_each_of_what_the_log_is_given() -> None:
    assert unread([*Target._fields, *Selection._fields]) == []


def unread(names: list[str]) -> list[str]:
    files = (file for file in (ROOT / "pylb").rglob("*.py") if file.parent.name != "config")
    text = "\n".join(file.read_text() for file in files)
    return [name for name in names if not re.search(rf"[a-z_\])]\.{name}\b", text)]


@pytest.mark.parametrize("file", SHOWN)
def test_the_tests_that_show_them_are_there_and_write_the_keys(file: str) -> None:
    text = (ROOT / file).read_text()
    functions = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert set(SHOWN[file]) <= functions
    words = {
        key.rpartition(".")[2].replace("self_signed", "self-signed") for shown in SHOWN[file].values() for key in shown.split()
    }
    assert {word for word in words if not re.search(rf"\b{word}\b", text)} == set()
