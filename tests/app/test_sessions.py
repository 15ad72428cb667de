"""`pylb sessions` and `pylb explain SESSION` against a running pylb, whose engine is its own or two workers'."""

import json
import socket
import struct
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pylb.cli.main import main
from tests.app.instance import Instance, echo
from tests.support.ports import free_port
from tests.support.waiting import eventually

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def start(pylb: Instance, echo_port: int, workers: int, **sections: Any) -> None:
    """One frontend: first a server that refuses, then one that echoes."""
    servers = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{echo_port}"]
    web = {
        "name": "web",
        "listen": f"127.0.0.1:{pylb.port}",
        "balance": "first",
        "health": {"mode": "none"},
        "servers": servers,
    }
    pylb.configure(workers=workers, frontends=[web], **sections)
    pylb.start()


def connect(pylb: Instance) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", pylb.port), timeout=10)
    assert echo(sock) == b"ping"
    return sock


def ask(pylb: Instance, *args: str) -> Result:
    """A verb of the CLI, in this process: a new one for each would be most of the test's time."""
    return CliRunner().invoke(main, [*args, "-c", str(pylb.file)])


def asked(pylb: Instance, *args: str) -> list[dict[str, Any]]:
    ended = ask(pylb, "sessions", "--json", *args)
    assert ended.exit_code == 0, ended.stderr
    found: list[dict[str, Any]] = json.loads(ended.stdout)
    return found


def told(pylb: Instance, session: str) -> str:
    ended = ask(pylb, "explain", session)
    assert ended.exit_code == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_what_became_of_each_session_can_be_asked(pylb: Instance, echo_port: int, workers: int) -> None:
    start(pylb, echo_port, workers)
    stays = connect(pylb)
    leaves = connect(pylb)
    leaver = "{}:{}".format(*leaves.getsockname())
    leaves.close()
    resets = [connect(pylb) for _ in range(4)]  # with two workers each has some of the six
    for one in resets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        one.close()
    eventually(lambda: len(pylb.get("/v1/sessions?ended=1").json["ended"]) == 5, what="five have ended")

    ended = asked(pylb, "--ended", "--client", "127.0.0.0/8", "--frontend", "web", "--since", "10m")
    assert sorted(one["code"] for one in ended) == ["--", "CD", "CD", "CD", "CD"]
    times = [one["ended_at"] for one in ended]
    assert all(later <= earlier + 0.002 for earlier, later in pairwise(times))  # newest first; durations are whole ms
    assert len({one["id"] for one in ended}) == 5
    assert {int(one["id"], 16) >> 48 for one in ended} <= ({1, 2} if workers else {0})
    [left] = asked(pylb, "--ended", "--code", "--,SC")
    assert (left["client"], left["closed_first"]["by"]) == (leaver, "client")

    trace = told(pylb, left["id"])
    first, *rest = trace.splitlines()
    assert first.startswith(f"session {left['id']} of {leaver} ended at ")
    assert first.endswith("with --: ended by both sides")
    assert any("tried: refused (ECONNREFUSED)" in line for line in rest)
    assert any("picked (first)" in line for line in rest)
    assert "attempts   1. " in trace
    assert "closed     first by the client (FIN)" in trace
    assert "bytes      4 from the client, 4 from the server" in trace
    killed = next(one for one in ended if one["code"] == "CD")
    assert "\nclient     CLOSE, rtt " in told(pylb, killed["id"])
    assert json.loads(ask(pylb, "explain", "--json", left["id"]).stdout)["candidates"][1]["address"] == f"127.0.0.1:{echo_port}"

    recorded = [line for line in told(pylb, str(pylb.port)).splitlines() if line.startswith("recorded ")]
    assert len(recorded) == 5
    assert any(f" {left['id']} {leaver} to 127.0.0.1:{echo_port}: -- after " in line for line in recorded)

    [live] = asked(pylb, "--client", "127.0.0.1")
    assert (live["client"], live["state"]) == ("{}:{}".format(*stays.getsockname()), "relaying")
    assert f"session {live['id']} of {live['client']} lives, for " in told(pylb, live["id"])
    stays.close()


def test_a_recorder_that_is_off_says_so(pylb: Instance, echo_port: int) -> None:
    start(pylb, echo_port, 1, recorder={"sessions": 0})
    assert "there is no frontend wbe now: `pylb routes` shows" in ask(pylb, "sessions", "--frontend", "wbe").stderr
    assert ask(pylb, "sessions", "--frontend", "web").stderr == "no session is live\n"
    client = connect(pylb)
    [live] = asked(pylb)
    assert told(pylb, live["id"]).startswith(f"session {live['id']} ")
    client.close()
    off = ask(pylb, "sessions", "--ended")
    assert (off.exit_code, "recorder.sessions is 0 in the config" in off.stderr) == (1, True)
    eventually(lambda: pylb.get("/v1/sessions").json["open"] == 0, what="it has ended")
    gone = ask(pylb, "explain", live["id"])
    assert (gone.exit_code, "does not live, and is not among the recorded ones" in gone.stderr) == (1, True)
    assert "'0xyz' is not a session id" in ask(pylb, "explain", "0xyz").stderr


@pytest.mark.parametrize(
    "argv",
    [
        ("explain", "nothing"),
        ("explain", "70000"),
        ("sessions", "--since", "soon"),
        ("sessions", "--limit", "1001"),
    ],
)
def test_what_is_no_question_is_exit_2(argv: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLB_CONFIG", "")  # no pylb runs there, whatever this machine has
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert CliRunner().invoke(main, argv).exit_code == 2


def test_every_list_of_what_was_says_how_far_back_it_goes(pylb: Instance, echo_port: int) -> None:
    begun = time.time()
    start(pylb, echo_port, 0)
    for path, key in (("events", "reach"), ("rejected", "reach"), ("sessions?ended=1", "ended_reach")):
        assert begun - 1 < pylb.get(f"/v1/{path}").json[key]["since"] <= time.time(), path
    for verb in (("history",), ("routes", "--rejected"), ("sessions", "--ended")):
        said = pylb.ask(*verb)
        assert " since " in said.stderr, (verb, said)
