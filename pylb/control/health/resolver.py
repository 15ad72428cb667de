"""Host names of static servers: asked now and then, and never waited for.

The last good answer counts until there is another: a DNS server that is down, or says nothing, takes no server away. It is
in the snapshot too, so that a start without DNS serves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from pylb.core.address import parse_ip

Resolve = Callable[[str], Awaitable[Iterable[str]]]
Note = Callable[[str, str, bool], None]  # kind, text, alarm

FIRST_LOOK = 2.0  # seconds that a start or a reload waits for addresses of new names
AT_ONCE = 8  # of those that are due; the others a moment later
RETRY_MAX = 300.0  # seconds between two tries of a name that does not resolve


@dataclass(slots=True)
class _Host:
    ask_at: float
    wait: float = 0.0
    failed_since: float | None = None
    asking: bool = False


class Resolver:
    """`resolve` answers within some seconds, or raises TimeoutError or OSError. Nothing is asked that nobody needs."""

    def __init__(
        self, resolve: Resolve, clock: Callable[[], float], uniform: Callable[[float, float], float], note: Note
    ) -> None:
        self._resolve = resolve
        self._clock = clock
        self._uniform = uniform
        self._note = note
        self._hosts: dict[str, _Host] = {}
        self.interval = 30.0  # seconds
        self.answers: dict[str, tuple[str, ...]] = {}  # canonical, in order; of hosts that ever resolved

    def follow(self, hosts: Iterable[str], interval: float) -> None:
        """These and no others from now on; new ones are due at once."""
        wanted = set(hosts)
        self.interval = interval
        self._hosts = {host: self._hosts.get(host) or _Host(self._clock()) for host in wanted}
        self.answers = {host: answer for host, answer in self.answers.items() if host in wanted}

    def restore(self, answers: Mapping[str, Iterable[str]]) -> None:
        """What a snapshot remembers, before `follow`."""
        self.answers = {host: tuple(ips) for host, ips in answers.items()}

    async def first_look(self, hosts: Iterable[str], within: float) -> None:
        """The addresses of those that nobody has asked for, AT_ONCE at a time, before a table names them. Who does not answer
        in time has them with its next answer, as any other that is due."""
        new = iter({host for host in hosts if host not in self.answers})

        async def ask_some() -> None:
            for name in new:
                with suppress(OSError, ValueError):  # a TimeoutError is one; whoever asks next says so
                    if ips := {parse_ip(ip) for ip in await self._resolve(name)}:
                        self.answers[name] = tuple(sorted(ips))
                        self._note("resolved", f"{name} is {', '.join(self.answers[name])}", False)

        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await asyncio.gather(*(ask_some() for _ in range(AT_ONCE)))

    def is_due(self) -> bool:
        now = self._clock()
        return any(host.ask_at <= now and not host.asking for host in self._hosts.values())

    async def ask(self) -> set[str]:
        """Asks for some that are due, at once. Returns the hosts whose answer is another one now."""
        now = self._clock()
        due = list(islice((name for name, host in self._hosts.items() if host.ask_at <= now and not host.asking), AT_ONCE))
        found = await asyncio.gather(*(self._ask_one(name, self._hosts[name]) for name in due))
        return {name for name, changed in zip(due, found, strict=True) if changed}

    async def _ask_one(self, name: str, host: _Host) -> bool:
        host.asking = True
        why = "no address"
        try:
            ips = {parse_ip(ip) for ip in await self._resolve(name)}
        except (TimeoutError, OSError, ValueError) as error:
            ips, why = set(), str(error) or "no answer in time"
        finally:
            host.asking = False
        now = self._clock()
        if self._hosts.get(name) is not host:
            return False  # reloaded away meanwhile
        if not ips:
            self._failed(name, host, now, why)
            return False
        host.wait = self.interval
        host.ask_at = now + self.interval * self._uniform(0.9, 1.1)
        host.failed_since = None
        before, after = self.answers.get(name), tuple(sorted(ips))
        if before == after:
            return False
        self.answers[name] = after
        gone = f", no longer {', '.join(sorted(set(before) - ips))}" if before and set(before) - ips else ""
        self._note("resolved", f"{name} is {', '.join(after)}{gone}", False)
        return True

    def _failed(self, name: str, host: _Host, now: float, why: str) -> None:
        if host.failed_since is None:
            host.failed_since = now
            known = self.answers.get(name)
            keeps = f"its last addresses count on: {', '.join(known)}" if known else "it has no servers"
            self._note("unresolved", f"{name} cannot be resolved ({why}); {keeps}", True)
        host.wait = min(max(self.interval, host.wait * 2), RETRY_MAX)
        host.ask_at = now + host.wait * self._uniform(0.9, 1.1)
