"""timeouts.upgrade: how long live sessions have in a process that takes no new ones."""

import os
import signal

import pytest

from tests.app.instance import Instance, echo
from tests.app.test_upgrade import BOTH, connect, upgrade
from tests.support.waiting import eventually


def configure(pylb: Instance, workers: int, span: str) -> None:
    pylb.configure(workers=workers, defaults={"bind": "127.0.0.1", "timeouts": {"upgrade": span}})


@BOTH
def test_an_upgraded_pylb_ends_its_sessions_after_the_time_that_was_configured(
    pylb: Instance, echo_port: int, successors: list[int], workers: int
) -> None:
    configure(pylb, workers, "1s")
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        assert echo(live) == b"ping"
        successors.append(upgrade(pylb))
        process.has_said("ends with its 1 session, in 1 s at the latest")
        with pytest.raises(ConnectionResetError):
            live.recv(1)  # the socket's own timeout is 10 s
    assert process.wait() == 0


@BOTH
def test_a_reload_changes_it_for_the_next_upgrade(pylb: Instance, echo_port: int, successors: list[int], workers: int) -> None:
    configure(pylb, workers, "0s")
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    configure(pylb, workers, "7d")
    pylb.reload("reloaded: ")
    with connect(pylb) as live:
        assert echo(live) == b"ping"
        successors.append(upgrade(pylb))
        process.has_said("ends with its 1 session, in 7 days at the latest")
        assert echo(live) == b"ping"
    assert process.wait() == 0


def test_workers_whose_main_process_died_go_by_what_the_last_reload_said(pylb: Instance, echo_port: int) -> None:
    configure(pylb, 2, "12h")
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        assert echo(live) == b"ping"
        configure(pylb, 2, "500ms")
        pylb.reload("reloaded: ")
        orphans = process.children()
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ConnectionResetError):
            live.recv(1)
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in orphans), what="the orphans have ended")
