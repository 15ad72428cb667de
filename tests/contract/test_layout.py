"""Sizes, what stands at the top, and where each module is tested (CONTRIBUTING.md: "Files and their tests")."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("pylb", "phonehome", "tests", "bench", "docs", "deploy")
MOST_LINES = 450  # in one file
MOST_AT_THE_TOP = 3  # modules beside the folders of pylb
MOST_WORDS = 1300  # in the README

# Modules without a test of their own name at the mirrored place, and the tests in tests/ that run them. Most of these tests
# are about a behaviour to which several modules belong: a life of a process, a stream of bytes, a call.
ELSEWHERE = {
    "pylb": {
        "__main__": "app/test_cli",
    },
    "pylb/api": {
        "cluster": "app/test_cluster",
        "completion": "app/test_completion",
        "explain": "app/test_explain",
        "plan": "app/test_plan",
        "routes": "control/test_operator_commands app/test_status",
        "status": "app/test_status",
        "verbs": "app/test_cli web/test_control_socket",
    },
    "pylb/app": {
        "app": "app/test_run app/test_upgrade",
        "background": "app/test_tasks",
        "descriptors": "contract/test_descriptors",
        "endpoints": "app/test_run",
        "engine_observer": "app/test_logs",
        "errors": "app/test_run",
        "forwarding": "app/test_run app/test_workers",
        "heartbeat": "app/test_service app/test_pauses",
        "operations": "app/test_hand_over app/test_plan",
        "reporting": "app/test_runtime app/test_exporter",
        "shutdown": "app/test_run",
    },
    "pylb/cli": {
        "client": "app/test_instance app/test_cli",
        "cluster": "app/test_cluster",
        "completion": "app/test_completion",
        "ctl": "app/test_cli",
        "demo": "e2e/test_demo_and_cli",
        "doctor": "app/test_explain",
        "explain": "app/test_explain",
        "forward": "app/test_forward",
        "history": "app/test_plan",
        "importing": "haproxy/test_import_command",
        "install": "deploy/test_install",
        "installed": "deploy/test_installed",
        "instance": "app/test_instance",
        "joins": "app/test_tokens",
        "main": "app/test_cli cli/test_every_verb",
        "plan": "app/test_plan",
        "program": "cli/test_every_verb",
        "sessions": "app/test_sessions",
        "standby": "app/test_standby",
        "status": "app/test_status",
        "tokens": "app/test_tokens",
        "uninstall": "deploy/test_installed",
    },
    "pylb/cluster": {
        "overview": "cluster/test_shared",
    },
    "pylb/config": {
        "addresses": "config/test_ranges config/test_mistakes",
        "checks": "config/test_mistakes",
        "cluster": "config/test_etcd",
        "entries": "config/test_mistakes",
        "explain": "config/test_mistakes",
        "files": "config/test_load",
        "frontends": "config/test_effects",
        "generated_tokens": "app/test_tokens",
        "models": "config/test_load config/test_effects",
        "pem": "config/test_etcd",
        "problems": "config/test_mistakes",
        "root": "config/test_load",
        "section": "config/test_mistakes",
        "value_type": "config/test_mistakes",
    },
    "pylb/control": {
        "desired_state": "control/test_calls",
        "event_texts": "control/test_calls",
        "fair_buffer": "control/test_event_log",
        "merged": "cluster/test_shared",
        "new_registration": "control/test_calls",
        "periodic": "control/test_time",
        "persistence": "control/test_restart",
        "publisher": "control/test_calls",
        "registrar": "control/test_calls",
        "registry": "control/test_calls control/test_time",
        "replaced_tokens": "control/test_rules",
        "sharing": "cluster/test_shared",
        "state": "control/test_calls",
        "views": "control/test_operator_commands control/test_health_sentence",
        "writer": "control/test_calls",
    },
    "pylb/control/health": {
        "dry_run": "app/test_explain",
        "records": "control/health/test_checker",
        "schedule": "control/health/test_checks_in_time",
    },
    "pylb/control/storage": {
        "entries": "control/test_restart",
        "places": "config/test_source app/test_instance",
        "snapshot": "control/test_restart",
    },
    "pylb/core": {
        "announcement": "core/test_registration core/test_server_set",
        "policy": "core/test_compose core/test_checks",
        "port_field": "core/test_registration",
        "static_rules": "core/test_compose core/test_protocols",
    },
    "pylb/core/merge": {
        "knowledge": "core/merge/test_replica core/merge/test_machine",
        "local": "core/merge/test_machine core/merge/test_releases",
        "mirror": "core/merge/test_replica core/merge/test_machine",
        "values": "core/merge/test_replica",
        "writing": "core/merge/test_replica core/merge/test_releases",
    },
    "pylb/forward": {
        "accounts": "forward/test_counts forward/test_servers",
        "counters": "forward/test_counts",
        "datagram_port": "forward/test_datagrams",
        "datagram_sockets": "forward/test_datagrams forward/test_datagram_faults",
        "dial": "forward/test_servers forward/test_hellos",
        "faults": "forward/test_boundaries",
        "flow": "forward/test_flows",
        "flow_sweep": "forward/test_flows",
        "lifecycle": "forward/test_streams forward/test_any_order",
        "live": "forward/test_flows forward/test_recorder",
        "passed_flows": "forward/test_flow_handover",
        "proxy_header": "forward/test_servers",
        "relay": "forward/test_streams",
        "routes": "forward/test_hellos",
        "session": "forward/test_engine forward/test_letters",
        "sockets": "forward/test_listener forward/test_twins",
        "timers": "forward/test_sweep forward/test_deadlines",
        "watched": "forward/test_boundaries",
    },
    "pylb/haproxy": {
        "binds": "haproxy/test_translate",
        "clients": "haproxy/test_translate",
        "columns": "haproxy/test_stats",
        "commands": "app/test_runtime haproxy/test_view",
        "exporter": "haproxy/test_view app/test_exporter",
        "info": "haproxy/test_view",
        "output": "app/test_runtime",
        "proxies": "haproxy/test_translate",
        "server_names": "haproxy/test_import_names",
        "servers": "haproxy/test_translate",
    },
    "pylb/host": {
        "systemd": "app/test_service workers/test_fleet",
    },
    "pylb/logs": {
        "async_writer": "logs/test_targets logs/test_session_log",
        "formats": "logs/test_session_log",
    },
    "pylb/metrics": {
        "cluster": "metrics/test_collector app/test_cluster",
        "families": "metrics/test_exposition",
        "flows": "metrics/test_collector app/test_udp",
    },
    "pylb/upgrade": {
        "leaving": "app/test_upgrade",
        "processes": "app/test_upgrade",
        "sockets": "app/test_service app/test_upgrade",
    },
    "pylb/web": {
        "control_client": "web/test_control_socket",
        "exchange": "web/test_server",
        "listener": "web/test_server",
        "openapi": "contract/test_openapi",
        "protocol": "web/test_server",
        "sessions": "web/test_admin",
        "unix": "web/test_control_socket",
        "views": "web/test_admin",
    },
    "pylb/workers": {
        "archive": "workers/test_fleet workers/test_sessions",
        "messages": "workers/test_totals workers/test_fleet",
        "process": "workers/test_fleet",
        "requests": "workers/test_sessions",
        "sink": "workers/test_fleet",
        "supervisor": "workers/test_fleet",
        "tables": "workers/test_fleet",
        "worker": "workers/test_fleet app/test_workers",
    },
    "phonehome": {
        "__main__": "phonehome/test_process",
        "output": "phonehome/test_process",
        "preflight": "phonehome/test_process",
        "values": "phonehome/test_settings",
    },
    "phonehome/controller": {
        "balancer": "kubernetes/test_controller",
        "command": "kubernetes/test_pylb",
        "kube": "phonehome/controller/test_watch",
        "objects": "phonehome/controller/test_desired",
        "pace": "phonehome/controller/test_work phonehome/controller/test_watch",
        "service_annotations": "phonehome/controller/test_desired",
        "sets": "kubernetes/test_controller",
    },
}
_NAME = re.compile(r"\b(?:pylb|phonehome|tests|bench)(?:\.[a-z_0-9]+)+")
_STARTED = re.compile(r'(?:python\(|"-m", )"(pylb|phonehome)"')  # a whole process


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def mirrored(module: Path) -> Path:
    """pylb/core/lease.py is tested in tests/core/test_lease.py, phonehome/pin.py in tests/phonehome/test_pin.py."""
    folder = module.parent.relative_to(ROOT / "pylb" if module.is_relative_to(ROOT / "pylb") else ROOT)
    return ROOT / "tests" / folder / f"test_{module.name}"


def untested() -> list[tuple[str, str]]:
    """(folder, module) of those without a test of their own name."""
    found = [path for folder in ("pylb", "phonehome") for path in sorted((ROOT / folder).rglob("*.py"))]
    found = [path for path in found if path.name != "__init__.py" and not mirrored(path).exists()]
    return [(str(path.parent.relative_to(ROOT)), path.stem) for path in found]


@cache
def named(file: Path) -> frozenset[Path]:
    """The files that this one imports, starts as a process, or (a test) has fixtures from."""
    source = file.read_text()
    names = set(_NAME.findall(source)) | {f"{program}.__main__" for program in _STARTED.findall(source)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    paths = [ROOT / name.replace(".", "/") for name in names]
    found = {path.with_suffix(".py") for path in paths} | {path / "__init__.py" for path in paths}
    found |= {folder / "conftest.py" for folder in file.parents if folder.is_relative_to(ROOT / "tests")}
    return frozenset(path for path in found if path.exists())


def reached(file: Path) -> set[Path]:
    found, new = {file}, [file]
    while new:
        more = named(new.pop()) - found
        found |= more
        new += more
    return found


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert len(lengths) > 700
    long = {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
    assert not long, f"more than {MOST_LINES} lines, so cut along a seam: {long}"


def test_only_few_modules_stand_beside_the_folders() -> None:
    modules = [path.name for path in (ROOT / "pylb").glob("*.py")]
    assert len(modules) <= MOST_AT_THE_TOP, f"put it into the folder of its layer: {modules}"


def test_the_readme_is_a_front_door() -> None:
    words = len((ROOT / "README.md").read_text().split())
    assert words <= MOST_WORDS, f"{words} words in README.md: move something to a page of docs/, and link to it"


def test_each_module_has_a_test_of_its_name_or_a_row_that_says_which_test_runs_it() -> None:
    missing = [(folder, name) for folder, name in untested() if name not in ELSEWHERE.get(folder, {})]
    rows = [f'"{folder}": {{"{name}": "FOLDER/test_…"}}' for folder, name in missing]
    files = [str(mirrored(ROOT / folder / f"{name}.py").relative_to(ROOT)) for folder, name in missing]
    what = "write {}, or, if another test runs the module, add to ELSEWHERE in tests/contract/test_layout.py: {}"
    assert not missing, "\n".join(what.format(file, row) for file, row in zip(files, rows, strict=True))


def test_no_row_is_superfluous() -> None:
    rows = {(folder, name) for folder, names in ELSEWHERE.items() for name in names}
    gone = sorted(rows - set(untested()))
    assert not gone, f"remove from ELSEWHERE what has a test of its own now, or is gone: {gone}"


@pytest.mark.parametrize("folder", ELSEWHERE)
def test_the_tests_in_the_rows_exist_and_load_or_start_the_module(folder: str) -> None:
    for name, tests in ELSEWHERE[folder].items():
        for test in tests.split():
            file = ROOT / "tests" / f"{test}.py"
            assert file.exists(), f"{folder}/{name}.py: {test} does not exist"
            assert re.search(r"^ *(async )?def test_", file.read_text(), re.MULTILINE), f"{test} has no test"
            assert ROOT / folder / f"{name}.py" in reached(file), f"{test} neither imports nor starts {folder}/{name}.py"
