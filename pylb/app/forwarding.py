"""The part that forwards: one engine in this process, or workers with an engine each. No caller sees which."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Protocol

from pylb.api.verbs import SessionControl
from pylb.app.descriptors import Budget
from pylb.app.engine_observer import EngineObserver
from pylb.app.errors import CannotStart
from pylb.app.settings import Settings
from pylb.control.desired_state import Sink
from pylb.core.flow import FlowBatch
from pylb.forward.counters import Counters
from pylb.forward.engine import MAX_BUFFERED, Engine
from pylb.forward.listener import connection_limit
from pylb.forward.pipes import pipe_limit
from pylb.upgrade.sockets import ListeningSockets
from pylb.workers.archive import CodeArchive
from pylb.workers.fleet import Fleet, FleetObserver
from pylb.workers.in_process import InProcessEngine
from pylb.workers.messages import VERSION, CountsByListen, Hello

log = logging.getLogger("pylb")


class Forwarding(Sink, SessionControl, Protocol):
    """Takes tables, answers for sessions and counters. `make_forwarding` returns either kind as this."""

    @property
    def open_sessions(self) -> int:
        """For workers, according to their last reports."""

    @property
    def rate_samples(self) -> int:
        """How many samples of `parts` a rate should cover."""

    @property
    def lines_dropped(self) -> int:
        """How many lines of the session log workers dropped."""

    @property
    def restarts(self) -> int:
        """How many workers were replaced."""

    def workers(self) -> dict[str, tuple[int, float]]:
        """Each running worker's pid and its loop's lag in seconds."""

    def pids(self) -> list[int]:
        """The processes that forward."""

    async def counters(self) -> Counters:
        """The counters as they are now."""

    def parts(self) -> Sequence[CountsByListen]:
        """The counts whose sum is `counters`, as far as they are known without asking the workers."""

    def pause_flows(self) -> None:
        """Read no datagrams: the next pylb is about to. After `drain` the flows live on there."""

    def resume_flows(self) -> None:
        """There is no next pylb after all."""

    def described_flows(self) -> Iterator[FlowBatch]:
        """The flows of UDP and their descriptors, for the next pylb."""

    def take_flows(self, batches: Iterable[FlowBatch]) -> None:
        """Take over the previous pylb's flows; call it before the first table."""

    def flows_taken(self) -> None:
        """Close the flows that no frontend has taken over: all ports are open now."""

    def drain(self, deadline: float, *, accept: bool = ...) -> None:
        """Like Engine.drain."""

    async def drained(self, *, at_once: asyncio.Event) -> None:
        """Wait until the last session has ended: by itself, at the deadline, or when `at_once` is set."""


async def make_forwarding(
    stack: AsyncExitStack,
    *,
    settings: Settings,
    room: Budget,
    listeners: ListeningSockets,
    hooks: EngineObserver,
    note_process: Callable[[int], None],
) -> Forwarding:
    """Make the part that forwards; it runs until the end of `stack`. `note_process` gets each worker's pid.

    Raises CannotStart.
    """
    if not room.workers:
        engine = Engine(
            observer=hooks,
            max_connections=room.sessions,
            max_pipes=pipe_limit(room.nofile),
            on_fault=_log_fault,
            opener=listeners.open,
            twin=listeners.twin,
            nofile=room.nofile,
            reserve=room.reserve,
            recorded=settings.config.recorder.sessions,
        )
        driver = InProcessEngine(engine, listeners.closed, hooks.connlog.flush)
        stack.callback(driver.close)
        return driver
    observer = FleetObserver(hooks.connect_ended, hooks.connlog.lines.put, note_process)
    fleet = Fleet(room.workers, lambda index: _hello(index, settings, room), observer, listeners, CodeArchive())
    stack.callback(fleet.close)
    try:
        await fleet.start()
    except OSError as error:
        hint = "Is there memory, and room for processes (ulimit -u)?"
        raise CannotStart(f"no worker can be started: {error}. {hint}") from None
    return fleet


def _hello(index: int, settings: Settings, room: Budget) -> Hello:
    """The first message to a worker that starts now."""
    config, count = settings.config, room.workers
    return Hello(
        VERSION,
        index,
        count,
        connection_limit(room.nofile),
        pipe_limit(room.nofile),
        MAX_BUFFERED // count,
        config.log.format,
        -(-config.recorder.sessions // count),
        config.log.selection,
    )


def _log_fault(what: str, error: Exception) -> None:
    log.error("%s", what, exc_info=error)
