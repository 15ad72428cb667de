"""Child processes: started in a session of their own, watched by pid through /proc, stopped by pid."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, Self

READY_SECONDS = 15.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02


class BenchError(Exception):
    """Something that the user has to see and can act upon; printed without a traceback, with exit code 2."""


class Address(NamedTuple):
    """An IPv4 address and a TCP port, written `host:port`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds SIGINT and SIGTERM back until the block is left. Main thread only, and only for what takes milliseconds.

    Not by a signal mask, which a child started inside would inherit: handlers are reset by exec, masks are not.
    """
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda got, _frame: held.append(got)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


@contextmanager
def started(
    argv: Sequence[str], *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL, stderr: int | IO[bytes]
) -> Iterator[subprocess.Popen[str]]:
    """A child in a session of its own, for as long as the block runs; then it is stopped, and reaped, in any case.

    A session of its own: autogroups share CPU per session, and Ctrl-C must reach us first, not the children.
    """
    child = None
    try:
        # An interrupt between fork and assignment would leave a child that nobody knows (seen with wrk).
        with uninterrupted():
            child = subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=stderr, text=True, start_new_session=True)
        yield child
    finally:
        if child is not None:
            _stop(child)


def _stop(child: subprocess.Popen[str]) -> None:
    """SIGTERM; SIGKILL to its whole session if it is still there after STOP_SECONDS. Closes its pipes."""
    with child:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # Safe: not yet reaped, so the pid is ours, and start_new_session made it the group's id.
            os.killpg(child.pid, signal.SIGKILL)


class Process:
    """A program that serves: waits until it is ready, measures it, and shows its messages if it fails."""

    def __init__(self, name: str, child: subprocess.Popen[str], errors: Path) -> None:
        self.name = name
        self.pid = child.pid
        self._child = child
        self._errors = errors

    @classmethod
    @contextmanager
    def started(cls, name: str, argv: Sequence[str], folder: Path) -> Iterator[Self]:
        """Runs `argv` while the block runs. Its stdout is dropped, its stderr kept in `folder` for the error message."""
        errors = folder / f"{name}.stderr"
        with errors.open("wb") as sink, started(argv, stderr=sink) as child:
            yield cls(name, child, errors)

    def wait_listening(self, address: Address) -> None:
        """Returns once `address` accepts a connection; raises BenchError if the child ends first or takes too long."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(address, timeout=1.0).close()
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                # Waiting for its death is also the pause between two tries.
                code = self._child.wait(POLL_SECONDS)
                raise BenchError(f"{self.name} ended with code {code} before it listened on {address}\n{self._tail()}")
        raise BenchError(f"{self.name} did not listen on {address} within {READY_SECONDS:.0f} s\n{self._tail()}")

    def wait_ready(self, admin: Address) -> None:
        """Returns once GET /readyz is answered 200. Raises BenchError."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            connection = http.client.HTTPConnection(*admin, timeout=READY_SECONDS)
            try:
                connection.request("GET", "/readyz")
                if connection.getresponse().status == http.HTTPStatus.OK:
                    return
            except (OSError, http.client.HTTPException):
                pass  # not yet
            finally:
                connection.close()
            time.sleep(POLL_SECONDS)  # noqa: TID251 - a process of its own is waited for
        raise BenchError(f"{self.name} was not ready within {READY_SECONDS:.0f} s\n{self._tail()}")

    def cpu_seconds(self) -> float:
        """User plus system time so far, summed over the child and its live descendants (nginx works in a worker)."""
        return cpu_seconds(family(self.pid))

    def memory_bytes(self) -> int:
        """Proportional set size over the family: shared pages count once. Kernel socket memory is not in it."""
        return sum(_pss_bytes(pid) for pid in family(self.pid))

    def resident_bytes(self) -> int:
        """The plain sum over the family: pages that they share count once for each."""
        return sum(_kib(Path(f"/proc/{pid}/status"), "VmRSS:") for pid in family(self.pid)) * 1024

    def anonymous_bytes(self) -> int:
        """What the family allocated itself: unlike the above it does not change with who else shares a library's pages."""
        return anonymous_bytes(family(self.pid))

    def _tail(self) -> str:
        lines = self._errors.read_text(errors="replace").splitlines()[-8:]
        return "\n".join(f"  | {line}" for line in lines)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User plus system time so far; of one that has ended meanwhile nothing.

    By the clock that clock_getcpuclockid(3) names, which is exact: proc(5) counts ticks of 10 ms.
    """
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += time.clock_gettime(~pid << 3 | 2)
    return total


def user_and_system_seconds(pids: Iterable[int]) -> tuple[float, float]:
    """The two parts of `cpu_seconds`, from proc(5). Finer than ticks: the kernel scales them to the exact sum.

    Of one that has ended meanwhile nothing.
    """
    user = system = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = _stat_fields(pid)
            user, system = user + int(fields[11]), system + int(fields[12])
    tick = os.sysconf("SC_CLK_TCK")
    return user / tick, system / tick


def anonymous_bytes(pids: Iterable[int]) -> int:
    """Allocated by themselves; of one that has ended meanwhile nothing."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, BenchError):
            total += _kib(Path(f"/proc/{pid}/status"), "RssAnon:") * 1024
    return total


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on: the second, the command, may hold spaces and brackets."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def state(pid: int) -> str | None:
    """The letter of its state (proc(5)): T is stopped, Z has ended and was not waited for. None: it is gone."""
    try:
        return _stat_fields(pid)[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def parent(pid: int) -> int:
    """The pid of its parent. Raises FileNotFoundError."""
    return int(_stat_fields(pid)[1])


def _pss_bytes(pid: int) -> int:
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") * 1024


def _kib(file: Path, key: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise BenchError(f"no {key} in {file}")


def family(root: int) -> list[int]:
    """`root` and its descendants, by one walk over /proc; a process that ends during the walk is left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(parent(int(entry.name)), []).append(int(entry.name))
    family, queue = [], [root]
    while queue:
        family.append(queue[0])
        queue += children.get(queue.pop(0), [])
    return family


def children(pid: int) -> list[int]:
    """Its own, not theirs (proc(5), /proc/PID/task/TID/children); none if it has ended.

    Read again when a thread ended meanwhile: what that had started belongs to another thread then.
    """
    for _ in range(100):
        found: list[int] = []
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
        return sorted(found)
    return []


def descriptors(pid: int) -> int:
    """The number of open descriptors of a process and its children; those that have ended have none."""
    count = 0
    for one in (pid, *children(pid)):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            count += len(os.listdir(f"/proc/{one}/fd"))
    return count


def free_ports(host: str, count: int, candidates: Iterator[int]) -> list[int]:
    """The first `count` ports nobody listens on. If one is taken after all, the start fails and says so."""
    ports: list[int] = []
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT of an earlier run is no reason to refuse
            try:
                probe.bind((host, port))
                probe.listen()  # with SO_REUSEADDR two binds succeed; listen is what excludes
            except OSError:
                continue
        ports.append(port)
        if len(ports) == count:
            return ports
    raise BenchError(f"fewer than {count} free ports on {host}")
