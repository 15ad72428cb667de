"""Every metric of the design, parsed back by Prometheus' own parser."""

import asyncio
import os
import resource
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pylb import __version__
from pylb.api.routes import rows
from pylb.control.views import ServerView
from pylb.core.access import AccessList, AccessRule
from pylb.core.address import Address, Listen
from pylb.core.auth import Caller
from pylb.core.errors import Code
from pylb.core.policy import Policy, Rules, SourceLimits, StaticFrontend, StaticServer
from pylb.core.registration import Announcement, FrontendRequest
from pylb.forward.counters import DROPS, Counters, DatagramCounters, FrontendCounters, ServerCounters
from pylb.metrics import collector
from pylb.metrics.collector import Metrics
from pylb.metrics.exposition import TEXT, Format, written
from tests.support.ports import free_port, refusing_port
from tests.web.running import Control, running

# design.md, section 8
NAMES = {
    "pylb_build_info",
    "pylb_frontend_sessions",
    "pylb_frontend_sessions_total",
    "pylb_sessions_closed_total",
    "pylb_bytes_total",
    "pylb_connect_duration_seconds",
    "pylb_session_duration_seconds",
    "pylb_connect_failures_total",
    "pylb_server_up",
    "pylb_lease_expires_timestamp_seconds",
    "pylb_registrations",
    "pylb_registrations_total",
    "pylb_frontend_usable_servers",
    "pylb_frontend_denied_total",
    "pylb_table_generation",
    "pylb_table_apply_seconds",
    "pylb_state_write_failures_total",
    "pylb_state_durable",
    "pylb_config_last_reload_successful",
    "pylb_certificate_expiry_timestamp_seconds",
    "pylb_log_lines_dropped_total",
    "pylb_loop_lag_seconds",
    "pylb_open_fds",
    "pylb_max_fds",
}

# what the design does not name: the engine's limits, each of which an operator must be able to see reached
LIMITS = {
    "pylb_checks_total",
    "pylb_check_lag_seconds",
    "pylb_log_reopen_failures_total",
    "pylb_accept_errors_total",
    "pylb_pipe_fallbacks_total",
    "pylb_buffered_bytes",
    "pylb_frontend_queue",
    "pylb_worker_restarts_total",
    "pylb_task_failures_total",
    "pylb_sessions",
    "pylb_max_connections",
    "pylb_frontend_max_connections",
    "pylb_frontend_open",
    "pylb_frontend_closes_timestamp_seconds",
    "pylb_leases_preserved",
    "pylb_standby",
    "pylb_frontend_owner_info",
    "pylb_address_held",
    "pylb_faults_total",
}
# for dashboards
SHARES = {
    "pylb_server_sessions",
    "pylb_server_sessions_total",
    "pylb_start_time_seconds",
    "pylb_cpu_seconds_total",
    "pylb_resident_memory_bytes",
}
CALLS = {
    "pylb_calls_refused_total",
    "pylb_legacy_calls_total",
    "pylb_cluster_connected",
    "pylb_cluster_disconnected_seconds",
    "pylb_cluster_member_present",
    "pylb_cluster_not_applied",
    "pylb_cluster_registrations",
    "pylb_cluster_unwritten",
    "pylb_legacy_last_call_timestamp_seconds",
    "pylb_webhook_insecure",
}


def metrics_of(control: Control, expires_at: float | None = 1795419669.0, floating: tuple[str, ...] = ()) -> Metrics:
    async def counters() -> Counters:
        return control.engine.counters

    return Metrics(
        counters=counters,
        registry=control.registry,
        lines_dropped=lambda: 3,
        processes=lambda: {"main": (os.getpid(), 0.004)},
        reloaded=lambda: True,
        certificate_expires_at=lambda: expires_at,
        floating=lambda: floating,
    )


async def scraped(metrics: Metrics, form: Format = TEXT) -> bytes:
    return await written([metrics.scrape], form)


def samples(text: bytes) -> dict[str, list[Sample]]:
    """By sample name. Raises if a series is there twice, which would cost Prometheus the whole scrape."""
    found: dict[str, list[Sample]] = {}
    seen = set()
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            series = (sample.name, tuple(sorted(sample.labels.items())))
            assert series not in seen, series
            seen.add(series)
            found.setdefault(sample.name, []).append(sample)
    return found


def value(found: dict[str, list[Sample]], name: str, /, **labels: str) -> float:
    [sample] = [one for one in found[name] if one.labels == labels]
    return sample.value


def busy_frontend(name: str) -> FrontendCounters:
    counters = FrontendCounters(name)
    counters.sessions, counters.sessions_total = 2, 9
    counters.bytes_in, counters.bytes_out = 100, 2000
    counters.denied["limit"] = 4
    for seconds in (0.0004, 0.003, 99.0):
        counters.connect_seconds.add(seconds)
    counters.session_seconds.add(0.5)
    server = counters.servers["node-a"] = ServerCounters()
    server.sessions, server.sessions_total = 2, 8
    server.closed.update({"--": 5, "SD": 1})
    server.failures["refused"] = 2
    counters.servers[""] = ServerCounters()
    counters.servers[""].closed["SC"] = 1
    return counters


async def test_the_names_are_those_of_the_design_and_of_the_limits(tmp_path: Path) -> None:
    async with running(tmp_path) as control:
        text = (await scraped(metrics_of(control))).decode()
        described = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
        assert described == NAMES | LIMITS | SHARES | CALLS
        assert len(described) == text.count("# TYPE ") == text.count("# HELP ")
        without_tls = (await scraped(metrics_of(control, None))).decode()
        assert "pylb_certificate_expiry" not in without_tls


async def test_the_engines_numbers_come_out_with_their_labels(tmp_path: Path) -> None:
    async with running(tmp_path) as control:
        control.engine.counters.frontends[Listen("tcp", "*", 8443)] = busy_frontend("mqtt")
        found = samples(await scraped(metrics_of(control)))
        assert value(found, "pylb_frontend_sessions", frontend="mqtt") == 2
        assert value(found, "pylb_frontend_sessions_total", frontend="mqtt") == 9
        assert value(found, "pylb_bytes_total", frontend="mqtt", direction="in") == 100
        assert value(found, "pylb_bytes_total", frontend="mqtt", direction="out") == 2000
        assert value(found, "pylb_frontend_denied_total", frontend="mqtt", reason="limit") == 4
        assert value(found, "pylb_sessions_closed_total", frontend="mqtt", server="node-a", code="--") == 5
        assert value(found, "pylb_sessions_closed_total", frontend="mqtt", server="node-a", code="SD") == 1
        assert value(found, "pylb_sessions_closed_total", frontend="mqtt", server="", code="SC") == 1
        assert value(found, "pylb_connect_failures_total", frontend="mqtt", server="node-a", reason="refused") == 2
        assert value(found, "pylb_server_sessions", frontend="mqtt", server="node-a") == 2
        assert value(found, "pylb_server_sessions_total", frontend="mqtt", server="node-a") == 8
        assert len(found["pylb_server_sessions"]) == 1  # none for those that never had a server
        assert value(found, "pylb_connect_duration_seconds_bucket", frontend="mqtt", le="0.0005") == 1
        assert value(found, "pylb_connect_duration_seconds_bucket", frontend="mqtt", le="0.005") == 2
        assert value(found, "pylb_connect_duration_seconds_bucket", frontend="mqtt", le="+Inf") == 3
        assert value(found, "pylb_connect_duration_seconds_count", frontend="mqtt") == 3
        assert abs(value(found, "pylb_connect_duration_seconds_sum", frontend="mqtt") - 99.0034) < 1e-9
        assert value(found, "pylb_session_duration_seconds_count", frontend="mqtt") == 1


async def test_datagrams_are_counted_only_where_there_is_a_frontend_of_udp(tmp_path: Path) -> None:
    async with running(tmp_path) as control:
        frontends = control.engine.counters.frontends
        frontends[Listen("tcp", "*", 443)] = busy_frontend("web")
        found = samples(await scraped(metrics_of(control)))
        assert not [name for name in found if "datagram" in name or "flow" in name]
        for port in (443, 444):
            frontends[Listen("udp", "*", port)] = one = busy_frontend("quic")
            one.datagrams = DatagramCounters()
            one.datagrams.relayed_in, one.datagrams.relayed_out, one.datagrams.rehomed = 9, 8, 1
            one.datagrams.dropped.update({"kernel": 3})
        control.engine.counters.open_flows = 4
        found = samples(await scraped(metrics_of(control)))
        assert value(found, "pylb_datagrams_total", frontend="quic", direction="in") == 18
        assert value(found, "pylb_datagrams_total", frontend="quic", direction="out") == 16
        assert value(found, "pylb_datagrams_dropped_total", frontend="quic", reason="kernel") == 6
        assert value(found, "pylb_datagrams_dropped_total", frontend="quic", reason="limit") == 0  # before it happens
        assert len(found["pylb_datagrams_dropped_total"]) == len(DROPS)
        assert value(found, "pylb_flows_rehomed_total", frontend="quic") == 2
        assert value(found, "pylb_flows") == 4
        assert value(found, "pylb_frontend_sessions", frontend="quic") == 4


async def test_frontends_of_one_name_are_one_series_and_removed_ones_disappear(tmp_path: Path) -> None:
    async with running(tmp_path) as control:
        frontends = control.engine.counters.frontends
        for port in (1, 2):
            frontends[Listen("tcp", "*", port)] = busy_frontend("mqtt")
        found = samples(await scraped(metrics_of(control)))
        assert value(found, "pylb_frontend_sessions_total", frontend="mqtt") == 18
        assert value(found, "pylb_connect_duration_seconds_count", frontend="mqtt") == 6
        assert value(found, "pylb_sessions_closed_total", frontend="mqtt", server="node-a", code="--") == 10
        frontends.clear()
        assert "pylb_frontend_sessions" not in samples(await scraped(metrics_of(control)))


async def test_labels_are_escaped(tmp_path: Path) -> None:
    async with running(tmp_path) as control:
        name = 'a"b\\c\nd'
        control.engine.counters.frontends[Listen("tcp", "*", 1)] = busy_frontend(name)
        assert value(samples(await scraped(metrics_of(control))), "pylb_frontend_sessions", frontend=name) == 2


async def test_controls_numbers_come_out(tmp_path: Path) -> None:
    port = free_port()
    static = StaticFrontend(
        "web", Listen("tcp", "127.0.0.1", port), (StaticServer(Address("127.0.0.1", refusing_port())),), Policy()
    )
    async with running(tmp_path, Rules(frontends=(static,), defaults=Policy(bind="127.0.0.1"))) as control:
        registry = control.registry
        caller = Caller("127.0.0.1", control.keyring.tokens[0], "native")
        mqtt = free_port()
        for _ in range(2):
            await registry.calls.announce("mosquitto", "pod-1", Announcement((FrontendRequest(mqtt, refusing_port()),)), caller)
        found = samples(await scraped(metrics_of(control)))
        assert value(found, "pylb_registrations", state="fresh") == 1
        assert value(found, "pylb_registrations", state="stale") == 0
        assert value(found, "pylb_registrations", state="draining") == 0
        assert value(found, "pylb_registrations_total", result="created") == 1
        assert value(found, "pylb_registrations_total", result="unchanged") == 1
        assert value(found, "pylb_registrations_total", result="refused") == 0
        assert value(found, "pylb_frontend_usable_servers", frontend="web") == 1
        assert value(found, "pylb_frontend_usable_servers", frontend=f"mosquitto-{mqtt}") == 1
        assert value(found, "pylb_table_generation") == registry.table.generation
        assert value(found, "pylb_table_apply_seconds") > 0
        assert value(found, "pylb_state_durable") == 1
        assert value(found, "pylb_state_write_failures_total") == 0
        [view] = registry.each_registration()
        lease = value(found, "pylb_lease_expires_timestamp_seconds", name="mosquitto", instance="pod-1")
        assert view.expires_at_wall is not None
        assert abs(lease - view.expires_at_wall) < 1
        owner = {"port": str(mqtt), "protocol": "tcp", "token": control.keyring.tokens[0].name, "name": "mosquitto"}
        assert [sample.labels for sample in found["pylb_frontend_owner_info"]] == [owner]


async def test_a_server_is_up_or_down_only_once_it_was_tried(tmp_path: Path) -> None:
    port, silent = free_port(), free_port()
    servers = (StaticServer(Address("127.0.0.1", silent)),)
    static = StaticFrontend("web", Listen("tcp", "127.0.0.1", port), servers, Policy())
    async with running(tmp_path, Rules(frontends=(static,))) as control:
        [view] = control.registry.each_server()
        found = samples(await scraped(metrics_of(control)))
        shown = [(s.labels["frontend"], s.labels["server"], s.value) for s in found.get("pylb_server_up", [])]
        assert shown == ([("web", f"127.0.0.1:{silent}", 0)] if view.tried else [])  # by the dial of a new target
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await reader.read()
            except ConnectionResetError:
                pass
            writer.close()
        async with asyncio.timeout(5):
            while next(iter(control.registry.each_server())).state != "down":  # noqa: ASYNC110 - news travel by the writer
                await asyncio.sleep(0.01)
        found = samples(await scraped(metrics_of(control)))
        assert value(found, "pylb_server_up", frontend="web", server=f"127.0.0.1:{silent}") == 0
        assert value(found, "pylb_frontend_usable_servers", frontend="web") == 0
        assert value(found, "pylb_connect_failures_total", frontend="web", server=f"127.0.0.1:{silent}", reason="refused") == 3


async def test_what_may_be_denied_or_refused_is_a_zero_before_it_was(tmp_path: Path) -> None:
    """Else the first one of each sort is no increase to Prometheus."""
    policy = Policy(
        access=AccessList([AccessRule(allow=False, network=ip_network("192.0.2.0/24"))]),
        limits=SourceLimits(per_source=5),
        max_connections=7,
    )
    listen = Listen("tcp", "127.0.0.1", free_port())
    guarded = StaticFrontend("guarded", listen, (), policy)
    open_ = StaticFrontend("open", listen._replace(port=free_port()), (), Policy())
    async with running(tmp_path, Rules(frontends=(guarded, open_))) as control:
        found = samples(await scraped(metrics_of(control)))
        denied = {(s.labels["frontend"], s.labels["reason"]): s.value for s in found["pylb_frontend_denied_total"]}
        assert denied == {("guarded", "access"): 0, ("guarded", "per_source"): 0}
        assert {s.labels["reason"] for s in found["pylb_calls_refused_total"]} == set(Code)
        assert value(found, "pylb_frontend_max_connections", frontend="guarded") == 7
        assert len(found["pylb_frontend_max_connections"]) == 1
        assert value(found, "pylb_frontend_open", frontend="open") == 1


async def test_a_port_that_cannot_be_opened_is_a_metric(tmp_path: Path) -> None:
    port = free_port()
    static = StaticFrontend("web", Listen("tcp", "127.0.0.1", port), (), Policy())
    with socket.create_server(("127.0.0.1", port)):
        async with running(tmp_path, Rules(frontends=(static,))) as control:
            found = samples(await scraped(metrics_of(control)))
            assert value(found, "pylb_frontend_open", frontend="web") == 0


async def test_the_process_says_what_it_is_and_has(tmp_path: Path) -> None:
    async with running(tmp_path) as control:
        before = len(os.listdir("/proc/self/fd")) - 1
        found = samples(await scraped(metrics_of(control)))
        [build] = found["pylb_build_info"]
        assert (build.labels["version"], build.value) == (__version__, 1)
        assert value(found, "pylb_open_fds", process="main") == before
        assert value(found, "pylb_max_fds", process="main") == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert value(found, "pylb_log_lines_dropped_total") == 3
        assert value(found, "pylb_loop_lag_seconds", process="main") == 0.004
        assert 0 < value(found, "pylb_cpu_seconds_total", process="main") <= time.process_time() + 0.02
        assert 1e6 < value(found, "pylb_resident_memory_bytes", process="main") < 1e10
        assert time.time() - 60 < value(found, "pylb_start_time_seconds") <= time.time()
        assert value(found, "pylb_max_connections") == 1000
        assert value(found, "pylb_sessions") == value(found, "pylb_faults_total") == 0
        assert value(found, "pylb_leases_preserved") == 0
        assert "pylb_address_held" not in found
        assert value(found, "pylb_config_last_reload_successful") == 1
        assert value(found, "pylb_certificate_expiry_timestamp_seconds") == 1795419669


async def test_a_scrape_of_a_thousand_frontends_lets_the_loop_turn_and_survives_changes_meanwhile(tmp_path: Path) -> None:
    async with running(tmp_path) as control:
        frontends = control.engine.counters.frontends
        for port in range(1000):
            frontends[Listen("tcp", "*", port + 1)] = busy_frontend(f"frontend-{port}")
        turns = 0
        scrape = asyncio.get_running_loop().create_task(scraped(metrics_of(control)))
        while not scrape.done():
            turns += 1
            frontends.pop(Listen("tcp", "*", turns), None)
            frontends[Listen("tcp", "*", 2000 + turns)] = busy_frontend(f"late-{turns}")
            await asyncio.sleep(0)
        found = samples(await scrape)
        assert turns > 100  # 40,000 lines, at most some 250 between two turns
        assert len(found["pylb_frontend_sessions"]) >= 1000


async def test_views_of_many_servers_are_made_in_steps_that_let_the_loop_turn(tmp_path: Path) -> None:
    """Of a scrape, of `pylb routes`, of `pylb status`: no step has more than a few hundred of them."""
    pool = tuple(StaticServer(Address("127.0.0.1", 30000 + number)) for number in range(1000))
    statics = StaticFrontend("web", Listen("tcp", "127.0.0.1", free_port()), pool, Policy())
    async with running(tmp_path, Rules(frontends=(statics,))) as control:
        made = 0
        original = control.registry.each_server

        def counted() -> Iterator[ServerView]:
            nonlocal made
            for view in original():
                made += 1
                yield view

        control.registry.each_server = counted
        for ask in (scraped(metrics_of(control)), rows(control.registry)):
            made, most = 0, 0
            task = asyncio.get_running_loop().create_task(ask)
            while not task.done():
                before = made
                await asyncio.sleep(0)
                most = max(most, made - before)
            assert made == 1000
            assert most <= 2 * 250
            await task


async def test_who_has_a_floating_address_is_looked_up_at_each_scrape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as control:
        metrics = metrics_of(control, floating=("192.0.2.1", "2001:db8::1"))
        for own in (frozenset[str](), frozenset({"192.0.2.1", "192.0.2.7"})):
            monkeypatch.setattr(collector, "local_addresses", lambda own=own: own)
            found = samples(await scraped(metrics))["pylb_address_held"]
            assert {one.labels["address"]: one.value for one in found} == {
                "192.0.2.1": "192.0.2.1" in own,
                "2001:db8::1": 0,
            }
