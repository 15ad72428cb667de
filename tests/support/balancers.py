"""Balancers as etcd sees them: core/merge and the loop to a real etcd, without the rest of pylb."""

import asyncio
from collections.abc import Callable, Collection
from typing import Self

from pylb.cluster.etcd import Etcd, Waits
from pylb.cluster.sync import Presence, Sync
from pylb.core.merge.local import Answer, Conflict, Memory
from pylb.core.merge.replica import Replica
from pylb.core.merge.values import Slot, Wanted
from pylb.core.registration import Key

WEB, OTHER, MAIL = Key("t", "web", "1"), Key("t", "web", "2"), Key("u", "mail", "1")
HTTPS, SMTP = Slot("tcp", 443), Slot("tcp", 25)


def wanted(address: str = "10.0.0.1", *slots: Slot) -> Wanted:
    return Wanted(address, slots or (HTTPS,))


async def until(check: Callable[[], object], what: str = "", *, within: float = 20.0) -> None:
    """Waits for a condition, never for a time."""
    try:
        async with asyncio.timeout(within):
            while not check():  # noqa: ASYNC110 - a test waits for anything
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {within:g} s: {what or check}") from None


class Balancer:
    """Use as an async context manager. `memory`: of the process before this one."""

    def __init__(
        self,
        name: str,
        urls: Collection[str],
        prefix: str,
        *,
        memory: Memory | None = None,
        presence: Presence | None = None,
        waits: Waits = Waits(),  # noqa: B008 - frozen
        client: type[Etcd] = Etcd,
        heartbeat: float = 10.0,
    ) -> None:
        self.said: list[str] = []
        self.changes: list[Collection[Key] | None] = []
        self.replica = Replica(name, frozenset(), frozenset(), memory or Memory())
        self.etcd = client(list(urls), waits=waits)
        self.presence = presence or Presence(f"nonce of {name}")
        self.sync = Sync(
            self.etcd,
            self.replica,
            prefix,
            self.presence,
            changed=self.changes.append,
            report=lambda text, _alarm: self.said.append(text),
            heartbeat=heartbeat,
            claim=waits.call,
            pause=0.02,
        )

    async def __aenter__(self) -> Self:
        await self.etcd.__aenter__()
        self._task = asyncio.get_running_loop().create_task(self.sync.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.etcd.__aexit__()
        if not self._task.cancelled():
            self._task.result()

    async def connected(self) -> None:
        await until(lambda: not self.sync.trouble or self._task.done(), f"{self.replica.name} is connected: {self.said}")

    async def announce(self, key: Key = WEB, what: Wanted | None = None) -> Answer | Conflict:
        """As a call does."""
        answer = self.replica.announce(key, what or wanted(), now=asyncio.get_running_loop().time())
        if answer is Answer.CLAIMING:
            return await self.sync.claimed(key)
        self.sync.wake()
        return answer

    def release(self, key: Key = WEB) -> None:
        self.replica.release(key)
        self.sync.wake()

    def shows(self, key: Key = WEB) -> str:
        one = self.replica.knowledge.registration(key)
        return "" if one is None else f"{one.wanted.address} {one.state}"

    async def showing(self, text: str, key: Key = WEB) -> None:
        await until(lambda: self.shows(key) == text, f"{self.replica.name} shows {text!r}, not {self.shows(key)!r}")
