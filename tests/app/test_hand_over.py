"""Signals and deaths at every moment of an upgrade: none is lost, and never more than one pylb is in charge.

The moments are places in the source: the old version does something to itself there, by an edit of its installed copy.
"""

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.app.instance import Instance, echo
from tests.app.systemd import Systemd
from tests.app.versions import Tree, gone, known
from tests.support import faulty
from tests.support.processes import python
from tests.support.waiting import eventually

# (file, the statement before which it happens), in the order of an upgrade. Before "go" the old one is in charge.
BEFORE_GO = {
    "the successor is there": ("pylb/upgrade/handover.py", 'said, _ = await conversation.expect("ready", READY)'),
    "the state is about to be held": ("pylb/upgrade/handover.py", "await old.hold()"),
    "everything was handed over": ("pylb/upgrade/handover.py", 'await conversation.expect("serving", SERVING)'),
    "the successor serves": ("pylb/upgrade/handover.py", "await _tell_systemd(introduce, successor)"),
}
AFTER_GO = {
    "the successor is in charge": ("pylb/app/upgrade.py", "live, seconds = self._forwarding.open_sessions"),
    "the doors are about to be closed": ("pylb/app/upgrade.py", "timeouts = self._settings.config.defaults.timeouts\n"),
    "the last session has ended": ("pylb/app/shutdown.py", "await self._before.ended(at_once=self._at_once)"),
}


def doing(place: tuple[str, str], what: str) -> tuple[str, str, str]:
    """An edit: `what` happens there."""
    file, statement = place
    return file, statement, f"{what}; {statement}"


def serves(pylb: Instance) -> bool:
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=5) as fresh:
        return echo(fresh) == b"ping"


def living(pylb: Instance) -> list[int]:
    return [pid for pid in known(pylb) if not gone(pid)]


@pytest.mark.parametrize("moment", [*BEFORE_GO, *AFTER_GO])
def test_a_reload_is_begun_by_whoever_is_in_charge(
    pylb: Instance, echo_port: int, tmp_path: Path, moment: str, successors: list[int]
) -> None:
    """The file changes at that moment, and SIGHUP goes to the old one right behind."""
    pylb.configure(frontends=[{"name": "echo", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}])
    changed = tmp_path / "changed.yaml"
    pylb.file.rename(changed)
    pylb.configure()
    tree = Tree(tmp_path / "versions")
    step = f"os.path.exists({str(changed)!r}) and (os.replace({str(changed)!r}, {str(pylb.file)!r}), os.kill(os.getpid(), 1))"
    move = f"(lambda os: {step})(__import__('os'))"  # not each of these files imports it
    tree.install("1", doing((BEFORE_GO | AFTER_GO)[moment], move))
    tree.install("2")
    process = pylb.start(argv=tree.command(pylb))
    tree.use("2")
    done = pylb.ask("upgrade")
    assert done.returncode == 0, done.stderr + process.text()
    successors.append(int(done.stdout.split()[1]))
    assert process.wait() == 0
    eventually(lambda: serves(pylb), what=f"what the reload brought\n{process.text()}")


@pytest.mark.parametrize(("moment", "workers"), [*((moment, 0) for moment in BEFORE_GO), ("the successor serves", 1)])
def test_a_stop_ends_the_service(pylb: Instance, echo_port: int, tmp_path: Path, moment: str, workers: int) -> None:
    pylb.configure(workers=workers)
    tree = Tree(tmp_path / "versions")
    tree.install("1", doing(BEFORE_GO[moment], "os.kill(os.getpid(), 15)"))
    tree.install("2")
    process = pylb.start(argv=tree.command(pylb))
    pylb.register(pylb.port, echo_port)
    tree.use("2")
    pylb.ask("upgrade")
    assert process.wait() == 0
    eventually(lambda: not living(pylb), what="no process of it is there any more")
    with pytest.raises(ConnectionRefusedError):
        serves(pylb)


@pytest.mark.parametrize("moment", BEFORE_GO)
def test_when_the_old_one_dies_at_most_one_goes_on(
    pylb: Instance, echo_port: int, tmp_path: Path, moment: str, successors: list[int]
) -> None:
    """The new one goes on if it has everything, and ends if it does not: then the state is free for the next start."""
    tree = Tree(tmp_path / "versions")
    tree.install("1", doing(BEFORE_GO[moment], "os._exit(9)"))
    tree.install("2")
    process = pylb.start(argv=tree.command(pylb))
    pylb.register(pylb.port, echo_port)
    tree.use("2")
    assert pylb.ask("upgrade").returncode != 0
    assert process.wait() == 9
    if moment in ("everything was handed over", "the successor serves"):
        eventually(lambda: serves(pylb), what="the new one is in charge")
        [pid] = living(pylb)
        successors.append(pid)
        # Its ports are open before its local sockets.
        eventually(lambda: f"Pid: {pid}\n" in pylb.runtime("show info\n"), what="the new one's socket answers")
    else:
        eventually(lambda: "the pylb that started this one keeps its ports" in process.text())
        eventually(lambda: not living(pylb), what="nobody is in charge")
        pylb.start(argv=tree.command(pylb))
        assert serves(pylb)


def in_charge(pylb: Instance, target: int) -> None:
    """One pylb, whose doors are all open."""
    assert serves(pylb)
    assert pylb.register(pylb.port, target).json["result"] == "unchanged"
    assert [route["port"] for route in pylb.routes()] == [pylb.port]
    assert pylb.get("/readyz").status == 200


@pytest.mark.parametrize("step", [*faulty.BEFORE_GO, *faulty.AFTER_GO])
def test_a_fault_in_any_step_leaves_one_pylb_in_charge_with_open_doors_and_ends_no_session(
    pylb: Instance, echo_port: int, tmp_path: Path, step: str, successors: list[int]
) -> None:
    faults = tmp_path / "faults"
    faults.mkdir()
    process = pylb.start(argv=python("tests.support.faulty", "run", "-c", str(pylb.file)), env={"FAULTS": str(faults)})
    pylb.register(pylb.port, echo_port)
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=5) as live:
        assert echo(live) == b"ping"
        (faults / step).touch()
        done = pylb.ask("upgrade")
        successors += [pid for pid in living(pylb) if pid != process.pid]
        assert (done.returncode == 0) == (step in faulty.AFTER_GO), done.stdout + done.stderr + process.text()
        assert echo(live) == b"ping"
        eventually(lambda: in_charge(pylb, echo_port) is None, what=f"one is in charge\n{process.text()}")
        if step in faulty.BEFORE_GO:
            assert living(pylb) == [process.pid]
            assert pylb.ask("upgrade").returncode == 0, "the next one works"
            successors += [pid for pid in living(pylb) if pid != process.pid]
            assert echo(live) == b"ping"
            in_charge(pylb, echo_port)
        elif step == "forward a signal":
            process.signal(signal.SIGHUP)
            eventually(lambda: not (faults / step).exists(), what="it was passed")
    assert process.wait() == 0
    assert not (faults / step).exists(), "it was passed"
    assert "RuntimeError: a fault to order" in process.text()
    in_charge(pylb, echo_port)
    [pid] = living(pylb)
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not living(pylb), what="nothing of it is there any more")


@pytest.mark.parametrize(("moment", "workers"), [("everything was handed over", 0), ("the successor serves", 2)])
def test_an_old_one_that_dies_on_the_way_leaves_it_to_systemd(
    pylb: Instance, echo_port: int, tmp_path: Path, moment: str, workers: int
) -> None:
    """For systemd the service is dead then, and the next one is on its way to the sockets in its store.

    The successor has to end by itself, although it may have accepted clients: it would hold the state, and take half of the
    clients, without anybody who knows of it.
    """
    pylb.configure(workers=workers)
    tree, systemd = Tree(tmp_path / "versions"), Systemd(tmp_path)
    tree.install("1", doing(BEFORE_GO[moment], "os._exit(9)"))
    tree.install("2")
    try:
        first = pylb.start(argv=tree.command(pylb), env=systemd.environ)
        pylb.register(pylb.port, echo_port)
        while len(systemd.store) < 2 + max(1, workers):
            systemd.hear()
        tree.use("2")
        assert pylb.ask("upgrade").returncode != 0
        assert first.wait() == 9
        with socket.create_connection(("127.0.0.1", pylb.port), timeout=20) as early:
            eventually(lambda: "the pylb before is gone before its time" in first.text())
            eventually(lambda: not living(pylb), what=f"the successor has ended\n{first.text()}")
            second = systemd.start(pylb)
            try:
                assert echo(early) == b"ping"
            except ConnectionResetError:
                pass  # the successor had accepted it before it knew
        eventually(lambda: serves(pylb), what="the one that systemd started")
        assert set(living(pylb)) == {second.pid, *second.children()}
    finally:
        systemd.close()


def test_a_start_that_fails_late_ends_with_the_clients_it_had_accepted(pylb: Instance, echo_port: int, tmp_path: Path) -> None:
    """Restored ports serve early; what fails after that must not leave a process that serves without its webhook."""
    pylb.start()
    pylb.register(pylb.port, echo_port)
    pylb.running.stop()
    tree = Tree(tmp_path / "versions")
    wait = "sock = __import__('socket').create_server(('127.0.0.1', 0)); print('go on at', sock.getsockname()[1], flush=True)"
    accept = "await __import__('asyncio').get_running_loop().sock_accept((sock.setblocking(False), sock)[1])"
    statement = "offered = verbs(self._registry, self._operations, self._forwarding)"
    tree.install("1", ("pylb/app/app.py", statement, f"{wait}; {accept}; raise CannotStart('on purpose')"))
    process = pylb.launch(argv=tree.command(pylb))
    process.has_said("go on at ")
    with socket.create_connection(("127.0.0.1", pylb.port), timeout=10) as client:
        assert echo(client) == b"ping"
        port = int(process.text().partition("go on at ")[2].split()[0])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        assert process.wait() == 2
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert "on purpose" in process.text()


def test_a_reload_between_the_reading_of_the_file_and_the_loop_is_not_lost(
    pylb: Instance, echo_port: int, tmp_path: Path
) -> None:
    """The signals are blocked from before the file is read until there are handlers for them."""
    tree = Tree(tmp_path / "versions")
    changed = pylb.config() | {
        "frontends": [{"name": "echo", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}]
    }
    hang_up = "__import__('os').kill(__import__('os').getpid(), signal.SIGHUP)"
    later = f"Path({str(pylb.file)!r}).write_text({json.dumps(changed)!r}); {hang_up}"
    statement = "with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:"
    tree.install("1", ("pylb/app/run.py", statement, f"{later}\n    {statement}"))
    pylb.start(argv=tree.command(pylb))
    eventually(lambda: serves(pylb), what="what the reload brought")


def test_logs_are_reopened_by_the_new_one_too(pylb: Instance, tmp_path: Path, successors: list[int]) -> None:
    """It had opened the file before it was moved away, and logrotate knows the old pid alone."""
    file = tmp_path / "sessions.log"
    pylb.configure(log={"target": f"file:{file}"})
    tree = Tree(tmp_path / "versions")
    move = f"os.rename({str(file)!r}, {str(file) + '.1'!r}), os.kill(os.getpid(), {signal.SIGUSR1:d})"
    tree.install("1", doing(BEFORE_GO["the successor serves"], move))
    tree.install("2")
    process = pylb.start(argv=tree.command(pylb))
    tree.use("2")
    done = pylb.ask("upgrade")
    successors.append(int(done.stdout.split()[1]))
    assert process.wait() == 0
    eventually(lambda: str(file) in opened(successors[0]), what="the new file is open")
    eventually(lambda: str(file) + ".1" not in opened(successors[0]), what="the old file is not")


def opened(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(fd) for fd in folder.iterdir()]


def test_the_places_of_the_moments_are_unique() -> None:
    """An edit replaces every occurrence: one too many would be another test."""
    root = Path(__file__).parents[2]
    for file, statement in (BEFORE_GO | AFTER_GO).values():
        assert (root / file).read_text().count(statement) == 1, statement
