"""Host names of static servers: looked up regularly, and never waited for.

The last good answer stays valid until there is another: a DNS server that is down, or silent, takes no server away. The
answers are in the snapshot too, so that a start without DNS serves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from pylb.core.address import parse_ip

Resolve = Callable[[str], Awaitable[Iterable[str]]]
Note = Callable[[str, str, bool], None]  # kind, text, alarm

FIRST_LOOK = 2.0  # seconds that a start or a reload waits for the addresses of new names
AT_ONCE = 8  # of those that are due; the others follow a moment later
RETRY_MAX = 300.0  # seconds between two attempts for a name that does not resolve


@dataclass(slots=True)
class _Host:
    ask_at: float
    wait: float = 0.0
    failed_since: float | None = None
    asking: bool = False


class Resolver:
    """`resolve` answers within some seconds, or raises TimeoutError or OSError. Only needed names are looked up."""

    def __init__(
        self, resolve: Resolve, clock: Callable[[], float], uniform: Callable[[float, float], float], note: Note
    ) -> None:
        self._resolve = resolve
        self._clock = clock
        self._uniform = uniform
        self._note = note
        self._hosts: dict[str, _Host] = {}
        self.interval = 30.0  # seconds
        self.answers: dict[str, tuple[str, ...]] = {}  # canonical, in order; for hosts that ever resolved

    def follow(self, hosts: Iterable[str], interval: float) -> None:
        """From now on exactly these hosts; new ones are due at once."""
        wanted = set(hosts)
        self.interval = interval
        self._hosts = {host: self._hosts.get(host) or _Host(self._clock()) for host in wanted}
        self.answers = {host: answer for host, answer in self.answers.items() if host in wanted}

    def restore(self, answers: Mapping[str, Iterable[str]]) -> None:
        """What a snapshot remembers, before `follow`."""
        self.answers = {host: tuple(ips) for host, ips in answers.items()}

    async def first_look(self, hosts: Iterable[str], within: float) -> None:
        """Look up names that are still unknown, AT_ONCE at a time, before a table uses them. A name that takes longer gets its
        addresses with its next answer, like any other that is due."""
        new = iter({host for host in hosts if host not in self.answers})

        async def ask_some() -> None:
            for name in new:
                with suppress(OSError, ValueError):  # includes TimeoutError; the next look-up reports it
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
        """Look up some that are due, at once. Returns the hosts whose answer has changed."""
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
            return False  # a reload has removed it
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
