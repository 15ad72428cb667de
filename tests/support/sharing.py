"""Balancers that share their table through a real etcd: control, core/merge and the session, without sockets for clients."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from pylb.cluster.etcd import Etcd, Waits
from pylb.cluster.shared import ClusterSettings, Shared
from pylb.control.views import Outcome
from pylb.core.address import parse_network
from pylb.core.auth import Token
from pylb.core.errors import Refused
from pylb.core.health import YES
from pylb.core.policy import Policy, Rules, StaticFrontend
from pylb.core.registration import Announcement, FrontendRequest, Key
from tests.control.harness import NODE_A, NODE_B, Control, token
from tests.support.balancers import until
from tests.support.etcd import Member

NODE, OTHER_NODE = "192.0.2.1", "192.0.2.2"
WEB = Key("t", "web", "pod-1")


async def _answers(_request: object) -> str:
    """Each server accepts connections: none of these addresses exists."""
    return YES


def shared_token(name: str = "t", **changes: object) -> Token:
    return token(name, targets=(parse_network("192.0.2.0/24"), parse_network("127.0.0.0/8")), **changes)


class SharingControl(Control):
    """One balancer. Use as an async context manager; `die` ends it as kill -9 would."""

    def __init__(
        self,
        name: str,
        urls: list[str],
        prefix: str,
        state_dir: Path,
        bind: str,
        *tokens: Token,
        frontends: tuple[StaticFrontend, ...] = (),
        waits: Waits = Waits(call=2.0),  # noqa: B008 - frozen
    ) -> None:
        self.name = name
        self.said: list[tuple[str, str, bool]] = []
        settings = ClusterSettings(name, prefix, state_dir, waits.call)
        self.shared = Shared(settings, lambda credentials: Etcd(urls, credentials, waits=waits), self._say)
        super().__init__(
            state_dir, Rules(frontends, Policy(bind=bind)), *(tokens or (shared_token(),)), sharing=self.shared, ask=_answers
        )

    def _say(self, kind: str, text: str, alarm: bool) -> None:
        self.said.append((kind, text, alarm))
        self.registry.note(kind, text, alarm=alarm)

    async def __aenter__(self) -> Self:
        await self.registry.start()
        await self.registry.webhook_is_up()
        self._task = asyncio.get_running_loop().create_task(self.shared.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(RuntimeError):
            await self.die()

    async def die(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.registry.stop()
        self.sink.close()
        if not self._task.cancelled():
            self._task.result()

    async def connected(self) -> None:
        def is_so() -> bool:
            return not self.shared.view().trouble and not self._task.done()

        await until(is_so, f"{self.name} is connected: {self.said}")

    async def route(self, port: int, name: str, *, server_name: str = "", allows_names: bool = False) -> Outcome:
        """Registration `name` of a route by that server name; without one, of the default route."""
        item = FrontendRequest(port, 30443, server_name=server_name, allows_names=allows_names)
        return await self.registry.calls.announce(name, "pod-1", Announcement((item,), None, 60.0), self.caller(NODE, ""))

    async def planned(self, port: int, name: str, ip: str = NODE) -> list[str]:
        """What the others would see of a call."""
        announcement = Announcement((FrontendRequest(port, 30443),), None, 60.0)
        _, others = await self.registry.calls.plan_announce(name, "pod-1", announcement, self.caller(ip, ""))
        return others

    def table(self) -> Mapping[int, str]:
        """By port: the server, its state, and who hears it."""
        held = self.registry._desired.claims.registrations
        return {
            item.port: f"{one.ip} {one.state}" + (f" {one.hearer}" if one.hearer else "")
            for one in held.values()
            for item in one.wanted
        }

    async def serves(self, port: int, text: str) -> None:
        """`text`: as in `table`; "": nobody."""
        await until(
            lambda: self.table().get(port, "") == text and (port in self.sink.ports) is bool(text),
            f"{self.name} has {text!r} on {port}: {self.table()}, {self.said[-3:]}",
        )


class Pair:
    """Balancers a and b. `made`: another one, or the same one again."""

    def __init__(self, member: Member, prefix: str, folder: Path, *tokens: Token) -> None:
        self.member, self.prefix, self.folder, self.tokens = member, prefix, folder, tokens
        self.a, self.b = self.made("a", NODE_A), self.made("b", NODE_B)

    def made(self, name: str, bind: str, **more: object) -> SharingControl:
        tokens = more.pop("tokens", self.tokens)
        return SharingControl(name, [self.member.url], self.prefix, self.folder / name, bind, *tokens, **more)

    async def __aenter__(self) -> Self:
        for name in ("a", "b", "c"):
            (self.folder / name).mkdir(exist_ok=True)
        for one in (self.a, self.b):
            await one.__aenter__()
            await one.connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in (self.a, self.b):
            await one.die()


async def refusal(call: object) -> Refused:
    with pytest.raises(Refused) as caught:
        await call  # type: ignore[misc]
    return caught.value
