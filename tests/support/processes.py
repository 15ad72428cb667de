"""Real processes, each in a session of its own: started in a namespace, watched and stopped by pid, their output kept."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from bench.processes import children, cpu_seconds, descriptors
from tests.support.netns import Namespace
from tests.support.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
STOP_SECONDS = 10.0
TAIL = 60  # lines shown of a failed test's processes


def python(module: str, *args: str) -> tuple[str, ...]:
    """`python -m module args`, with the interpreter of the tests."""
    return (sys.executable, "-m", module, *args)


def run_python(source: str) -> str:
    """Run `source` in a process of its own and return its output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Process:
    """A running program. `output` holds stdout and stderr."""

    def __init__(self, name: str, argv: Sequence[str], output: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.output = output
        with output.open("ab") as sink:
            self._popen = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env, cwd=ROOT, start_new_session=True
            )
        self.pid = self._popen.pid

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def has_said(self, text: str, *, within: float = 10.0) -> None:
        """Waits until its output holds `text`; fails if it ends without."""

        def said() -> bool:
            ended = not self.alive  # asked first: what it said before its end is there
            if text in self.text():
                return True
            if ended:
                raise EndedError(f"{self.name} ended with {self._popen.returncode} without {text!r}:\n{self.text()}")
            return False

        eventually(said, within=within, what=f"{self.name} says {text!r}\n{self.text()}")

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, within: float = STOP_SECONDS) -> int:
        """Wait for its end. Returns its exit code."""
        return self._popen.wait(within)

    def terminate(self, within: float = STOP_SECONDS) -> int:
        """Send SIGTERM. Returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(within)

    def kill(self) -> None:
        """SIGKILL to it and to what it started; returns when it is gone. Idempotent."""
        if self.alive:
            os.killpg(self.pid, signal.SIGKILL)  # not yet reaped, so the pid is ours, and it leads its own group
        self._popen.wait(STOP_SECONDS)

    def stop(self) -> None:
        """Stop the process, whatever state it is in."""
        if self.alive:
            self.signal(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def children(self) -> list[int]:
        """The pids of its children."""
        return children(self.pid)

    def descriptors(self) -> int:
        """The number of descriptors of the process and its children."""
        return descriptors(self.pid)

    def cpu_seconds(self) -> float:
        """User plus system time so far."""
        return cpu_seconds([self.pid])


class EndedError(Exception):
    """A process ended while something was expected of it; not an AssertionError, so that no wait goes on."""


class Processes:
    """All processes of one test; what is still there at its end is stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Process] = []

    def start(
        self, name: str, argv: Sequence[str], *, at: Namespace | None = None, env: Mapping[str, str] | None = None
    ) -> Process:
        """`env` comes on top of a small environment; nothing of the tester's own settings leaks in."""
        folders = {"HOME": str(self.folder), "TMPDIR": tempfile.gettempdir()}
        environ = {"PATH": os.environ["PATH"], **folders, "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8", "PYLB_CONFIG": ""}
        command = at.command(*argv) if at is not None else argv
        process = Process(name, command, self.folder / f"{len(self.all)}-{name}.log", {**environ, **(env or {})})
        self.all.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, *, but: Process | None = None) -> None:
        """Stop all processes, the youngest first."""
        for process in reversed(self.all):
            if process is not but:
                process.stop()

    def report(self) -> list[tuple[str, str]]:
        """(title, last lines) of each, for a failed test."""
        return [(f"output of {one.name}", "\n".join(one.text().splitlines()[-TAIL:])) for one in self.all]


def listens(address: tuple[str, int], at: Namespace, process: Process | None = None, *, within: float = 15.0) -> None:
    """Waits until a connection from `at` to the address is accepted."""

    def connects() -> bool:
        if process is not None and not process.alive:
            raise EndedError(f"{process.name} ended before it listened:\n{process.text()}")
        with at.inside():
            socket.create_connection(address, 1).close()
        return True

    eventually(connects, within=within, what=f"{address} accepts connections")
