"""Workers as processes: who serves, what dies with whom, and who takes over. (Cases 18 and 22 of the faults to survive.)"""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bench.processes import state
from tests.app.instance import Instance, echo
from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.waiting import eventually, pause

KIB, MIB = 1024, 1 << 20
BLOCK = bytes(range(256)) * 256


def start(pylb: Instance, workers: int = 2, **sections: object) -> Process:
    pylb.configure(workers=workers, **sections)
    return pylb.start()


def connect(pylb: Instance) -> socket.socket:
    return socket.create_connection(("127.0.0.1", pylb.port), timeout=10)


def workers(process: Process) -> list[int]:
    return process.children()


def memory(pid: int, what: str) -> int:
    """Bytes: Rss, or Pss, where pages that processes share count once in all (proc(5), smaps_rollup)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * KIB
    raise AssertionError(what)


def alive(pid: int) -> bool:
    return state(pid) not in (None, "Z")


def is_open(sock: socket.socket) -> bool:
    try:
        return echo(sock) == b"ping"
    except ConnectionError:
        return False


def test_workers_are_small_and_the_only_children(pylb: Instance) -> None:
    process = start(pylb, workers=1)
    [worker] = workers(process)
    assert Path(f"/proc/{worker}/comm").read_text() == "pylb-worker-1\n"
    assert memory(worker, "Rss") <= 20_000 * KIB
    assert memory(process.pid, "Pss") + memory(worker, "Pss") <= 85_000 * KIB
    assert process.terminate() == 0
    assert not alive(worker)


def test_a_call_is_answered_when_all_workers_have_applied_it(pylb: Instance, echo_port: int) -> None:
    start(pylb)
    for _ in range(8):
        pylb.port = free_port()
        assert pylb.register(pylb.port, echo_port).status in (200, 201)
        with ExitStack() as stack:  # both workers have their share of these
            assert all(is_open(stack.enter_context(connect(pylb))) for _ in range(16))


@pytest.fixture
def source() -> Iterator[int]:
    """The port of a server that sends for ever, a MiB for each byte that it is told.

    Five hundred unread downloads are else more than the kernel has for all its sockets (net.ipv4.tcp_mem): it then drops what
    comes, and senders that were already stopped try again after ever longer pauses (measured: 13 s).
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    over = threading.Event()

    def send(sock: socket.socket) -> None:
        with sock:
            try:
                while not over.is_set():
                    for _ in range(MIB // len(BLOCK)):
                        sock.sendall(BLOCK)
                    if not sock.recv(1):
                        return
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(20)
            threading.Thread(target=send, args=(sock,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    over.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def test_a_killed_worker_resets_its_downloads_and_refuses_nobody(
    pylb: Instance, source: int, request: pytest.FixtureRequest
) -> None:
    """Case 22: never a clean FIN, and who waits in the dead one's queue is served by its successor."""
    downloads = 500 if request.config.getoption("--long") else 60
    process = start(pylb)
    pylb.register(pylb.port, source)
    victim, other = workers(process)
    with ExitStack() as stack:
        running = [stack.enter_context(connect(pylb)) for _ in range(downloads)]
        for sock in running:
            assert sock.recv(1)
        os.kill(victim, signal.SIGSTOP)  # so that some wait in its queue
        waiting = [stack.enter_context(connect(pylb)) for _ in range(20)]
        os.kill(victim, signal.SIGKILL)
        for sock in waiting:
            sock.settimeout(5)
            assert sock.recv(1)
        ends = [_end(sock) for sock in running]
        assert set(ends) == {"reset", "goes on"}
        assert 0.2 < ends.count("reset") / downloads < 0.8
        process.has_said(f"worker 1 (pid {victim}) ended by signal 9; reset: about ")
    successor = next(pid for pid in workers(process) if pid != other)
    assert successor != victim


def _end(sock: socket.socket) -> str:
    """How a download goes on: 32 MiB more, FIN or reset."""
    received = 1  # was read before
    try:
        while received < 32 << 20:
            data = sock.recv(1 << 20)
            if not data:
                return "fin"
            sock.sendall(b"." * ((received + len(data)) // MIB - received // MIB))
            received += len(data)
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    return "goes on"


def test_counters_do_not_fall_when_a_worker_dies(pylb: Instance, echo_port: int) -> None:
    process = start(pylb)
    pylb.register(pylb.port, echo_port)

    def sessions() -> tuple[int, int]:
        [row] = pylb.get("/v1/sessions").json["frontends"]
        return row["sessions"], row["sessions_total"]

    for _ in range(20):
        with connect(pylb) as sock:
            assert is_open(sock)
    with ExitStack() as stack:
        for _ in range(10):
            assert is_open(stack.enter_context(connect(pylb)))
        assert sessions() == (10, 30)
        before = workers(process)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(workers(process)) == 2 and not set(before) & set(workers(process)), what="two new workers")
        assert sessions() == (0, 30)
    with connect(pylb) as sock:
        assert is_open(sock)
        assert sessions() == (1, 31)


def test_a_worker_that_stands_still_is_reported_and_replaced(pylb: Instance, echo_port: int) -> None:
    process = start(pylb)
    victim = workers(process)[0]
    os.kill(victim, signal.SIGSTOP)
    assert pylb.register(pylb.port, echo_port).status == 201  # after a second, by the other one
    process.has_said(f"worker 1 (pid {victim}) has not applied the table within 1 s")
    process.has_said(f"worker 1 (pid {victim}) has said nothing for")
    process.has_said(f"worker 1 (pid {victim}) stands still: replaced")
    process.has_said(f"worker 1 (pid {victim}) ended by signal 9")
    eventually(lambda: len(workers(process)) == 2 and victim not in workers(process), what="a new worker")
    with ExitStack() as stack:
        assert all(is_open(stack.enter_context(connect(pylb))) for _ in range(16))


def test_a_worker_in_an_endless_loop_leaves_its_stacks(pylb: Instance, echo_port: int) -> None:
    """SIGABRT, which main sends to one that is silent: faulthandler writes where it stands."""
    process = start(pylb, workers=1)
    assert pylb.register(pylb.port, echo_port).status == 201  # answered when the worker has its table, so it is in its loop
    os.kill(workers(process)[0], signal.SIGABRT)
    process.has_said("Fatal Python error: Aborted")
    process.has_said("ended by signal 6")
    assert " in run\n" in process.text()  # wherever in its loop it stood just then


def test_workers_that_do_not_live_are_started_ever_more_slowly_and_loudly(pylb: Instance) -> None:
    process = start(pylb, workers=1)
    for turn in range(1, 4):
        [victim] = eventually(lambda: workers(process), what="a worker")
        eventually(lambda pid=victim: b"pylb-worker-1" in Path(f"/proc/{pid}/comm").read_bytes())  # type: ignore[misc]
        os.kill(victim, signal.SIGKILL)
        process.has_said(f"start {turn} in a row that did not last" if turn > 1 else "another takes its place")
    assert "again in 800 ms" in process.text()


def test_the_death_of_main_harms_no_session_and_frees_the_ports(pylb: Instance, echo_port: int) -> None:
    process = start(pylb)
    pylb.register(pylb.port, echo_port)
    orphans = workers(process)
    with ExitStack() as stack:
        live = [stack.enter_context(connect(pylb)) for _ in range(10)]
        assert all(is_open(sock) for sock in live)
        process.kill()
        eventually(lambda: _refused(pylb.port), what="the orphans have closed the port")
        assert all(is_open(sock) for sock in live)
        pylb.start()
        with connect(pylb) as fresh:
            assert is_open(fresh)
        assert all(is_open(sock) for sock in live)
        assert not set(orphans) & set(workers(pylb.running))
    eventually(lambda: not any(alive(pid) for pid in orphans), what="the orphans end with their last session")


def _refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_stop_reaches_the_workers_of_a_main_that_died(pylb: Instance, echo_port: int) -> None:
    process = start(pylb, workers=1, defaults={"bind": "127.0.0.1", "timeouts": {"shutdown": "300ms"}})
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        assert is_open(live)
        [orphan] = workers(process)
        process.kill()
        eventually(lambda: _refused(pylb.port), what="the orphan has closed the port")
        pylb.start()
        assert is_open(live)
        assert pylb.running.terminate() == 0
        with pytest.raises(ConnectionResetError):
            live.recv(1)
    eventually(lambda: not alive(orphan), what="the orphan has ended")


def test_a_stop_gives_the_sessions_their_time_and_a_second_one_does_not(pylb: Instance, echo_port: int) -> None:
    process = start(pylb, defaults={"bind": "127.0.0.1", "timeouts": {"shutdown": "1m"}})
    pylb.register(pylb.port, echo_port)
    with connect(pylb) as live:
        assert is_open(live)
        children = workers(process)
        process.signal(signal.SIGTERM)
        process.has_said("1 live session has 1 min")
        eventually(lambda: _refused(pylb.port), what="the port is closed")
        assert is_open(live)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert not is_open(live)
    assert not any(alive(pid) for pid in children)


def test_sessions_are_listed_and_ended_wherever_they_are(pylb: Instance, echo_port: int) -> None:
    start(pylb)
    pylb.register(pylb.port, echo_port)
    with ExitStack() as stack:
        socks = [stack.enter_context(connect(pylb)) for _ in range(12)]
        assert all(is_open(sock) for sock in socks)
        listed = pylb.ask("sessions").stdout
        own = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in socks]
        assert all(name in listed for name in own)
        for name in own[:6]:
            assert f" of {name}\n" in pylb.ask("ctl", "shutdown", "session", name).stdout
        assert [is_open(sock) for sock in socks] == [False] * 6 + [True] * 6
        assert pylb.ask("ctl", "shutdown", "sessions", f"app-{pylb.port}/one").stdout == (
            f"reset: 6 sessions of app-{pylb.port}/one\n"
        )
        eventually(lambda: not any(is_open(sock) for sock in socks), what="all are reset")


def until_told() -> None:
    """The documented error of limits over several workers: what they have, the others know two ticks later."""
    pause(0.3)


def test_a_sources_limit_holds_over_all_workers(pylb: Instance, echo_port: int) -> None:
    limits = {"limits": {"per_source": 3}, "servers": [f"127.0.0.1:{echo_port}"]}
    start(pylb, frontends=[{"name": "web", "listen": f"127.0.0.1:{pylb.port}", **limits}])
    with ExitStack() as stack:
        for _ in range(3):
            assert is_open(stack.enter_context(connect(pylb)))
            until_told()
        for _ in range(8):
            with suppress(ConnectionResetError), connect(pylb) as late:  # the reset may be there before connect() returns
                assert not is_open(late)
    until_told()
    with connect(pylb) as fresh:
        assert is_open(fresh)


def test_a_servers_limit_holds_over_all_workers(pylb: Instance, echo_port: int) -> None:
    server = {"address": f"127.0.0.1:{echo_port}", "max_connections": 2}
    frontend = {"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": [server]}
    start(pylb, frontends=[frontend])
    with ExitStack() as stack:
        served = []
        for _ in range(2):
            served.append(stack.enter_context(connect(pylb)))
            assert is_open(served[-1])
            until_told()
        for _ in range(8):
            stack.enter_context(connect(pylb))
        eventually(lambda: 'pylb_frontend_queue{frontend="web"} 8.0' in pylb.get("/metrics").body.decode(), what="8 wait")
        served[0].close()
        eventually(lambda: 'pylb_frontend_queue{frontend="web"} 7.0' in pylb.get("/metrics").body.decode(), what="7 wait")
