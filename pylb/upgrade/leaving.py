"""What one pylb passes to the next: its ports, its state, its counters; how it releases them and takes them back."""

import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Protocol

from pylb.control.registry import Registry
from pylb.control.steps import let_loop_run
from pylb.control.storage.store import StateLocked
from pylb.control.tasks import Part
from pylb.core.flow import FlowBatch
from pylb.forward.counters import Counters
from pylb.haproxy.runtime_socket import RuntimeSocket
from pylb.upgrade.arriving import Predecessors
from pylb.upgrade.sockets import ListeningSockets
from pylb.web.control_socket import ControlSocket
from pylb.web.server import HttpServer
from pylb.workers.messages import ChangedCounters, CountsByListen, Report, frontend_count, report

log = logging.getLogger("pylb")


class TrafficSource(Protocol):
    """The engine's driver, or the fleet."""

    async def counters(self) -> Counters: ...

    def parts(self) -> Sequence[CountsByListen]: ...

    def pause_flows(self) -> None: ...

    def resume_flows(self) -> None: ...

    def described_flows(self) -> Iterator[FlowBatch]: ...


class StateLost(Exception):  # noqa: N818 - a condition that one line describes
    """Another process has the state now."""


class Transfer:
    """What a serving pylb can pass on. `before`: previous pylbs that only end their sessions.

    `servers` and `local`: the HTTP servers and the local sockets; both lists are filled as these open.
    """

    def __init__(
        self,
        listeners: ListeningSockets,
        forwarding: TrafficSource,
        registry: Registry,
        before: Predecessors,
        *,
        servers: Sequence[HttpServer],
        local: Sequence[ControlSocket | RuntimeSocket],
    ) -> None:
        self._listeners = listeners
        self._forwarding = forwarding
        self._registry = registry
        self._before = before
        self._servers = servers
        self._local = local
        self._changes = ChangedCounters()

    async def hold(self) -> None:
        """Let callers wait, stop all changes, and write everything to disk. Raises OSError; then changes continue."""
        self._changes = ChangedCounters()
        try:
            for server in self._servers:
                server.pause()
            for sock in self._local:
                await sock.leave()
            await self._registry.hand_over()
            self._forwarding.pause_flows()
        except BaseException:
            await self._serve_again()
            raise

    async def take_back(self) -> None:
        """Undo `hold`. Raises StateLost."""
        try:
            await self._registry.take_back()
        except (OSError, StateLocked) as error:
            raise StateLost(f"the state directory cannot be taken back from the failed successor: {error}") from None
        except Exception as bug:
            raise StateLost("the state cannot be taken back from the failed successor, because of a fault of pylb") from bug
        await self._serve_again()

    async def _serve_again(self) -> None:
        with self._registry.tasks.surviving(Part.UPGRADE):
            self._forwarding.resume_flows()
        for server in self._servers:
            with self._registry.tasks.surviving(Part.UPGRADE):  # the other sockets are needed all the same
                server.resume()
        for sock in self._local:
            with self._registry.tasks.surviving(Part.UPGRADE):
                try:
                    await sock.start()
                except OSError as error:
                    log.error("a local socket could not be opened again: %s", error)

    def failures(self) -> Mapping[str, int]:
        """Failures of tasks beside the single writer, by part."""
        return self._registry.task_failures

    def descriptors(self) -> list[int]:
        """All listening sockets."""
        return self._listeners.all()

    def flows(self) -> Iterator[FlowBatch]:
        """The flows of UDP, and a descriptor of each."""
        return self._forwarding.described_flows()

    def totals(self) -> Mapping[str, Mapping[str, int]]:
        """Like Registry.totals."""
        return self._registry.totals()

    async def counters(self) -> Counters:
        """The counters of this pylb and of the previous ones."""
        return await self._before.added(await self._forwarding.counters())

    def parts(self) -> list[CountsByListen]:
        """The counts whose sum is `counters`, without asking anybody: a worker's are up to a second old."""
        return [*self._forwarding.parts(), *self._before.parts()]

    async def counted(self) -> AsyncIterator[Report]:
        """What changed in them and was not sent yet, in pieces, at least one."""
        counters = await self.counters()
        self._changes.look(counters)
        while True:
            some = self._changes.waiting()
            yield report(counters, 0.0, tuple(frontend_count(listen, counters.frontends[listen]) for listen in some))
            self._changes.reported(some)
            if not self._changes:
                break
            await let_loop_run()
