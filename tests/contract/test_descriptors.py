"""One budget of descriptors: with every place taken, of sessions, calls, pages and checks, calls are answered and the state is
written."""

import json
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pylb.app.descriptors import budget
from pylb.config import parse
from tests.contract.instance import Pylb, serving, token, wants
from tests.support.ports import free_port, free_ports
from tests.support.processes import Processes
from tests.support.waiting import eventually

NOFILE = 512


def _silent(port: int, count: int) -> list[socket.socket]:
    """From as many sources as there are sockets; who is cut again does not matter: another one has its place."""
    found = []
    for number in range(count):
        sock = socket.socket()
        sock.bind((f"127.7.{number // 200}.{number % 200 + 1}", 0))
        sock.settimeout(5)
        sock.connect(("127.0.0.1", port))
        found.append(sock)
    return found


def _local(path: Path, count: int) -> list[socket.socket]:
    found = []
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        found.append(sock)
    return found


def _black_holes(stack: ExitStack, count: int) -> list[str]:
    """Addresses whose connects hang: listening sockets with a full backlog."""
    found, port = [], free_port()
    for number in range(count):
        sock = stack.enter_context(socket.socket())
        sock.bind((f"127.9.0.{number + 1}", port))
        sock.listen(0)
        filler = stack.enter_context(socket.socket())
        filler.connect(sock.getsockname())
        found.append(f"127.9.0.{number + 1}:{port}")
    return found


@pytest.mark.timeout(120)
def test_with_every_descriptor_in_its_use_calls_are_answered_and_the_state_is_written(
    processes: Processes, tmp_path: Path
) -> None:
    port, backend, second, scraped = free_ports(4)
    with ExitStack() as stack:
        stack.enter_context(serving("app", backend))
        pylb = Pylb(processes, tmp_path, tokens=[token("app")])
        frontends: list[dict[str, Any]] = [
            {"name": "busy", "listen": f"127.0.0.1:{port}", "servers": [f"127.0.0.1:{backend}"]},
            {
                "name": "holes",
                "listen": f"127.0.0.1:{free_port()}",
                "servers": _black_holes(stack, 40),
                "health": {"mode": "active", "interval": "100ms"},
            },
        ]
        doors = [{"listen": f"127.0.0.1:{pylb.webhook}"}, {"listen": f"127.0.0.1:{second}"}]
        pylb.configure(webhook=doors, frontends=frontends, metrics={"listen": f"127.0.0.1:{scraped}", "allow": ["127.0.0.0/8"]})
        pylb.start("prlimit", f"--nofile={NOFILE}:{NOFILE}")
        room = budget(parse(pylb.file.read_text(), "pylb.yaml"), NOFILE)
        for sock in [
            *_silent(port, room.sessions + 5),
            *_silent(pylb.webhook, room.webhook[0] + 5),
            *_silent(second, room.webhook[1] + 5),
            *_silent(pylb.admin, room.pages + 5),
            *_silent(scraped, room.pages + 5),
            *_local(pylb.state_dir / "control.sock", 15),
            *_local(pylb.state_dir / "haproxy.sock", 15),
        ]:
            stack.enter_context(sock)
        eventually(lambda: pylb.running.descriptors() > 0.7 * NOFILE, what="what is no pipe or file is in use")
        for number in range(30):
            answer = pylb.put(f"app/{number}", wants((free_port(), 30000)))
            assert (answer.status, answer.json["durable"]) == (201, True)
        assert pylb.get("/livez").status == 200
        text = pylb.running.text()
        assert "out of file descriptors" not in text
        assert "Too many open files" not in text


@pytest.mark.parametrize("nofile", [256, 512, 1024, 4096, 524288])
@pytest.mark.parametrize("webhooks", [1, 4])
def test_the_parts_of_the_budget_are_never_more_than_the_whole(nofile: int, webhooks: int) -> None:
    listeners = [{"listen": f"127.0.0.1:{9000 + number}"} for number in range(webhooks)]
    config = parse(json.dumps({"webhook": listeners, "metrics": {"listen": "127.0.0.1:9404"}}), "pylb.yaml")
    found = budget(config, nofile)
    assert sum(found.webhook) <= max(nofile // 8, 16 * webhooks)
    pipes = 2 * min(512, nofile // 16)
    assert found.sessions == 1 or found.reserve + pipes + 2 * found.sessions <= nofile
    assert nofile < 512 or found.sessions > nofile // 16
