"""One pylb follows another: no connection is refused or cut, nothing is lost, and what does not start changes nothing."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.processes import children
from tests.app.instance import SECRET, Instance, echo, fetch
from tests.app.systemd import Systemd
from tests.app.versions import Tree, gone
from tests.support.load import Load
from tests.support.peers import need, need_root
from tests.support.ports import ports_in_a_row
from tests.support.waiting import eventually

BOTH = pytest.mark.parametrize("workers", [0, 2])


def connect(pylb: Instance) -> socket.socket:
    return socket.create_connection(("127.0.0.1", pylb.port), timeout=10)


def upgrade(pylb: Instance) -> int:
    """The pid of the new one."""
    done = pylb.ask("upgrade")
    assert done.returncode == 0, done.stderr + pylb.running.text()
    return int(done.stdout.split()[1])


@BOTH
def test_upgrades_in_a_row_cost_no_connection_and_no_count(
    pylb: Instance, echo_port: int, successors: list[int], workers: int, request: pytest.FixtureRequest
) -> None:
    """Ten in a row under 500 new connections a second; in make test three under 100."""
    rounds, rate = (10, 500.0) if request.config.getoption("--long") else (3, 100.0)
    pylb.configure(workers=workers)
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        assert echo(live) == b"ping"
        with Load(("127.0.0.1", pylb.port), rate, lambda sock: echo(sock) == b"ping") as load:
            for _ in range(rounds):
                before = load.done
                successors.append(upgrade(pylb))
                eventually(lambda before=before: load.done > before + 50, within=30)  # type: ignore[misc]
        assert load.failed == []
        assert echo(live) == b"ping"  # over all of them
        eventually(lambda: pylb.get("/v1/sessions").json["open"] == 1, what="the old one's session is counted")
        eventually(lambda: _sessions_total(pylb) == load.done + 1, what="every session is counted, once")
        assert process.alive  # for its one session
    process.wait()
    eventually(lambda: all(gone(pid) for pid in successors[:-1]), what="those before end with their last session")
    assert _sessions_total(pylb) == load.done + 1
    assert "upgraded" in [event["kind"] for event in pylb.get("/v1/events").json["events"]]  # a mark of the history


@BOTH
def test_every_port_of_a_range_is_served_through_an_upgrade_and_closed_with_it(
    pylb: Instance, echo_port: int, successors: list[int], workers: int
) -> None:
    width = 4
    first = ports_in_a_row(width)
    pylb.configure(workers=workers)
    process = pylb.start()
    answer = pylb.register(f"{first}-{first + width - 1}", echo_port)
    assert (answer.status, answer.json["frontends"][0]["last_port"]) == (201, first + width - 1)
    with ExitStack() as stack:
        socks = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for port in range(first, first + width)
            for _ in range(8)  # each worker has some
        ]
        assert [echo(sock) for sock in socks] == [b"ping"] * len(socks)
        successors.append(upgrade(pylb))
        assert [echo(sock) for sock in socks] == [b"ping"] * len(socks)
        for port in range(first, first + width):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                assert echo(sock) == b"ping"
    process.wait()
    [row] = pylb.routes()
    assert (row["port"], row["last_port"], row["frontend"]) == (first, first + width - 1, f"app-{first}-{first + width - 1}")
    assert pylb.ask("release", str(first + 1)).returncode == 0
    for port in range(first, first + width):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=10)


def _sessions_total(pylb: Instance) -> int:
    [row] = pylb.get("/v1/sessions").json["frontends"]
    return int(row["sessions_total"])


def test_sigusr2_upgrades_and_calls_made_meanwhile_are_answered(pylb: Instance, echo_port: int, successors: list[int]) -> None:
    limits = {"rate": 100_000, "burst": 100_000}
    pylb.configure(webhook={"listen": f"127.0.0.1:{pylb.webhook}", "limits": limits})
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    over, answers = threading.Event(), []

    def call() -> None:
        body = {"frontends": [{"port": pylb.port, "target_port": echo_port}], "ttl": None, "address": "127.0.0.1"}
        headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
        while not over.is_set():
            path = f"/v1/registrations/app/instance-{len(answers)}"
            answers.append(fetch(("127.0.0.1", pylb.webhook), "PUT", path, json.dumps(body), headers))

    caller = threading.Thread(target=call)
    caller.start()
    try:
        eventually(lambda: len(answers) > 20, what="calls are answered")
        process.signal(signal.SIGUSR2)
        process.has_said("info pylb: upgrade: process ")
        successors.append(int(process.text().partition("upgrade: process ")[2].split()[0]))
        before = len(answers)
        eventually(lambda: len(answers) > before + 20, what="calls are answered again")
    finally:
        over.set()
        caller.join(20)
    refused = [answer for answer in answers if answer.status != 201]
    assert all(answer.status == 503 for answer in refused)  # "call again": one that was under way just then
    assert len(refused) <= 1
    found = {one["instance"] for one in pylb.get("/v1/registrations").json["registrations"]}
    assert found == {"one"} | {f"instance-{number}" for number, answer in enumerate(answers) if answer.status == 201}
    assert process.wait() == 0
    assert f"Pid: {successors[0]}\n" in pylb.runtime("show info\n")


def test_a_new_version_that_does_not_start_leaves_the_old_one_in_charge(pylb: Instance, echo_port: int) -> None:
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        good = pylb.file.read_text()
        pylb.file.write_text(good.replace('"webhook"', '"webhok"'))
        done = pylb.ask("upgrade")
        pylb.file.write_text(good)
        assert done.returncode == 1
        assert f"the upgrade failed, process {process.pid} stays in charge: the other process has ended" in done.stderr
        assert "error: unknown key 'webhok' (did you mean 'webhook'?)" in done.stderr
        assert "webhok" in process.text()
        assert echo(live) == b"ping"
        with connect(pylb) as fresh:
            assert echo(fresh) == b"ping"
    assert pylb.register(pylb.port, echo_port, name="app").json["result"] == "unchanged"
    assert pylb.ask("routes").returncode == 0
    assert f"Pid: {process.pid}\n" in pylb.runtime("show info\n")


def test_a_new_version_that_dies_on_the_way_gives_everything_back(pylb: Instance, echo_port: int, tmp_path: Path) -> None:
    """After the sockets were handed over and the state was let go of: the worst moment."""
    tree = Tree(tmp_path / "versions")
    tree.install("1")
    made = "await self._make_registry(stack)"
    tree.install("2", ("pylb/app/app.py", made, f"{made}; __import__('os')._exit(3)"))
    process = pylb.start(argv=tree.command(pylb))
    pylb.register(pylb.port, echo_port)
    tree.use("2")
    for _ in range(2):
        done = pylb.ask("upgrade")
        assert done.returncode == 1
        assert "stays in charge: the other process has ended" in done.stderr
        with connect(pylb) as fresh:
            assert echo(fresh) == b"ping"
        assert pylb.register(pylb.port, echo_port).status == 200
    assert process.terminate() == 0


def test_at_the_limit_of_open_files_an_upgrade_is_refused_and_possible_later(
    pylb: Instance, echo_port: int, successors: list[int]
) -> None:
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    usual = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (process.descriptors() + 1, usual[1]))
    process.signal(signal.SIGUSR2)
    process.has_said(f"the upgrade failed, process {process.pid} stays in charge")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, usual)
    with connect(pylb) as fresh:
        assert echo(fresh) == b"ping"
    successors.append(upgrade(pylb))
    assert process.wait() == 0


@pytest.mark.parametrize("way", ["signal", "verb"])
def test_a_reload_during_an_upgrade_is_the_new_ones(
    pylb: Instance, echo_port: int, tmp_path: Path, successors: list[int], way: str
) -> None:
    """The file changes when the successor has read it, and the old one is still in charge."""
    tree, gate = Tree(tmp_path / "versions"), tmp_path / "gate"
    os.mkfifo(gate)
    wait = f"await asyncio.to_thread(open({str(gate)!r}).read)"  # until who writes closes
    tree.install("1", ("pylb/upgrade/handover.py", "await old.hold()", f"{wait}; await old.hold()"))
    tree.install("2")
    process = pylb.start(argv=tree.command(pylb))
    tree.use("2")
    process.signal(signal.SIGUSR2)
    with gate.open("w"):  # returns once it waits there
        static = {"name": "echo", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}
        pylb.configure(frontends=[static])
        if way == "signal":
            process.signal(signal.SIGHUP)
        else:
            done = pylb.ask("reload")
            assert (done.returncode, done.stdout.startswith("an upgrade is on its way")) == (0, True), done
    process.has_said("upgrade: process ")
    successors.append(int(process.text().partition("upgrade: process ")[2].split()[0]))
    eventually(lambda: _serves(pylb), what="what the reload brought")


def _serves(pylb: Instance) -> bool:
    try:
        with connect(pylb) as fresh:
            return echo(fresh) == b"ping"
    except ConnectionRefusedError:
        return False


def version(pylb: Instance) -> str:
    text = pylb.get("/metrics").body.decode()
    return text.partition("pylb_build_info{")[2].partition('version="')[2].partition("-")[0]


@BOTH
def test_up_to_the_next_version_and_down_again(
    pylb: Instance, echo_port: int, tmp_path: Path, successors: list[int], workers: int
) -> None:
    tree = Tree(tmp_path / "versions")
    for name in ("1", "2"):
        tree.install(name)
    pylb.configure(workers=workers)
    pylb.start(argv=tree.command(pylb))
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        for name in ("2", "1"):
            tree.use(name)
            successors.append(upgrade(pylb))
            assert version(pylb) == name
            assert echo(live) == b"ping"
            with connect(pylb) as fresh:
                assert echo(fresh) == b"ping"
            assert pylb.register(pylb.port, echo_port).json["result"] == "unchanged"


def test_replacing_the_files_of_a_running_pylb_is_harmless(pylb: Instance, echo_port: int, tmp_path: Path) -> None:
    """Everything is in memory: calls, pages, a reload and a worker's successor need none of it."""
    tree = Tree(tmp_path / "versions")
    root = tree.install("1")
    pylb.configure(workers=2)
    process = pylb.start(argv=tree.command(pylb))
    for file in (root / "pylb").rglob("*.py"):
        file.write_text("raise RuntimeError('half installed')\n")
    shutil.rmtree(root / "pylb" / "statuspage" / "ui")
    assert pylb.register(pylb.port, echo_port).status == 201
    victim = process.children()[0]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(process.children()) == 2 and victim not in process.children(), what="a successor")
    with ExitStack() as stack:
        assert all(echo(stack.enter_context(connect(pylb))) == b"ping" for _ in range(16))
    [style] = re.findall(r'href="(ui/[^"]+/style.css)"', pylb.get("/").body.decode())
    for path in (
        f"/{style}",
        "/metrics",
        "/readyz",
        "/livez",
        "/v1/table",
        "/v1/registrations",
        "/v1/sessions",
        "/v1/events",
        "/v1/rejected",
    ):
        assert pylb.get(path).status == 200, path
    for path in ("/openapi.json", "/v1/whoami"):
        assert pylb.get(path, port=pylb.webhook).status == 200, path
    for words in (
        ["routes"],
        ["explain", str(pylb.port)],
        ["history"],
        ["sessions"],
        ["plan"],
        ["release", str(pylb.port)],
    ):
        done = pylb.ask(*words)
        assert done.returncode == 0, (words, done.stderr)
    pylb.reload("reloaded: nothing in the table changed")
    done = pylb.ask("upgrade")
    assert (done.returncode, "stays in charge" in done.stderr) == (1, True)
    assert process.text().count("Traceback") == 1  # of the new one
    assert process.terminate() == 0


def test_what_the_one_before_had_counted_is_no_burst_and_its_sessions_are_in_the_status(
    pylb: Instance, echo_port: int, successors: list[int]
) -> None:
    pylb.start()
    pylb.register(pylb.port, echo_port)
    for _ in range(60):
        with connect(pylb) as sock:
            assert echo(sock) == b"ping"
    with connect(pylb) as live:
        assert echo(live) == b"ping"
        successors.append(upgrade(pylb))
        eventually(
            lambda: json.loads(pylb.ask("status", "--json").stdout)["sessions"] == 1, what="the old one's session is told"
        )
        assert _sessions_total(pylb) == 61
        with socket.socket(socket.AF_UNIX) as hatop:
            hatop.connect(str(pylb.state_dir / "haproxy.sock"))
            hatop.sendall(b"show info\n")
            info = b"".join(iter(lambda: hatop.recv(65536), b"")).decode()
        assert "CumConns: 6" in info
        assert "MaxConnRate: 0\n" in info


def test_a_stop_ends_those_before_too(pylb: Instance, echo_port: int) -> None:
    pylb.configure(defaults={"bind": "127.0.0.1", "timeouts": {"shutdown": "1s"}})
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        assert echo(live) == b"ping"
        pid = upgrade(pylb)
        process.has_said("ends with its 1 session,")
        os.kill(pid, signal.SIGTERM)
        assert process.wait() == 0
        with pytest.raises(ConnectionResetError):
            live.recv(1)
    eventually(lambda: gone(pid), what="the new one has stopped")


def test_a_stop_ends_one_whose_successor_died(pylb: Instance, echo_port: int) -> None:
    """Nobody can tell it any more, but that it exists is written down."""
    pylb.configure(defaults={"bind": "127.0.0.1", "timeouts": {"shutdown": "300ms"}})
    first = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        assert echo(live) == b"ping"
        second = upgrade(pylb)
        first.has_said("ends with its 1 session,")
        os.kill(second, signal.SIGKILL)
        eventually(lambda: gone(second), what="the successor is dead")
        third = pylb.start()
        assert echo(live) == b"ping"
        assert third.terminate() == 0
        assert not first.alive  # for systemd the service has ended
        assert first.wait() == 0
        with pytest.raises(ConnectionResetError):
            live.recv(1)


def test_one_that_ends_its_sessions_heeds_a_stop_of_its_own(pylb: Instance, echo_port: int, successors: list[int]) -> None:
    pylb.configure(defaults={"bind": "127.0.0.1", "timeouts": {"shutdown": "500ms"}})
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        assert echo(live) == b"ping"
        successors.append(upgrade(pylb))
        assert process.terminate() == 0
        with pytest.raises(ConnectionResetError):
            live.recv(1)
    with connect(pylb) as fresh:
        assert echo(fresh) == b"ping"


def test_systemd_knows_who_the_service_is(pylb: Instance, tmp_path: Path, successors: list[int]) -> None:
    """MAINPID comes from the old one, and before anything that the new one says: systemd heeds the main process alone."""
    systemd = Systemd(tmp_path)
    try:
        pylb.start(env=systemd.environ | {"WATCHDOG_USEC": "3000000"})
        assert systemd.until("READY")
        with ThreadPoolExecutor(1) as pool:  # its queue is short, and whoever reads nothing has no upgrade
            upgrading = pool.submit(upgrade, pylb)
            while "MAINPID" not in (said := systemd.hear()):
                assert said.keys() <= {"WATCHDOG", "STATUS"}
                assert not upgrading.done()
            successors.append(upgrading.result())
        assert said["MAINPID"] == str(successors[0])
        while "READY" not in said:
            said |= systemd.hear()
        assert said["FDSTORE"] == "1"
        assert "STOPPING" not in said
        assert systemd.until("WATCHDOG")
    finally:
        systemd.close()


def test_a_container_is_replaced_not_upgraded(pylb: Instance) -> None:
    """As process 1 of its pid namespace: it serves, reaps, heeds signals; an upgrade is refused and says what to do."""
    need_root()
    need("unshare")
    pylb.configure(workers=2)
    process = pylb.start(argv=("unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGTERM", *pylb.command("run")))
    done = pylb.ask("upgrade")
    assert (done.returncode, "start a new container instead" in done.stderr) == (1, True)
    [inner] = process.children()
    inside = ("nsenter", "--target", str(inner), "--pid", "--mount")
    orphan = subprocess.run([*inside, "sh", "-c", "sleep 0 & echo started"], capture_output=True, text=True, check=True)
    assert orphan.stdout == "started\n"
    eventually(lambda: len(children(inner)) == 2, what="of its children only the workers are left")
    assert not any(gone(pid) for pid in children(inner))
    os.kill(inner, signal.SIGTERM)
    assert process.wait() == 0
