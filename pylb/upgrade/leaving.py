"""What one pylb leaves the next: its ports, its state, its counters, and how it lets go of them and takes them back."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol

from pylb.control.registry import Registry
from pylb.control.steps import turn
from pylb.control.storage.store import StateLocked
from pylb.control.tasks import Part
from pylb.forward.counters import Counters
from pylb.haproxy.runtime_socket import RuntimeSocket
from pylb.upgrade.handover import Predecessors
from pylb.upgrade.sockets import Listeners
from pylb.web.control_socket import ControlSocket
from pylb.web.server import HttpServer
from pylb.workers.messages import PIECE, Changes, Counted, Report, counted, report

log = logging.getLogger("pylb")


class Counting(Protocol):
    """The engine's driver, or the fleet."""

    async def counters(self) -> Counters: ...

    def parts(self) -> Sequence[Counted]: ...


class Lost(Exception):  # noqa: N818 - a condition, told in one line
    """The state is another process's now."""


class Estate:
    """Of a pylb that serves. `before`: those that only end their sessions still."""

    def __init__(self, listeners: Listeners, forwarding: Counting, registry: Registry, before: Predecessors) -> None:
        self._listeners = listeners
        self._forwarding = forwarding
        self._registry = registry
        self._before = before
        self._changes = Changes()
        self.servers: Sequence[HttpServer] = ()
        self.local: list[ControlSocket | RuntimeSocket] = []

    async def hold(self) -> None:
        """Callers wait, nothing changes, and everything is on disk. Raises OSError. Whatever it raises: nothing was held."""
        self._changes = Changes()
        try:
            for server in self.servers:
                server.pause()
            for sock in self.local:
                sock.leave()
            await self._registry.hand_over()
        except BaseException:
            await self._serve_again()
            raise

    async def take_back(self) -> None:
        """As if `hold` had not been. Raises Lost."""
        try:
            await self._registry.take_back()
        except (OSError, StateLocked) as error:
            raise Lost(f"the state directory cannot be taken back from the pylb that was to follow: {error}") from None
        except Exception as bug:
            raise Lost("the state cannot be taken back from the pylb that was to follow, by a fault of pylb") from bug
        await self._serve_again()

    async def _serve_again(self) -> None:
        for server in self.servers:
            with self._registry.tasks.surviving(Part.UPGRADE):  # the other doors are needed all the same
                server.resume()
        for sock in self.local:
            with self._registry.tasks.surviving(Part.UPGRADE):
                try:
                    await sock.start()
                except OSError as error:
                    log.error("a local socket is gone: %s", error)

    def failures(self) -> Mapping[str, int]:
        """Of work beside the single writer, by part."""
        return self._registry.task_failures

    def descriptors(self) -> list[int]:
        """All listening sockets."""
        return self._listeners.all()

    def totals(self) -> Mapping[str, Mapping[str, int]]:
        """As Registry.totals."""
        return self._registry.totals()

    async def counters(self) -> Counters:
        """Of this pylb and of those before it."""
        return await self._before.added(await self._forwarding.counters())

    def parts(self) -> list[Counted]:
        """The counts whose sum `counters` is, without asking anybody: a worker's are up to a second old."""
        return [*self._forwarding.parts(), *self._before.parts()]

    async def counted(self) -> AsyncIterator[Report]:
        """What changed in them since the last time, in pieces, and in any case one."""
        counters = await self.counters()
        changed = self._changes.since(counters)
        for start in range(0, max(1, len(changed)), PIECE):
            some = changed[start : start + PIECE]
            yield report(counters, 0.0, tuple(counted(listen, counters.frontends[listen]) for listen in some))
            await turn()
