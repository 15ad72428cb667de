"""What the tests of control stand on: a real store, real ports, real targets on loopback, and a clock cranked by hand."""

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from pylb.control.event_log import Event
from pylb.control.registry import Registry
from pylb.control.storage.store import Store
from pylb.control.views import Outcome
from pylb.core.address import Listen, parse_network, parse_ports
from pylb.core.auth import Caller, Keyring, Token
from pylb.core.legacy import parse_legacy
from pylb.core.policy import Rules
from pylb.core.registration import Announcement, FrontendRequest
from pylb.core.table import Server
from tests.support.sink import PortSink

# Loopback has 16 million addresses: each test process has three "nodes" of its own, so that they run side by side.
_NET = f"127.{1 + os.getpid() // 250 % 250}.{os.getpid() % 250}"
NODE_A, NODE_B, NODE_C = f"{_NET}.2", f"{_NET}.3", f"{_NET}.4"
SECRET = "a-secret-of-a-test-token"


async def until(happens: Callable[[], object]) -> None:
    """Lets the loop turn until it has happened; the test's own timeout is the limit."""
    while not happens():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)


def token(name: str = "t", **changes: object) -> Token:
    given: dict[str, object] = {
        "name": name,
        "secrets": (SECRET + name,),
        "ports": parse_ports(["1-65535"]),
        "names": ("*",),
        "targets": (parse_network("127.0.0.0/8"),),
        "target_ports": parse_ports(["20000-32767"]),
    }
    return Token(**(given | changes))  # type: ignore[arg-type]


@contextmanager
def target(port: int, *nodes: str) -> Iterator[None]:
    """The app behind a NodePort: connects succeed."""
    with _sockets() as stack:
        for node in nodes or (NODE_A,):
            stack.append(_listening(node, port, 64))
        yield


@contextmanager
def _sockets() -> Iterator[list[socket.socket]]:
    socks: list[socket.socket] = []
    try:
        yield socks
    finally:
        for sock in socks:
            sock.close()


def _listening(ip: str, port: int, backlog: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((ip, port))
    sock.listen(backlog)
    return sock


@contextmanager
def black_hole(port: int, ip: str = NODE_A) -> Iterator[None]:
    """A full accept queue: the kernel drops the SYN, as a firewall would."""
    with _sockets() as stack:
        stack.append(_listening(ip, port, 0))
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((ip, port))
            stack.append(filler)
        yield


@contextmanager
def disk_full() -> Iterator[None]:
    """No file may grow past a few bytes (EFBIG; Python ignores SIGXFSZ). Nothing may be printed meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Control:
    """A running registry and the words the tests use."""

    def __init__(self, state_dir: Path, rules: Rules, *tokens: Token, **more: Any) -> None:
        """`more`: for the registry."""
        self.clock = Clock()
        self.sink = PortSink()
        self.store = CountingStore(state_dir)
        self.heard: list[Event] = []
        self.heard_by: Callable[[Event], None] = lambda _event: None
        self.dns: dict[str, list[str] | Exception] = {}
        self.keyring = Keyring(tokens or (token(),))
        self.registry = Registry(
            rules=rules,
            keyring=self.keyring,
            sink=self.sink,
            store=self.store,
            clock=self.clock,
            wall=lambda: 1_700_000_000.0 + self.clock(),
            uniform=lambda _low, _high: 1.0,
            resolve=self._resolve,
            on_event=self._hear,
            **more,
        )

    def _hear(self, event: Event) -> None:
        self.heard.append(event)
        self.heard_by(event)

    async def _resolve(self, host: str) -> list[str]:
        found = self.dns.get(host, [])
        if isinstance(found, Exception):
            raise found
        return found

    def caller(self, ip: str = NODE_A, name: str = "") -> Caller:
        known = {one.name: one for one in self.keyring.tokens}
        return Caller(ip, known[name] if name else self.keyring.tokens[0])

    async def put(
        self,
        ports: dict[int, int],
        ip: str = NODE_A,
        *,
        name: str = "web",
        instance: str = "pod-1",
        token: str = "",
        ttl: float | None = 60.0,
        draining: bool = False,
        address: str | None = None,
    ) -> Outcome:
        wanted = tuple(FrontendRequest(port, to) for port, to in ports.items())
        announcement = Announcement(wanted, address, ttl, draining)
        return await self.registry.calls.announce(name, instance, announcement, self.caller(ip, token))

    async def legacy(self, port: int, to: int, ip: str = NODE_A, *, action: str = "add", token: str = "") -> str:
        body = (
            f'{{"dst-ip":"","frontend-port":"{port}","backend-port":"{to}","action":"{action}","name":"old","send-proxy":""}}'
        )
        return await self.registry.calls.legacy(parse_legacy(body.encode()), self.caller(ip, token))

    async def delete(self, *, name: str = "web", instance: str = "pod-1", token: str = "") -> Outcome:
        return await self.registry.calls.release(name, instance, self.caller(NODE_A, token))

    async def pass_time(self, seconds: float, *, probing: bool = False) -> None:
        """In steps that a running pylb would take."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + 2.0)
            await self.registry.tick()
            if probing:
                await self.registry.probe()
                await asyncio.sleep(0)  # news are heeded in the next turn of the loop

    def ranks(self, port: int) -> dict[str, int]:
        (frontend,) = [one for listen, one in self.registry.table.frontends.items() if listen.port == port]
        return {f"{server.address.ip}": server.rank for server in frontend.servers}

    def server(self, port: int, ip: str = NODE_A) -> tuple[Listen, Server]:
        (frontend,) = [one for listen, one in self.registry.table.frontends.items() if listen.port == port]
        return frontend.listen, next(server for server in frontend.servers if server.address.ip == ip)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.heard]

    def picture(self) -> tuple[object, ...]:
        """All that a refused call must leave as it was."""
        state = self.store.path.read_bytes() if self.store.path.exists() else None
        claims = list(self.registry.each_registration()), [view.address for view in self.registry.each_server()]
        return claims, self.registry.table, frozenset(self.sink.ports), state


class CountingStore(Store):
    saves = 0

    async def save(self, make: Callable[[], dict[str, Any]]) -> None:
        self.saves += 1
        await super().save(make)


@asynccontextmanager
async def control(state_dir: Path, *tokens: Token, rules: Rules | None = None) -> AsyncIterator[Control]:
    made = Control(state_dir, rules or Rules(), *tokens)
    await made.registry.start()
    await made.registry.webhook_is_up()
    try:
        yield made
    finally:
        await made.registry.stop()
        made.sink.close()
