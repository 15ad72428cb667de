"""What systemd is told: READY once ports serve, signs of life from the loop, STOPPING. (sd_notify(3))"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylb.service import Service
from tests.app.instance import Instance


class Systemd:
    """The other end of $NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(15)

    def hear(self) -> dict[str, str]:
        lines = self.sock.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def silence(self) -> None:
        """Returns once nothing was said for as long as its timeout is."""
        try:
            while self.hear():
                pass
        except TimeoutError:
            return

    def until(self, key: str) -> dict[str, str]:
        while key not in (said := self.hear()):
            pass
        return said


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    found = Systemd(tmp_path / "notify")
    yield found
    found.sock.close()


def environ(systemd: Systemd, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(systemd.path), **more}


def test_ready_means_that_restored_ports_serve(pylb: Instance, systemd: Systemd, echo_port: int) -> None:
    pylb.start(env=environ(systemd))
    assert systemd.hear() == {"READY": "1", "STATUS": "0 ports, 0 sessions"}
    pylb.register(pylb.port, echo_port)
    pylb.running.stop()
    assert systemd.until("STOPPING")["STATUS"].startswith("stopping: 0 sessions")
    pylb.launch(env=environ(systemd))
    assert systemd.until("READY")["STATUS"] == "1 ports, 0 sessions"
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=5):
        pass  # no wait, no retry: READY was said


def test_the_loop_shows_life_three_times_as_often_as_it_must(pylb: Instance, systemd: Systemd) -> None:
    pylb.start(env=environ(systemd, WATCHDOG_USEC="600000"))
    for _ in range(4):
        assert systemd.until("WATCHDOG") == {"WATCHDOG": "1"}
    pylb.running.signal(19)  # SIGSTOP: a loop that stands still
    systemd.sock.settimeout(1.5)
    systemd.silence()
    pylb.running.signal(18)  # SIGCONT
    systemd.sock.settimeout(15)
    assert systemd.until("WATCHDOG")


def test_a_config_that_is_wrong_is_never_ready(pylb: Instance, systemd: Systemd) -> None:
    pylb.file.write_text("webhok: 1\n")
    assert pylb.launch(env=environ(systemd)).wait() == 2
    systemd.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.hear()


def test_without_a_supervisor_or_with_a_deaf_one_nothing_is_told_and_nothing_fails(tmp_path: Path) -> None:
    for address in ("", str(tmp_path / "nobody"), "@pylb-nobody-listens-here"):
        service = Service({"NOTIFY_SOCKET": address})
        service.ready("x")
        service.alive()
        service.stopping("x")


def test_an_abstract_address_is_one(tmp_path: Path) -> None:
    name = f"pylb-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(5)
        Service({"NOTIFY_SOCKET": f"@{name}"}).status("here")
        assert sock.recv(100) == b"STATUS=here"


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "x"}, 0.0),
    ],
)
def test_the_watchdog_counts_if_it_is_ours(variables: dict[str, str], seconds: float) -> None:
    assert Service(variables).watchdog == seconds
