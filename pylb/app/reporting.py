"""What this pylb reports about itself: metrics, the status page, HAProxy's statistics, and its events in the log."""

import asyncio
import logging
import os
import resource
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

from pylb import __version__
from pylb.app.background import Background
from pylb.app.forwarding import Forwarding
from pylb.app.settings import Settings
from pylb.app.welcome import first_steps
from pylb.config import Config
from pylb.control.event_log import Event
from pylb.control.registry import Registry
from pylb.control.tasks import Part
from pylb.forward.pipes import pipe_limit
from pylb.haproxy.info import Facts
from pylb.haproxy.rates import Rates
from pylb.haproxy.view import View
from pylb.metrics.collector import Metrics
from pylb.statuspage.page import Page
from pylb.statuspage.peers import Peer, Peers
from pylb.statuspage.stream import PageStream
from pylb.statuspage.timeseries import TimeSeries
from pylb.upgrade.leaving import Transfer
from pylb.workers.sampler import Sampler

_LEVELS = {True: logging.WARNING, False: logging.INFO}  # the level of an event, by whether it is an alarm

log = logging.getLogger("pylb")


class Reporting:
    """From `begin` on counters are sampled and the page's feed looks at them; the rest answers when asked."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        forwarding: Forwarding,
        transfer: Transfer,
        *,
        called: tuple[str, str],  # as welcome.program
        started_at: float,  # unix time
        most_sessions: int,
        lag: Callable[[], float],
        lines_dropped: Callable[[], int],
        reopen_failures: Callable[[], int],
        stopping: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._forwarding = forwarding
        self._lines_dropped = lines_dropped
        self._stopping = stopping
        self._most_sessions = most_sessions
        self._called = called
        self._started_at = started_at
        self._made: tuple[tuple[Config, bool, int], dict[str, Any]] | None = None
        self.counters = transfer.counters
        series, rates = TimeSeries(forwarding.rate_samples), Rates()
        self._peers = Peers(self._configured_peers)
        self.peers_active = self._peers.active
        self.feed = PageStream(registry, series, self._about, also=self.troubles, peers=self._peers.records)
        self._sampler = Sampler(
            lambda: registry.table, transfer.parts, (series, rates), pids=forwarding.pids, sampled=self.feed.sampled
        )
        self.haproxy = View(registry, transfer.counters, self._facts, rates)
        self.page = Page(self.feed.stream)
        self.metrics = Metrics(
            counters=transfer.counters,
            registry=registry,
            lines_dropped=lines_dropped,
            reopen_failures=reopen_failures,
            processes=lambda: {"main": (os.getpid(), lag())} | forwarding.workers(),
            worker_restarts=lambda: forwarding.restarts,
            reloaded=lambda: settings.reloaded,
            insecure=lambda: settings.config.insecure,
            certificate_expires_at=settings.certificate_expires_at,
            floating=lambda: settings.config.cluster.addresses,
        )

    def begin(self, background: Background) -> None:
        """Start the sampler and the feed of the status page, which run once a second."""
        background.forever(Part.RATES, self._sampler.run)
        background.forever(Part.PAGE, self.feed.run)
        background.forever(Part.PEERS, partial(self._peers.run, self.feed.watched))

    async def prepare(self) -> None:
        """Read the page's files from the installation now, and never again."""
        await asyncio.to_thread(self._about)

    def note(self, event: Event) -> None:
        """An event of the registry."""
        log.log(_LEVELS[event.alarm], "%s", event.text)
        self.feed.note(event)

    def _about(self) -> dict[str, Any]:
        """For the status page: what changes only with a reload or other tokens."""
        state = self._settings.config, self._settings.keys.secret is not None, len(self._forwarding.workers())
        if self._made is None or self._made[0] != state:
            self._made = state, self._make_about(*state)
        return self._made[1]

    def _make_about(self, config: Config, generated: bool, workers: int) -> dict[str, Any]:
        command, option = self._called
        return {
            "version": __version__,
            "page": self.page.version,
            "host": self.host(),
            "pid": os.getpid(),
            "workers": workers,
            "started": self._started_at,
            "most_sessions": self._most_sessions,
            "command": command,
            "option": option,
            "first_steps": first_steps(config, generated=generated),
        }

    def _configured_peers(self) -> list[Peer]:
        return [Peer(one.name, one.url, one.page or one.url) for one in self._settings.config.admin.peers]

    def host(self) -> str:
        """What this machine is called."""
        return self._settings.config.advertise or socket.gethostname()

    def troubles(self) -> list[str]:
        """The problems of pylb itself."""
        return self._registry.troubles(reloaded=self._settings.reloaded)

    def _facts(self) -> Facts:
        """For HAProxy's `show info`."""
        workers, descriptors = len(self._forwarding.workers()), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return Facts(
            started_at=self._started_at,
            workers=workers,
            descriptors=descriptors,
            pipes=pipe_limit(descriptors) * max(1, workers),
            listeners=len(self._registry.table.frontends) - len(self._registry.unbound()),
            tasks=len(asyncio.all_tasks()),
            lines_dropped=self._lines_dropped(),
            stopping=self._stopping(),
            node=socket.gethostname(),
        )
