"""A fault in any work beside the writer costs that work a moment: sessions live, it is counted, and it works again."""

import ast
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

import pylb as pylb_package
from pylb.control.tasks import Part
from tests.app.instance import SECRET, Instance, echo, fetch
from tests.support.faulty import PLACES
from tests.support.ports import refusing_port
from tests.support.processes import python
from tests.support.waiting import eventually


def failures(pylb: Instance, part: Part) -> float:
    line = f'pylb_task_failures_total{{task="{part}"}} '
    (found,) = [text for text in pylb.get("/metrics").body.decode().splitlines() if text.startswith(line)]
    return float(found.removeprefix(line))


def call(pylb: Instance, instance: str, target: int) -> None:
    """A registration that is new each time: an event, an answer."""
    body = json.dumps({"frontends": [{"port": pylb.port, "target_port": target}], "ttl": None, "address": "127.0.0.1"})
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    path = f"/v1/registrations/app/{instance}"
    assert fetch(("127.0.0.1", pylb.webhook), "DELETE", path, None, headers).status == 200
    assert fetch(("127.0.0.1", pylb.webhook), "PUT", path, body, headers).status == 201


def visit(pylb: Instance) -> None:
    with socket.create_connection(("127.0.0.1", pylb.port), 5) as client:
        assert echo(client) == b"ping"


def watch(pylb: Instance, seconds: int = 2) -> None:
    """The status page, for so many of its seconds."""
    with urlopen(f"http://127.0.0.1:{pylb.admin}/v1/stream", timeout=10) as stream:
        points = (raw for raw in stream if raw.startswith(b"data: ") and '"point"' in raw.decode())
        for _ in range(seconds):
            next(points)


# What the others do by themselves within a second.
TRIGGERS: dict[Part, Callable[[Instance, int], object]] = {
    Part.RELOAD: lambda pylb, _: pylb.running.signal(signal.SIGHUP),
    Part.EVENTS: lambda pylb, target: call(pylb, "two", target),
    Part.ANSWERS: lambda pylb, target: call(pylb, "two", target),
    Part.SESSIONS: lambda pylb, _: visit(pylb),
    Part.PEERS: lambda pylb, _: watch(pylb),
    Part.UPGRADE: lambda pylb, _: pylb.running.signal(signal.SIGUSR2),
    Part.PROCESSES: lambda pylb, _: [os.kill(worker, signal.SIGKILL) for worker in pylb.running.children()],
}
AT_START = {Part.ADDRESSES}  # and then only when this machine has another address
HERE = [part for part in Part if part not in (Part.WORKERS, Part.PREDECESSOR, Part.SUCCESSOR, Part.PROCESSES)]


def test_every_part_has_a_fault_to_order() -> None:
    assert set(PLACES) == set(Part)


# What starts a task or a thread without the boundary, and why its failure harms nothing else.
OTHERWISE = {
    ("app/background.py", "_start"): "of `once` and `forever`; of `start` for the registry, which is essential",
    ("control/registry.py", "start"): "the writer, which is essential",
    ("control/registry.py", "run"): "the maintenance: all that it does is `forever`",
    ("control/health/checker.py", "probe"): "awaited there, as a part",
    ("control/health/checker.py", "dial_until_one"): "awaited there, by a call",
    ("control/health/checker.py", "_answer"): "awaited there, as a part or by a call",
    ("statuspage/peers.py", "_each"): "awaited there, by `ask` as a part, by `active` for whoever asks",
    ("cluster/sync.py", "_session"): "awaited there; what fails in one of them ends the session",
    ("cluster/shared.py", "run"): "awaited there, as a part",
    ("cluster/shared.py", "_run_once"): "awaited there, as a part",
    ("web/server.py", "_listen_for"): "ends its connection alone",
    ("logs/async_writer.py", "__init__"): "what fails there are lost lines",
    ("control/storage/disk.py", "run"): "what fails there is raised where it is awaited",
    ("host/machine.py", "resolve"): "what fails there is a name without an answer",
}


def starts(tree: ast.Module) -> Iterator[str]:
    """The functions that start a task or a thread, but for those that give a task its boundary on the spot."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            match node:
                case ast.Call(
                    func=ast.Attribute(attr="create_task"), args=[ast.Call(func=ast.Attribute(attr="once" | "forever"))]
                ):
                    pass
                case ast.Call(func=ast.Attribute(attr="create_task" | "ensure_future" | "Thread" | "ThreadPoolExecutor")):
                    yield function.name


def test_whatever_is_started_in_main_has_the_boundary_or_needs_none() -> None:
    """Also what is started tomorrow. The callbacks of the loop have its exception handler (Part.CALLBACK)."""
    package = Path(*pylb_package.__path__)
    found = {
        (str(path.relative_to(package)), name)
        for path in package.rglob("*.py")
        if path.relative_to(package).parts[0] != "cli"
        for name in starts(ast.parse(path.read_text()))
    }
    assert found == set(OTHERWISE)
    past = [text for path in package.rglob("*.py") if (text := path.read_text()).count("background.start(")]
    assert len(past) == 1, "past the boundary: the registry alone"


@pytest.mark.parametrize("part", HERE)
def test_a_fault_in_it_ends_no_session_is_counted_and_passes(
    pylb: Instance, echo_port: int, tmp_path: Path, part: Part
) -> None:
    notify = tmp_path / "notify"
    (tmp_path / "faults").mkdir()
    if part is Part.CLUSTER:  # nobody is there: it tries again and again
        pylb.configure(cluster={"etcd": {"endpoints": [f"http://127.0.0.1:{refusing_port()}"]}})
    if part in AT_START:
        (tmp_path / "faults" / part).touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(notify))
        environ = {"FAULTS": str(tmp_path / "faults"), "NOTIFY_SOCKET": str(notify), "WATCHDOG_USEC": "300000"}
        pylb.start(argv=python("tests.support.faulty", "run", "-c", str(pylb.file)), env=environ)
        assert pylb.register(pylb.port, echo_port).status == 201
        with socket.create_connection(("127.0.0.1", pylb.port), 5) as session:
            assert echo(session) == b"ping"
            one_fault(pylb, echo_port, tmp_path / "faults", part)
            assert echo(session) == b"ping"
            visit(pylb)
            assert pylb.running.alive


def one_fault(pylb: Instance, target: int, folder: Path, part: Part) -> None:
    trigger = TRIGGERS.get(part, lambda *_: None)
    if part not in AT_START:
        assert failures(pylb, part) == 0
        (folder / part).touch()
    trigger(pylb, target)
    eventually(lambda: failures(pylb, part) == 1, what=f"a fault of {part} is counted\n{pylb.running.text()}")
    pylb.running.has_said(f"{part} failed, everything else goes on")
    pylb.running.has_said("RuntimeError: a fault to order")  # the end of its traceback
    trigger(pylb, target)
    eventually((folder / f"{part}.well").exists, what=f"{part} works again\n{pylb.running.text()}")


def test_a_fault_in_what_a_worker_says_ends_no_session(pylb: Instance, echo_port: int, tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    pylb.configure(workers=1)
    pylb.start(argv=python("tests.support.faulty", "run", "-c", str(pylb.file)), env={"FAULTS": str(tmp_path / "faults")})
    assert pylb.register(pylb.port, echo_port).status == 201
    with socket.create_connection(("127.0.0.1", pylb.port), 5) as session:
        assert echo(session) == b"ping"
        one_fault(pylb, echo_port, tmp_path / "faults", Part.WORKERS)
        assert echo(session) == b"ping"
        assert "\npylb_worker_restarts_total 0.0\n" in pylb.get("/metrics").body.decode()


@pytest.mark.parametrize("part", [Part.SUCCESSOR, Part.PREDECESSOR])
def test_a_fault_between_two_pylbs_ends_no_session_and_is_counted_by_the_new_one(
    pylb: Instance, echo_port: int, tmp_path: Path, part: Part, successors: list[int]
) -> None:
    """SUCCESSOR is work of the old one, which nobody can ask for metrics any more."""
    (tmp_path / "faults").mkdir()
    pylb.start(argv=python("tests.support.faulty", "run", "-c", str(pylb.file)), env={"FAULTS": str(tmp_path / "faults")})
    assert pylb.register(pylb.port, echo_port).status == 201
    with socket.create_connection(("127.0.0.1", pylb.port), 5) as session:
        assert echo(session) == b"ping"
        done = pylb.ask("upgrade")
        assert done.returncode == 0, done.stderr
        successors.append(int(done.stdout.split()[1]))
        one_fault(pylb, echo_port, tmp_path / "faults", part)
        failed = [event for event in pylb.get("/v1/events").json["events"] if event["kind"] == "task_failed"]
        assert [(event["fields"]["task"], event["alarm"]) for event in failed] == [(part, True)]
        assert echo(session) == b"ping"
        visit(pylb)
        assert pylb.running.alive
    assert pylb.running.wait() == 0


def test_a_new_worker_that_cannot_be_written_down_serves_all_the_same(pylb: Instance, echo_port: int, tmp_path: Path) -> None:
    (tmp_path / "faults").mkdir()
    pylb.configure(workers=1)
    pylb.start(argv=python("tests.support.faulty", "run", "-c", str(pylb.file)), env={"FAULTS": str(tmp_path / "faults")})
    assert pylb.register(pylb.port, echo_port).status == 201
    one_fault(pylb, echo_port, tmp_path / "faults", Part.PROCESSES)
    eventually(lambda: visit(pylb) is None, what="the worker serves")


def test_nothing_is_raised_in_an_except_star() -> None:
    """Python before 3.11.4 (Debian 12 has 3.11.2) puts it into another group, which nobody catches by its type."""
    package = Path(*pylb_package.__path__)
    for path in (*package.rglob("*.py"), *(package.parent / "bench").rglob("*.py")):
        for group in ast.walk(ast.parse(path.read_text())):
            if isinstance(group, ast.TryStar):
                raised = [
                    node.lineno for handler in group.handlers for node in ast.walk(handler) if isinstance(node, ast.Raise)
                ]
                assert not raised, f"{path}:{raised}"
