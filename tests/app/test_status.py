"""`pylb status`: the sentence, the table, and the picture that is drawn again and again."""

import json
import re
import signal
import socket
import subprocess
from typing import Any

import pytest

from pylb.cli.status import parts
from pylb.cli.tables import Screen, written
from pylb.web.control_client import call
from tests.app.instance import Instance, echo
from tests.app.terminal import Terminal
from tests.support.ports import free_port
from tests.support.processes import ROOT
from tests.support.waiting import eventually


def frontend(port: int, **given: Any) -> dict[str, Any]:
    counts = {"sessions": 0, "queued": 0, "sessions_total": 0, "bytes_in": 0, "bytes_out": 0, "failures": 0, "denied": 0}
    head = {"port": port, "listen": f"*:{port}", "frontend": f"web-{port}", "health": "healthy", "why": ""}
    return head | {"servers": 2, "servers_up": 2, "accepting": 2, "passing": 1} | counts | given


def picture(*frontends: dict[str, Any], clock: float = 100.0, **given: Any) -> dict[str, Any]:
    return {
        "health": "all well",
        "version": "1.2.3",
        "pid": 77,
        "workers": 0,
        "uptime": 7200.0,
        "clock": clock,
        "generation": 5,
        "durable": True,
        "reloaded": True,
        "sessions": sum(one["sessions"] for one in frontends),
        "max_connections": 20_000,
        "frontends": list(frontends),
    } | given


def text(now: dict[str, Any], before: dict[str, Any] | None = None, rows: int | None = None) -> str:
    return written(parts(now, before, rows))


def cells(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


def test_without_an_earlier_look_there_are_no_rates() -> None:
    lines = text(picture(frontend(443, sessions=1234), workers=2)).splitlines()
    assert lines[:4] == [
        "all well",
        "pylb 1.2.3, pid 77, 2 workers, up 2 h, generation 5",
        "1,234 of 20,000 sessions",
        "",
    ]
    assert cells(lines[4])[:7] == ["PORT", "FRONTEND", "HEALTH", "SERVERS", "ACCEPT", "PASS", "SESSIONS"]
    assert cells(lines[5]) == ["443", "web-443", "healthy", "2/2", "2", "1", "1234", "0", "-", "-", "-", "-", "-"]
    assert lines[5].index("web-443") == lines[4].index("FRONTEND")
    assert text(picture()).splitlines()[-1] == "0 of 20,000 sessions"


def test_on_a_narrow_terminal_no_line_is_longer() -> None:
    before = picture(frontend(443), clock=99.0)
    lines = written(parts(picture(frontend(443)), before), Screen(40)).splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(lines[:4]).endswith("0 of 20,000 sessions, 0.0 new/s, in 0 bytes/s, out 0 bytes/s")


def test_rates_are_of_the_time_between_two_looks() -> None:
    before = picture(frontend(443, sessions_total=10, bytes_in=1000, bytes_out=0, failures=1, denied=0), clock=100.0)
    later = frontend(443, sessions_total=30, bytes_in=3_001_000, bytes_out=2_400_000_000, failures=2, denied=8)
    lines = text(picture(later, frontend(444), clock=102.0), before).splitlines()
    assert lines[2] == "0 of 20,000 sessions, 10.0 new/s, in 1.5 MB/s, out 1.2 GB/s"
    assert cells(lines[5])[8:] == ["10.0", "1.5 MB", "1.2 GB", "0.5", "4.0"]
    assert cells(lines[6])[8:] == ["-"] * 5  # it was not there before


def test_counts_that_begin_anew_are_no_rates() -> None:
    before = picture(frontend(443, sessions_total=10), clock=100.0, pid=76)
    assert "-" in cells(text(picture(frontend(443, sessions_total=3), clock=102.0), before).splitlines()[5])
    reused = picture(frontend(443, sessions_total=10), clock=100.0)  # the port was closed and opened again
    assert cells(text(picture(frontend(443, sessions_total=3), clock=102.0), reused).splitlines()[5])[8] == "0.0"


def test_where_there_is_no_room_for_all_the_unwell_and_the_busy_are_shown() -> None:
    before = picture(*(frontend(port) for port in range(1, 9)), clock=100.0)
    frontends = [frontend(port) for port in range(1, 9)]
    frontends[4] |= {"sessions_total": 50}
    frontends[6] |= {"health": "down"}
    frontends[7] |= {"health": "degraded"}
    lines = text(picture(*frontends, clock=101.0), before, rows=3).splitlines()
    assert [cells(line)[0] for line in lines[5:8]] == ["7", "8", "5"]
    assert lines[8] == "and 5 more: pylb status"
    assert "more" not in text(picture(*frontends), before, rows=8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_running_pylb_says_how_it_is(workers: int, pylb: Instance, echo_port: int) -> None:
    lost = free_port()
    static = {"name": "web", "listen": f"127.0.0.1:{lost}", "servers": [f"127.0.0.1:{free_port()}"]}
    pylb.configure(frontends=[static], workers=workers)
    pylb.start()
    pylb.register(pylb.port, echo_port)
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", lost)) as client, pytest.raises(ConnectionResetError):
            client.recv(1)
    with socket.create_connection(("127.0.0.1", pylb.port)) as client:
        assert echo(client) == b"ping"

        def said() -> dict[str, Any]:
            found: dict[str, Any] = call(pylb.state_dir / "control.sock", {"verb": "status"})["status"]
            text = r"1 of 2 frontends healthy; web lost 127\.0\.0\.1:\d+ \d+ s ago "
            text += r"\(it accepts no connections: refused\) and has no other"
            assert re.fullmatch(text, found["health"])
            return found

        found = eventually(said)
        assert (found["pid"], found["workers"], found["sessions"]) == (pylb.running.pid, workers, 1)
        own, other = sorted(found["frontends"], key=lambda one: one["port"] == lost)
        assert (own["frontend"], own["health"], own["servers_up"], own["sessions"]) == (f"app-{pylb.port}", "healthy", 1, 1)
        assert (other["health"], other["servers_up"], other["servers"], other["failures"]) == ("down", 0, 1, 3)
        assert (own["accepting"], own["passing"], other["accepting"], other["passing"]) == (1, 1, 0, 0)
        pylb.configure(frontends=[static], workers=workers + 1)
        pylb.reload("reload refused")
        assert said_first(
            pylb, "1 of 2 frontends healthy; the config on disk was refused, the one before is in force; web lost"
        )


def said_first(pylb: Instance, beginning: str) -> bool:
    """By the command; its rates are of one second."""
    ended = pylb.ask("status")
    lines = ended.stdout.splitlines()
    assert "new/s" in lines[2]
    return ended.returncode == 0 and lines[0].startswith(beginning)


def test_where_no_pylb_runs_it_is_exit_2(pylb: Instance) -> None:
    ended = pylb.ask("status", "--watch")
    assert (ended.returncode, "no pylb is running" in ended.stderr) == (2, True)


WATCH = ("status", "--watch", "--every", "0.1")


def test_on_a_terminal_it_is_drawn_again_until_ctrl_c_also_over_a_restart(pylb: Instance) -> None:
    pylb.start()
    with Terminal(pylb.command(*WATCH)) as terminal:
        eventually(lambda: terminal.sent.count(b"no frontends yet") > 2, what="three pictures")
        assert terminal.text.count("no frontends yet") == 1  # each takes the place of the one before
        assert pylb.running.terminate() == 0
        eventually(lambda: "no pylb is running" in terminal.text, what="it says that none runs")
        pylb.configure(frontends=[{"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": []}])
        pylb.start()
        eventually(lambda: "the one frontend is down; web has no server yet" in terminal.text, what="the new one's")
        assert terminal.line(str(pylb.port)).split()[:3] == [str(pylb.port), "web", "down"]
        assert terminal.colour("down !") == "red"
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(10) == 0
    assert b"Traceback" not in terminal.sent


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids="".join)
def test_a_terminal_without_colours_gets_none(pylb: Instance, environment: dict[str, str]) -> None:
    pylb.configure(frontends=[{"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": []}])
    pylb.start()
    with Terminal(pylb.command(*WATCH), **environment) as terminal:
        eventually(lambda: terminal.sent.count(b"web has no server yet") > 1, what="two pictures")
    assert re.findall(rb"\x1b\[[0-9;]*m", terminal.sent) == []


def test_into_a_pipe_pictures_follow_one_another_without_escapes(pylb: Instance) -> None:
    pylb.start()
    argv = pylb.command("status", "--watch", "--every", "0.1", "--json")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={"PYTHONUNBUFFERED": "1"}) as process:
        assert process.stdout
        found = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert found[1]["clock"] > found[0]["clock"]
    assert found[0]["health"] == "no frontends yet"
