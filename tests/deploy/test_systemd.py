"""deploy/systemd/pylb.service, judged by systemd's own tools; no systemd has to run for that."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY
from tests.support.peers import need

UNIT = DEPLOY / "systemd/pylb.service"
EXPOSURE = 20  # of 100; measured 17, most of it being on the network, which is the job


def service() -> dict[str, list[str]]:
    """Key -> values of [Service], in order."""
    found: dict[str, list[str]] = {}
    section = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0]
    for line in section.splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def only(key: str) -> str:
    (value,) = service()[key]
    return value


@pytest.fixture
def runnable(tmp_path: Path) -> Path:
    """The unit with a program that exists here: `verify` looks for it."""
    path = tmp_path / "pylb.service"
    text = UNIT.read_text()
    assert "ExecStart=/opt/pylb/bin/pylb " in text
    path.write_text(text.replace("/opt/pylb/bin/pylb ", "/bin/true "))
    return path


def analyze(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=30)


def test_systemd_finds_no_fault_in_the_unit(runnable: Path) -> None:
    result = analyze(need("systemd-analyze"), "verify", "--man=no", runnable)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_systemd_finds_the_fault_in_a_broken_unit(runnable: Path) -> None:
    runnable.write_text(runnable.read_text().replace("TimeoutStopSec=15s", "TimeoutStopSeconds=15s"))
    assert "TimeoutStopSeconds" in analyze(need("systemd-analyze"), "verify", "--man=no", runnable).stderr


def test_the_unit_is_well_locked_in(runnable: Path) -> None:
    program = need("systemd-analyze")
    result = analyze(program, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", runnable)
    assert result.returncode == 0, result.stdout
    open_unit = runnable.with_name("open.service")
    open_unit.write_text("[Service]\nExecStart=/bin/true\n")
    result = analyze(program, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE}", open_unit)
    assert result.returncode != 0


@pytest.mark.parametrize(
    "call",
    [
        "splice",
        "memfd_create",
        "pidfd_open",
        "pidfd_send_signal",
        "vfork",
        "setsid",
        "pipe2",
        "epoll_pwait",
        "accept4",
        "prlimit64",
        "renameat2",
        "fsync",
    ],
)
def test_the_system_calls_pylb_lives_on_pass_the_filter(call: str) -> None:
    assert service()["SystemCallFilter"] == ["@system-service", "~@privileged"]
    program = need("systemd-analyze")
    assert call in members(program, "@system-service") - members(program, "@privileged")


def members(program: str, group: str) -> set[str]:
    """The system calls of a group, those of the groups inside it included."""
    found: set[str] = set()
    for line in analyze(program, "syscall-filter", "--no-pager", group).stdout.splitlines():
        name = line.strip()
        if line.startswith("    ") and not name.startswith("#"):
            found |= members(program, name) if name.startswith("@") else {name}
    return found


def test_it_may_use_every_family_of_addresses_that_pylb_uses() -> None:
    """Without netlink a new address of the machine would be noticed after half a minute."""
    used = {
        name for file in (DEPLOY.parent / "pylb").rglob("*.py") for name in re.findall(r"\bAF_[A-Z0-9]+\b", file.read_text())
    }
    assert set(only("RestrictAddressFamilies").split()) == used - {"AF_UNSPEC"}


def test_it_runs_as_its_own_user_with_one_capability() -> None:
    assert (only("User"), only("Group")) == ("pylb", "pylb")
    assert only("CapabilityBoundingSet") == only("AmbientCapabilities") == "CAP_NET_BIND_SERVICE"
    assert only("NoNewPrivileges") == "yes"
    assert "PrivateUsers" not in service()  # in a user namespace the capability binds no low port of the host


def test_it_starts_the_installed_pylb_with_the_config_and_waits_for_its_word() -> None:
    """What it says is in tests/app/test_service.py."""
    assert only("ExecStart") == "/opt/pylb/bin/pylb run -c /etc/pylb/pylb.yaml"
    assert only("Type") == "notify"
    assert only("NotifyAccess") == "main"
    assert only("WatchdogSec") == "30s"
    assert only("ExecReload") == "/opt/pylb/bin/pylb reload -c /etc/pylb/pylb.yaml"


def test_it_keeps_the_sockets_over_a_restart_and_leaves_sessions_to_whoever_has_them() -> None:
    """What becomes of them is in tests/app/test_service.py, test_workers.py and test_upgrade.py."""
    assert int(only("FileDescriptorStoreMax")) >= 4096  # a thousand ports on four workers
    assert only("KillMode") == "process"


def test_a_crash_leaves_no_core_with_its_secrets_and_a_leak_does_not_take_the_machine() -> None:
    assert only("LimitCORE") == "0"
    assert only("MemoryMax") == "75%"


def test_it_has_descriptors_and_more_time_to_stop_than_sessions_get() -> None:
    soft, hard = only("LimitNOFILE").split(":")
    assert soft == hard == "1048576"
    stop = re.fullmatch(r"(\d+)s", only("TimeoutStopSec"))
    assert stop
    assert int(stop[1]) > 5 + 5  # timeouts.shutdown and as much again for the snapshot


def test_it_is_restarted_for_ever() -> None:
    assert only("Restart") == "always"
    assert "StartLimitIntervalSec=0" in UNIT.read_text().partition("[Service]")[0].splitlines()


def test_systemd_makes_the_directories_that_pylb_expects() -> None:
    assert only("StateDirectory") == "pylb"
    assert only("ConfigurationDirectory") == "pylb"
    assert only("ConfigurationDirectoryMode") == "0750"  # as install-service makes it, else systemd warns at each start
