"""Other pylbs beside this one (`admin.peers`): each one's sentence of health, asked for while somebody watches the page, and
whether it could have the floating address, asked for before `pylb standby`.

pylb asks, not the browser, so the page's policy stays what it is. Where it asks is what the operator wrote into the config:
no redirect is followed, nothing secret is sent, and an answer is bounded in time and size. Only the fields named here are
taken from it, cut and made harmless, so an address that does not belong to a pylb shows nothing of what is there.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from pylb.control.health_sentence import Condition
from pylb.core.connect_failures import failure_name
from pylb.core.text import visible
from pylb.host.machine import resolve
from pylb.web.admin import ACTIVE, HEALTH

T = TypeVar("T")

PERIOD = 5.0  # seconds between two rounds
WITHIN = 3.0  # seconds for one answer, from the look-up of the name on
AT_ONCE = 4  # questions: descriptors, and threads of look-ups that do not end
MOST_BYTES = 16_384  # of an answer
MOST_TEXT = 600  # characters of a sentence
MOST_NAME = 80
NO_PYLB = "something answers there that is not a pylb"


class Peer(NamedTuple):
    """`url`: where pylb asks. `page`: where the operator's browser finds its status page."""

    name: str
    url: str
    page: str


class _NoPylbError(Exception):
    """What came is not an answer of a pylb."""


class _Answer(NamedTuple):
    status: int
    body: bytes


class Peers:
    """`configured`: those of the config in force."""

    def __init__(
        self,
        configured: Callable[[], Sequence[Peer]],
        *,
        clock: Callable[[], float] = time.monotonic,
        period: float = PERIOD,
        within: float = WITHIN,
    ) -> None:
        self._configured = configured
        self._clock = clock
        self._period = period
        self._within = within
        self._answers: dict[Peer, dict[str, Any]] = {}

    def records(self) -> list[dict[str, Any]]:
        """The peers as the page shows them, in the order of the config."""
        return [{"name": one.name, "page": one.page, **self._answers.get(one, {})} for one in self._configured()]

    async def run(self, watched: asyncio.Event) -> None:
        """Runs until it is cancelled. `watched`: set while somebody watches."""
        while True:
            await watched.wait()
            await self.ask()
            await asyncio.sleep(self._period)

    async def ask(self) -> None:
        """Ask all of them once."""
        peers = self._configured()
        self._answers = {one: self._answers[one] for one in peers if one in self._answers}
        await self._each(peers, HEALTH, lambda one, found: self._note(one, _read(found, taken)))

    async def active(self) -> dict[str, str]:
        """For each, by its name: "" if it answers now that it may have the floating address, else why not.

        In the order of the config, whoever answers first.
        """
        peers, found = self._configured(), dict[Peer, str]()
        await self._each(peers, ACTIVE, lambda one, answer: found.update({one: _why_not_active(answer)}))
        return {one.name: found[one] for one in peers}

    async def _each(self, peers: Sequence[Peer], path: str, note: Callable[[Peer, _Answer | str], None]) -> None:
        if not peers:
            return
        turns = asyncio.Semaphore(AT_ONCE)
        # A session of its own for each round: no connection, cookie or address outlives it.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_Names(), force_close=True, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as session:

            async def ask_in_turn(one: Peer) -> None:
                async with turns:
                    note(one, await self._ask(session, one, path))

            async with asyncio.TaskGroup() as group:
                for one in peers:
                    group.create_task(ask_in_turn(one))

    def _note(self, peer: Peer, found: Mapping[str, Any] | str) -> None:
        """`found`: its answer, or why there is none; then what it answered before is shown with its age."""
        if isinstance(found, str):
            self._answers[peer] = {**self._answers.get(peer, {}), "error": found}
        else:
            self._answers[peer] = {**found, "at": round(self._clock(), 1), "error": ""}

    async def _ask(self, session: aiohttp.ClientSession, peer: Peer, path: str) -> _Answer | str:
        try:
            async with asyncio.timeout(self._within):
                headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "pylb"}
                async with session.get(peer.url + path, headers=headers, allow_redirects=False) as answer:
                    says = answer.status in (200, 503)  # a refusal may be another program's page
                    return _Answer(answer.status, await _bounded(answer.content) if says else b"")
        except TimeoutError:
            return f"no answer within {self._within:g} s"
        except aiohttp.ClientSSLError:
            return "its certificate is not trusted here, or it speaks no TLS"
        except aiohttp.ClientConnectorDNSError:
            return "its name does not resolve"
        except aiohttp.ClientConnectorError as error:
            return failure_name(error.errno or 0)
        except (aiohttp.ClientError, OSError, ValueError, _NoPylbError):
            return NO_PYLB


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """Raises _NoPylbError if it is longer than any answer of a pylb."""
    found = bytearray()
    async for piece in content.iter_any():
        found += piece
        if len(found) > MOST_BYTES:
            raise _NoPylbError
    return bytes(found)


def _read(answer: _Answer | str, read: Callable[[bytes], T]) -> T | str:
    """What it says, or why it says nothing."""
    if isinstance(answer, str):
        return answer
    if answer.status != 200:
        return _refusal(answer.status)
    try:
        return read(answer.body)
    except (ValueError, RecursionError, _NoPylbError):
        return NO_PYLB


def _why_not_active(answer: _Answer | str) -> str:
    if isinstance(answer, _Answer) and answer.status == 503:
        answer = _Answer(200, answer.body)  # it says why
    return _read(answer, activity)


def activity(body: bytes) -> str:
    """What an answer of /activez says: "" if that pylb may have the floating address. Raises _NoPylbError or ValueError."""
    found = json.loads(body)
    status = found.get("status") if isinstance(found, dict) else None
    if status not in ("active", "standby", "starting"):
        raise _NoPylbError
    return {"active": "", "standby": "it is on standby itself", "starting": "it is starting"}[status]


def taken(body: bytes) -> dict[str, Any]:
    """What the page shows of an answer. Raises _NoPylbError or ValueError."""
    found = json.loads(body)
    if not isinstance(found, dict) or str(found.get("health")) not in set(Condition):
        raise _NoPylbError
    texts = {name: found.get(name) for name in ("sentence", "host", "version")}
    sessions = found.get("sessions")
    if not all(isinstance(text, str) for text in texts.values()) or type(sessions) is not int:
        raise _NoPylbError
    cut = {name: visible(str(text)[: MOST_TEXT if name == "sentence" else MOST_NAME]) for name, text in texts.items()}
    return {"health": found["health"], **cut, "sessions": max(0, min(sessions, 10**9))}


def _refusal(status: int) -> str:
    if status == 403:
        return "it refuses this machine or the name it is called by (403: advertise or metrics.allow, over there)"
    if status == 404:
        return "it has no such page (404): an older pylb, or not one"
    return f"it answers with status {status}"


class _Names(AbstractResolver):
    """Look-ups as pylb does them everywhere: in a thread that may hang without blocking any other work."""

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:  # noqa: ARG002 - aiohttp's
        found = await resolve(host)
        if not found:
            raise OSError(f"{host} has no address")
        return [_result(host, ip, port) for ip in sorted(found)]

    async def close(self) -> None:
        """Required by aiohttp; there is nothing to close."""


def _result(host: str, ip: str, port: int) -> ResolveResult:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    return ResolveResult(hostname=host, host=ip, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
