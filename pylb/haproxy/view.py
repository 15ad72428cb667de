"""What HAProxy's commands, its CSV and its exporter show: made of registry, counters and rates when somebody asks."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable

from pylb.control.registry import Registry
from pylb.control.steps import in_turns
from pylb.forward.counters import Counters
from pylb.haproxy.columns import HEADER, csv_line
from pylb.haproxy.info import Facts, show_info
from pylb.haproxy.rates import Rates
from pylb.haproxy.stats import Picture, Row

PER_TURN = 25  # frontends between two turns of the loop: ~2 ms


class View:
    """`counters` asks all workers. `rates`: a consumer of the sampler."""

    def __init__(
        self, registry: Registry, counters: Callable[[], Awaitable[Counters]], facts: Callable[[], Facts], rates: Rates
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._facts = facts
        self._rates = rates

    async def picture(self) -> Picture:
        counters = await self._counters()
        frontends = [one async for one in in_turns(self._registry.each_frontend(), PER_TURN)]
        return Picture(frontends, counters, self._rates, time.monotonic())

    async def csv(self) -> str:
        """All of `show stat`."""
        lines = [HEADER]
        async for rows in self.proxies(await self.picture()):
            lines += [csv_line(row) for row in rows]
        return "\n".join(lines) + "\n"

    @staticmethod
    async def proxies(picture: Picture) -> AsyncIterator[list[Row]]:
        """Picture.proxies, and the loop has its turn between them."""
        async for rows in in_turns(picture.proxies(), PER_TURN):
            yield rows

    async def info(self) -> dict[str, int | str]:
        """As show_info."""
        return show_info(self._facts(), await self._counters(), self._rates, time.time())
