"""Collects the data for HAProxy's commands, CSV and exporter from registry, counters and rates at each request."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable

from pylb.control.registry import Registry
from pylb.control.steps import in_turns
from pylb.forward.counters import Counters
from pylb.haproxy.columns import HEADER, csv_lines
from pylb.haproxy.info import Facts, show_info
from pylb.haproxy.rates import Rates
from pylb.haproxy.stats import Row, Statistics

PER_TURN = 25  # frontends in one step, ~2 ms, before the event loop runs other tasks


class View:
    """`counters` asks all workers. `rates` consumes the sampler's readings."""

    def __init__(
        self, registry: Registry, counters: Callable[[], Awaitable[Counters]], facts: Callable[[], Facts], rates: Rates
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._facts = facts
        self._rates = rates

    async def statistics(self) -> Statistics:
        counters = await self._counters()
        frontends = [one async for one in in_turns(self._registry.each_frontend(), PER_TURN)]
        return Statistics(frontends, counters, self._rates, time.monotonic())

    async def csv(self) -> str:
        """All of `show stat`."""
        lines = [csv_lines(rows) async for rows in self.proxies(await self.statistics())]
        return HEADER + "".join(lines)

    @staticmethod
    def proxies(statistics: Statistics) -> AsyncIterator[list[Row]]:
        """Statistics.proxies in steps; the event loop runs other tasks between them."""
        return in_turns(statistics.proxies(), PER_TURN)

    async def info(self) -> dict[str, int | str]:
        """The answer to `show info`."""
        return show_info(self._facts(), await self._counters(), self._rates, time.time())
