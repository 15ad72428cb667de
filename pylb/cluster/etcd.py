"""A client of etcd's HTTP/JSON gateway. aiohttp instead of gRPC, whose library would take 19 MB of disk and 21 MiB of memory.

All calls go to one endpoint until it does not answer; then the next call goes to the next one. Nothing is tried again here,
because a call without an answer may have happened: whoever made it has to look.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, Self

import aiohttp

from pylb.cluster import gateway
from pylb.cluster.gateway import (
    AuthIsOff,
    Denied,
    EtcdError,
    Event,
    Item,
    Outcome,
    Txn,
    Unauthenticated,
    Unreachable,
)
from pylb.control.steps import in_turns

CALL = 3.0  # seconds: without a quorum etcd itself would take seven
SILENCE = 30.0  # seconds without a byte on a watch: balancers write every ten
AUTHENTICATE_EVERY = 1.0  # seconds: etcd hashes the password with bcrypt
PAGE = 250  # items of a page: some 100 KiB, parsed in a millisecond or two
EVENTS = 100  # between two turns of the loop
MOST_BYTES = 1 << 26  # of an answer, and of a line of a watch


@dataclass(frozen=True, slots=True)
class Login:
    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """What this balancer shows to etcd, and by what it knows etcd. `wrong`: why there are none; nothing is asked then."""

    login: Login | None = None
    tls: ssl.SSLContext | None = None
    wrong: str = ""


NO_CREDENTIALS = Credentials()


@dataclass(frozen=True, slots=True)
class Waits:
    call: float = CALL
    silence: float = SILENCE


WAITS = Waits()


class Etcd:
    """Use as an async context manager."""

    def __init__(
        self,
        endpoints: Sequence[str],
        credentials: Credentials = NO_CREDENTIALS,
        *,
        waits: Waits = WAITS,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._endpoints = [endpoint.rstrip("/") for endpoint in endpoints]
        self._current = 0
        self._credentials = credentials
        self._waits = waits
        self._sleep = sleep
        self._token = ""
        self._date = ""  # when the last call was answered, by etcd's clock
        self._authenticating = asyncio.Lock()
        self._next_authentication = 0.0  # the loop's time
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=8),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=self._waits.silence),
            read_bufsize=1 << 18,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    def use(self, credentials: Credentials) -> None:
        """From the next call on. A watch goes on with those that it began with: etcd has accepted them."""
        if credentials.login != self._credentials.login:
            self._token = ""
        self._credentials = credentials

    @property
    def endpoint(self) -> str:
        """Where the next call goes."""
        return self._endpoints[self._current]

    @property
    def endpoints(self) -> int:
        return len(self._endpoints)

    def leave(self, endpoint: str) -> None:
        """It does not answer: go to the next. Several calls may find out at once, and it is left once."""
        if endpoint == self.endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    # ------------------------------------------------------------- calls: each raises EtcdError

    async def list(self, prefix: bytes) -> tuple[int, list[Item]]:
        """(etcd's revision, all that starts with `prefix` at that revision), in pages."""
        start, revision, found = prefix, 0, list[Item]()
        while True:
            body = gateway.range_body(start, gateway.end_of(prefix), revision, PAGE)
            page = gateway.read_page(await self._call("/v3/kv/range", body))
            revision = revision or page.revision
            found += page.items
            if not page.more or not page.items:
                return revision, found
            start = page.items[-1].key + b"\0"

    async def txn(self, txn: Txn) -> Outcome:
        """Raises Unreachable: it may have happened; anything else: it has not."""
        return gateway.read_outcome(await self._call("/v3/kv/txn", gateway.txn_body(txn)))

    async def grant(self, seconds: int) -> int:
        """A new lease."""
        return gateway.read_grant(await self._call("/v3/lease/grant", {"TTL": str(seconds)}))

    async def keepalive(self, lease: int) -> None:
        """Raises LeaseGone."""
        if gateway.read_keepalive(await self._call("/v3/lease/keepalive", {"ID": str(lease)})) <= 0:
            raise gateway.LeaseGone("etcd no longer has this balancer's lease")

    async def revoke(self, lease: int) -> None:
        """End the lease; its keys are deleted at once. Raises LeaseGone."""
        await self._call("/v3/lease/revoke", {"ID": str(lease)})

    async def status(self) -> gateway.Status:
        """Of the member that is asked."""
        status = gateway.read_status(await self._call("/v3/maintenance/status", {}))
        try:
            return status._replace(ahead=parsedate_to_datetime(self._date).timestamp() - time.time())
        except ValueError:  # it has no date that can be read
            return status

    async def watch(self, prefix: bytes, after: int, seen: Callable[[int, Sequence[Event]], None]) -> NoReturn:
        """Call `seen` with all events of each revision after `after`; with none if nothing happened up to that revision.

        Never returns. Raises Compacted: another list is needed; Unreachable, also after 30 s of silence.
        """
        body = gateway.watch_body(prefix, after + 1)
        token = self._token
        try:
            await self._watch(body, token, seen)
        except Unauthenticated:
            await self._authenticate(token)
        await self._watch(body, self._token, seen)

    # ------------------------------------------------------------- HTTP

    async def _call(self, path: str, body: Mapping[str, Any]) -> bytes:
        token = self._token
        try:
            return await self._ask(path, body, token)
        except Unauthenticated:
            await self._authenticate(token)
        return await self._ask(path, body, self._token)

    async def _authenticate(self, used: str) -> None:
        """Get another token than `used`, which is missing or no longer valid. At most once a second, whoever asks."""
        if (login := self._credentials.login) is None:
            raise Denied("etcd has users, and pylb no user name for it: set cluster.etcd.username and password_file")
        async with self._authenticating:
            if self._token != used:  # somebody else has it already
                return
            loop = asyncio.get_running_loop()
            if (wait := self._next_authentication - loop.time()) > 0:
                await self._sleep(wait)
            self._next_authentication = loop.time() + AUTHENTICATE_EVERY
            body = {"name": login.username, "password": login.password}
            try:
                self._token = gateway.read_token(await self._ask("/v3/auth/authenticate", body, ""))
            except AuthIsOff:
                self._token = ""

    async def _ask(self, path: str, body: Mapping[str, Any], token: str) -> bytes:
        endpoint = self._endpoint_to_ask()
        try:
            async with asyncio.timeout(self._waits.call), self._post(endpoint, path, body, token) as response:
                answer = await _read(response)
                self._date = response.headers.get("Date", "")
                if response.status != 200:
                    raise gateway.failure(response.status, answer)
                return answer
        except (TimeoutError, OSError, aiohttp.ClientError, Unreachable) as error:
            self.leave(endpoint)
            raise Unreachable(self._at(endpoint, error)) from None
        except EtcdError as error:
            raise type(error)(self._at(endpoint, error)) from None

    async def _watch(self, body: Mapping[str, Any], token: str, seen: Callable[[int, Sequence[Event]], None]) -> NoReturn:
        endpoint = self._endpoint_to_ask()
        try:
            async with asyncio.timeout(self._waits.call) as opening, self._post(endpoint, "/v3/watch", body, token) as response:
                if response.status != 200:
                    raise gateway.failure(response.status, await _read(response))
                async for line in _Lines(response.content):
                    opening.reschedule(None)
                    await self._see(gateway.read_watched(line), seen)
            raise Unreachable("it ended the watch")  # noqa: TRY301 - as all that ends it
        except (TimeoutError, OSError, aiohttp.ClientError, Unreachable) as error:
            self.leave(endpoint)
            raise Unreachable(self._at(endpoint, error)) from None
        except EtcdError as error:
            raise type(error)(self._at(endpoint, error)) from None

    async def _see(self, watched: gateway.Watched, seen: Callable[[int, Sequence[Event]], None]) -> None:
        same = list[Event]()
        async for event in in_turns(watched.events, EVENTS):
            if same and same[-1].revision != event.revision:
                seen(same[-1].revision, same)
                same = []
            same.append(event)
        if same:
            seen(same[-1].revision, same)
        elif not watched.created:  # at its creation the revision says nothing about events on their way
            seen(watched.revision, ())

    def _endpoint_to_ask(self) -> str:
        """Raises Denied: no endpoint is to blame."""
        if self._credentials.wrong:
            raise Denied(self._credentials.wrong)
        return self.endpoint

    def _post(self, endpoint: str, path: str, body: Mapping[str, Any], token: str) -> Any:
        if self._http is None:
            raise RuntimeError("Etcd is used outside its context")
        # Without a leader etcd would be silent on a watch, and slow to refuse a call.
        headers = {"Grpc-Metadata-hasleader": "true", **({"Authorization": token} if token else {})}
        return self._http.post(
            endpoint + path, json=body, headers=headers, ssl=self._credentials.tls or True, allow_redirects=False
        )

    def _at(self, endpoint: str, error: BaseException) -> str:
        if isinstance(error, aiohttp.SocketTimeoutError):
            return f"{endpoint}: silent for {self._waits.silence:g} s"
        if isinstance(error, TimeoutError):
            return f"{endpoint}: no answer within {self._waits.call:g} s"
        return f"{endpoint}: {str(error) or type(error).__name__}"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    pieces, size = list[bytes](), 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > MOST_BYTES:
            raise Unreachable(f"its answer has more than {MOST_BYTES >> 20} MiB")
    return b"".join(pieces)


class _Lines(AsyncIterator[bytes]):
    """Not an async generator: whoever stops early would have to close it."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self._whole = deque[bytes]()
        self._rest = list[bytes]()
        self._size = 0  # of the rest

    async def __anext__(self) -> bytes:
        while not self._whole:
            piece = await self._content.readany()
            if not piece:
                last, self._rest = b"".join(self._rest), []
                if last.strip():  # why it ends has no newline
                    return last
                raise StopAsyncIteration
            first, *others = piece.split(b"\n")
            self._rest.append(first)
            self._size += len(first)
            if others:
                self._whole += [b"".join(self._rest), *others[:-1]]
                self._rest, self._size = [others[-1]], len(others[-1])
            if self._size > MOST_BYTES:
                raise Unreachable(f"a line of its watch has more than {MOST_BYTES >> 20} MiB")
        return self._whole.popleft()
