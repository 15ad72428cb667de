"""Random kills of workers and main, and upgrades, for the soak. Which sessions each may harm is known before it happens."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from bench.processes import BenchError, children, state
from bench.soak.unit import Unit

PAUSE = (1.0, 8.0)  # seconds between two deaths
_TIME_WAIT = "06"  # include/net/tcp_states.h
STOPPED_SECONDS = 5.0
UPGRADE_SECONDS = 30.0


class Kills:
    """Each victim is stopped before it is killed, so that the sessions it had accepted can be read from /proc."""

    def __init__(self, unit: Unit, frontends: set[int], servers: set[int], rng: random.Random) -> None:
        self._unit, self._frontends, self._servers, self._rng = unit, frontends, servers, rng
        self._lost: dict[int, float] = {}  # ports of clients, and pylb's own towards servers; when their worker was killed
        self.done: Counter[str] = Counter()
        self.lost = 0

    def excuse(self, port: int, began: float) -> bool:
        """Whether the session with this port (the client's, or pylb's own towards the server) was on a killed worker."""
        return began < self._lost.get(port, 0.0)

    async def one(self) -> str:
        """Kill something, or make an upgrade. Raises BenchError."""
        await self._unit.ready()
        what = self._rng.choice(["worker", "worker", "main", "upgrade"])
        match what:
            case "worker":
                await self._kill_worker()
            case "main":
                os.kill(self._unit.pid, signal.SIGKILL)
            case "upgrade":
                await self._upgrade()
        self.done[what] += 1
        return what

    async def _kill_worker(self) -> None:
        victims = children(self._unit.pid)
        if not victims:
            return  # it has just lost them all
        victim = self._rng.choice(victims)
        os.kill(victim, signal.SIGSTOP)
        if await asyncio.to_thread(_is_stopped, victim):
            known, possible = await asyncio.to_thread(_ends, victim, self._frontends, self._servers)
            self._lost |= dict.fromkeys((*known, *possible), time.monotonic())
            self.lost += len(known)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)

    async def _upgrade(self) -> None:
        """SIGUSR2, until another process is the service."""
        before, starts = self._unit.pid, self._unit.starts
        os.kill(before, signal.SIGUSR2)
        deadline = time.monotonic() + UPGRADE_SECONDS
        while self._unit.pid == before:
            if time.monotonic() > deadline:
                raise BenchError(f"no process has followed {before} within {UPGRADE_SECONDS:g} s of SIGUSR2")
            await asyncio.sleep(0.05)
        if self._unit.starts != starts:
            raise BenchError(f"process {before} died of an upgrade")

    def pause(self) -> float:
        return self._rng.uniform(*PAUSE)


def _is_stopped(pid: int) -> bool:
    """False if it ended meanwhile."""
    deadline = time.monotonic() + STOPPED_SECONDS
    while time.monotonic() < deadline:
        if (found := state(pid)) in (None, "T", "Z"):
            return found == "T"
        time.sleep(0.001)  # noqa: TID251 - in a thread of its own
    raise BenchError(f"process {pid} does not stop")


def _ends(pid: int, frontends: set[int], servers: set[int]) -> tuple[list[int], list[int]]:
    """The ports of this process's connections: the clients', and its own towards servers (proc(5), /proc/net/tcp).

    Both are needed, because it may be stopped when it has closed one of the two. A socket that received FIN after sending its
    own still belongs to the process, but the table of sockets shows it as TIME_WAIT, without an owner. While the process has
    such sockets, all of those may be its own; they come second.
    """
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            kind, _, inode = os.readlink(entry).partition(":")
            if kind == "socket":
                inodes.add(inode.strip("[]"))
    found, waiting = [], []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(end.rpartition(":")[2], 16) for end in fields[1:3])
        if local in frontends or remote in servers:
            port = remote if local in frontends else local
            if fields[9] in inodes:
                found.append(port)
            elif fields[3] == _TIME_WAIT:
                waiting.append(port)
        inodes.discard(fields[9])
    unix = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    return found, waiting if inodes - unix else []
