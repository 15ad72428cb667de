"""No setting is taken and forgotten: each key of a frontend changes what control and engine are given, and each of those
values is read by something that acts on it. What it then does is the matter of that part's own tests.
"""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from pylb.config import parse
from pylb.config.explain import section_of
from pylb.config.models import Defaults, FrontendEntry, PolicySection, Section, ServerEntry
from pylb.core.policy import HealthPolicy, Limits, Policy, ProxyAccept, Rules, StaticFrontend, StaticServer, Timeouts

PYLB = Path(__file__).parents[2] / "pylb"

# By key: a value that is not the default's.
OTHER = {
    "balance": "random", "retries": 1, "max_connections": 7, "max_queue": 7, "backups": "all", "slow_start": "9s",
    "freebind": True, "on_down": "close", "access": [{"allow": "192.0.2.0/24"}], "source_addresses": ["192.0.2.1"],
    "timeouts.connect": "9s", "timeouts.queue": "9s", "timeouts.idle": "9s", "timeouts.half_close": "9s",
    "timeouts.flush": "9s", "timeouts.drain": "9s", "timeouts.shutdown": "9s", "timeouts.upgrade": "9s",
    "limits.rate": 9, "limits.per_source": 9, "limits.per_source_rate": 9, "limits.ipv6_prefix": 48, "limits.source_share": 9,
    "health.mode": "active", "health.check": {"http": "/up"}, "health.timeout": "9s", "health.interval": "9s",
    "health.max_interval": "9s", "health.rise": 9, "health.fall": 9, "health.when_all_down": "refuse",
    "proxy_protocol.send": "v1", "proxy_protocol.crc32c": True, "proxy_protocol.unique_id": True,
    "proxy_protocol.pass_tlvs": True, "proxy_protocol.accept_from": ["192.0.2.0/24"], "proxy_protocol.accept_timeout": "9s",
    "bind": "192.0.2.1", "resolve_interval": "9s",
    "weight": 9, "backup": True, "name": "other", "resolve": "ipv4",
    "health.port": 9,
}  # fmt: skip


def keys(section: type[Section], within: str = "") -> list[str]:
    found = []
    for key, field in section.model_fields.items():
        below = section_of(field.annotation)
        found += [f"{within}{key}"] if below is None else keys(below, f"{key}.")
    return found


def rules(section: str, key: str) -> Rules:
    outer, _, inner = key.rpartition(".")
    value = {inner: OTHER[key]}
    said = {outer: value} if outer else value
    server = {"address": "app.example.net:8080"}
    frontend = {"name": "web", "listen": "*:443"}
    if section == "servers":
        server |= said
    elif section == "frontends":
        frontend |= said
    config = {"defaults": said if section == "defaults" else {}, "frontends": [frontend | {"servers": [server]}]}
    return parse(str(config).replace("True", "true").replace("None", "null"), "pylb.yaml").rules()


PLAIN = parse(
    '{"frontends": [{"name": "web", "listen": "*:443", "servers": [{"address": "app.example.net:8080"}]}]}', "pylb.yaml"
).rules()
WRITTEN = [
    *(("defaults", key) for key in keys(Defaults)),
    *(("frontends", key) for key in keys(PolicySection) if not key.startswith(("timeouts.shutdown", "timeouts.upgrade"))),
    *(("servers", key) for key in keys(ServerEntry) if key != "address"),
]


@pytest.mark.parametrize(("section", "key"), WRITTEN)
def test_every_key_of_a_frontend_changes_what_control_and_engine_are_given(section: str, key: str) -> None:
    assert rules(section, key) != PLAIN


def test_a_frontend_has_no_other_keys() -> None:
    own = {key for key in FrontendEntry.model_fields if key not in PolicySection.model_fields}
    assert own == {"name", "listen", "servers", "registrations"}


@pytest.mark.parametrize(
    "value",
    [Policy, Timeouts, HealthPolicy, Limits, ProxyAccept, StaticServer, StaticFrontend],
    ids=lambda value: value.__name__,
)
def test_each_of_those_values_is_read_outside_the_config(value: type) -> None:
    text = "\n".join(file.read_text() for file in PYLB.rglob("*.py") if file.parent.name != "config")
    unread = [field.name for field in fields(value) if not re.search(rf"[a-z_\])]\.{field.name}\b", text)]
    assert unread == []
