"""Dials: the one that proves a new target, and the probes that find out when a server that is out is back.

A probe never delays anything: it runs beside the single writer, and only its finding is handed over, by `on_news`.
"""

import asyncio
import errno
import select
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from pylb.core.address import Address, Listen
from pylb.core.compose import Sight
from pylb.core.health import PROVEN, UP, YES, Health, Proof, answered, failed, prove, unproven, watched
from pylb.core.policy import HealthMode
from pylb.core.table import Frontend, Table

DIAL_TIMEOUT = 1.0  # seconds: longer than any round trip, shorter than a phone-home's patience

Dial = Callable[[Address, float], Awaitable[str]]
FAILURES = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "refused",
    errno.ETIMEDOUT: "timeout",
    **dict.fromkeys((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL), "resource"),
}


async def dial(address: Address, timeout: float) -> str:  # noqa: ASYNC109 - the limit is part of what is found
    """One TCP connect: "yes", "refused", "timeout", "unreachable", or "resource" when the fault is ours.

    The loop is given an epoll of our own, not the socket: libuv ends a watch on POLLERR, which is what a refused connect
    raises, and sock_connect of uvloop may never end (MagicStack/uvloop#378, #389).
    """
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    loop = asyncio.get_running_loop()
    try:
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock, select.epoll(1) as epoll:
            code = sock.connect_ex((address.ip, address.port))
            if code == errno.EINPROGRESS:
                epoll.register(sock, select.EPOLLOUT)
                code = await _outcome(loop, epoll.fileno(), sock, timeout)
    except OSError as error:  # no socket to be had: nothing is known of the target, it is asked again later
        code = error.errno or errno.EMFILE
    return YES if code == 0 else FAILURES.get(code, "unreachable")


async def _outcome(loop: asyncio.AbstractEventLoop, fd: int, sock: socket.socket, timeout: float) -> int:  # noqa: ASYNC109
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        async with asyncio.timeout(timeout):
            await ready.wait()
    except TimeoutError:
        return errno.ETIMEDOUT
    finally:
        loop.remove_reader(fd)  # before the fd is closed and its number belongs to somebody else
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


News = Callable[[list[Listen], str, str], None]


class Checker:
    """What is known of all servers. `on_news(listens, kind, text)` is called when a rank may differ."""

    def __init__(
        self, dial_one: Dial, clock: Callable[[], float], uniform: Callable[[float, float], float], on_news: News
    ) -> None:
        self._dial = dial_one
        self._clock = clock
        self._uniform = uniform
        self._on_news = on_news
        self._health: dict[tuple[Listen, Address], Health] = {}
        self._proofs: dict[Address, Proof] = {}
        self._dialling: dict[Address, asyncio.Task[str]] = {}
        self._uses: Counter[Address] = Counter()  # by how many frontends
        self._down: frozenset[tuple[Listen, Address]] = frozenset()
        self._proven: frozenset[Address] = frozenset()
        self.table = Table()
        self.interval = 2.0  # seconds between two dials of an unproven target, at first

    @property
    def sight(self) -> Sight:
        return Sight(self._proven, self._down)

    def proof(self, address: Address) -> Proof | None:
        return self._proofs.get(address)

    def health(self, listen: Listen, address: Address) -> Health | None:
        """None: never a failure, and never probed."""
        return self._health.get((listen, address))

    def restore(self, proven: Iterable[Address]) -> None:
        self._proofs.update(dict.fromkeys(proven, PROVEN))
        self._proven |= frozenset(self._proofs)

    async def dial_new(self, addresses: Iterable[Address]) -> None:
        """Dials those nothing is known of, all at once (<= 1 s). What is found is kept; ranks follow with the next table."""
        unknown = {address for address in addresses if address not in self._proofs}
        await asyncio.gather(*(self._ask(address) for address in unknown))

    async def _ask(self, address: Address) -> str:
        """Two that ask the same share one dial, and it goes on if one of them gives up."""
        running = self._dialling.get(address)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._dial_and_learn(address))
            self._dialling[address] = running
        return await asyncio.shield(running)

    async def _dial_and_learn(self, address: Address) -> str:
        try:
            found = await self._dial(address, DIAL_TIMEOUT)
        finally:
            del self._dialling[address]
        known = self._proofs.get(address)
        self._proofs[address] = prove(known, found, self.interval, self._clock(), jitter=self._jitter())
        if found == YES and address not in self._proven:
            self._proven |= {address}
        return found

    def forget_unused(self, addresses: Iterable[Address]) -> None:
        """Of a call that was refused after its dial."""
        for address in addresses:
            if address not in self._uses:
                self._proofs.pop(address, None)
                self._proven -= {address}

    def sync(self, table: Table, touched: Iterable[Listen] | None) -> None:
        """After a new table: watch what active mode wants, ask who is not known, forget what is gone."""
        before, self.table = self.table, table
        gone: set[Address] = set()
        for listen in {**before.frontends, **table.frontends} if touched is None else set(touched):
            old, new = _addresses(before, listen), _addresses(table, listen)
            self._uses.update(new - old)
            self._uses.subtract(old - new)
            gone |= old - new
            for address in old - new:
                self._health.pop((listen, address), None)
                self._down -= {(listen, address)}
            for address in new:
                self._watch(table.frontends[listen], address)
        for address in gone:
            if self._uses[address] <= 0:
                del self._uses[address]
                self.forget_unused([address])

    def _watch(self, frontend: Frontend, address: Address) -> None:
        now = self._clock()
        self._proofs.setdefault(address, unproven(now))
        policy = frontend.policy.health
        if policy.mode is HealthMode.ACTIVE:
            self._health.setdefault((frontend.listen, address), watched(policy, now, self._jitter()))

    def connect_ended(self, listen: Listen, address: Address, failure: str | None) -> None:
        """What a client's session met. Cheap; news are given in the same call."""
        frontend = self.table.frontends.get(listen)
        if frontend is not None and any(server.address == address for server in frontend.servers):
            self._heed(frontend, address, failure, probe=False)

    def _heed(self, frontend: Frontend, address: Address, failure: str | None, *, probe: bool) -> None:
        place, now, policy = (frontend.listen, address), self._clock(), frontend.policy.health
        before = self._health.get(place, UP)
        if failure is None:
            after = answered(before, policy, now, jitter=self._jitter())
        else:
            after = failed(before, policy, failure, now, probe=probe, jitter=self._jitter())
        self._health[place] = after
        if after.down is before.down:
            return
        if after.down:
            self._down |= {place}
            text = f"{frontend.name}: server {address} is out after {after.failures} failed connects ({failure})"
            self._on_news([frontend.listen], "server_down", text)
        else:
            self._down -= {place}
            self._on_news([frontend.listen], "server_up", f"{frontend.name}: server {address} is back")

    def is_due(self) -> bool:
        return bool(self._due(self._clock()))

    async def probe(self) -> None:
        """All probes that are due, at once; returns when the last has its finding (<= 1 s)."""
        due = self._due(self._clock())
        await asyncio.gather(*(self._probe(address, places) for address, places in due.items()))

    def _due(self, now: float) -> dict[Address, list[Listen]]:
        """Address -> the frontends whose health wants to know. An empty list: only its proof does."""
        due: dict[Address, list[Listen]] = {}
        for (listen, address), health in self._health.items():
            if health.probe_at <= now and address not in self._dialling:
                due.setdefault(address, []).append(listen)
        for address, proof in self._proofs.items():
            if proof.probe_at <= now and address not in self._dialling:
                due.setdefault(address, [])
        return due

    async def _probe(self, address: Address, places: list[Listen]) -> None:
        proven_before = address in self._proven
        found = await self._ask(address)
        for listen in places:
            frontend = self.table.frontends.get(listen)
            if frontend is not None and (listen, address) in self._health:
                self._heed(frontend, address, None if found == YES else found, probe=True)
        if found == YES and not proven_before and self._uses[address] > 0:
            at = [listen for listen in self.table.frontends if address in _addresses(self.table, listen)]
            self._on_news(at, "server_proven", f"server {address} has answered for the first time")

    async def stop(self) -> None:
        """Ends the dials under way."""
        running = list(self._dialling.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _jitter(self) -> float:
        return self._uniform(0.9, 1.1)


def _addresses(table: Table, listen: Listen) -> set[Address]:
    frontend = table.frontends.get(listen)
    return {server.address for server in frontend.servers} if frontend else set()
