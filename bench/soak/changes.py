"""What is asked of pylb's webhook while it forwards: registrations, reloads, and what it must refuse."""

import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable

from bench.processes import Address
from bench.soak.peers import echo, greeted
from bench.soak.results import Totals
from bench.soak.setup import LOOPBACK, Setup
from bench.soak.unit import Unit

REMEMBERED = 1000  # events that control keeps, and more than it keeps of refused calls
CALLS = 5  # at most, of what a dying main may have left unanswered
Excuse = Callable[[int, float], bool]  # of a client's port, for a session begun then (monotonic)


class Changes:
    """Makes calls of phone-homes, reloads, and invalid calls. `steady` is always registered, so clients find a server."""

    def __init__(self, setup: Setup, unit: Unit, totals: Totals, excuse: Excuse, rng: random.Random) -> None:
        self._setup, self._unit, self._totals, self._excuse, self._rng = setup, unit, totals, excuse, rng
        self._retries = 3

    async def register(self, instance: str, target: Address, *, state: str = "ready") -> None:
        frontends = [{"port": one.port, "target_port": target.port} for one in self._setup.frontends]
        body = {"frontends": frontends, "address": LOOPBACK, "ttl": 3600, "state": state}
        await self._call("PUT", f"/v1/registrations/soak/{instance}", body, {200, 201})

    async def fill_journal(self) -> None:
        """As many events as control remembers. They are 0.6 MiB, which would else come during the first 15 minutes."""
        setup = self._setup
        for number in range(REMEMBERED):
            await self.register("b", setup.servers[number % 2])
        for _ in range(REMEMBERED // 10):
            await self._call("PUT", "/v1/registrations/soak/x", {"frontends": []}, {422})
        await self._call("DELETE", "/v1/registrations/soak/b", None, {200})

    async def one(self) -> None:
        """Change the table, or try to."""
        setup, rng = self._setup, self._rng
        what = rng.choice(["move", "come", "go", "drain", "refuse", "beat", "extra", "reload", "rubbish", "stranger"])
        self._totals.calls[what] += 1
        other = rng.choice(["b", "c"])
        match what:
            case "move" | "come":
                await self.register(other, rng.choice(setup.servers))
            case "drain":
                await self.register(other, rng.choice(setup.servers), state="draining")
            case "go":
                await self._call("DELETE", f"/v1/registrations/soak/{other}", None, {200})
            case "refuse":
                await self.register(other, setup.refused)
            case "beat":
                await self.register("steady", setup.servers[0])
            case "extra":
                await self._extra()
            case "reload":
                self._retries = 7 - self._retries  # 3 and 4
                (setup.folder / "pylb.yaml").write_text(setup.with_retries(self._retries))
                if self._unit.is_ready:  # else it is about to read it anyway
                    os.kill(self._unit.pid, signal.SIGHUP)
            case "rubbish":
                await asyncio.to_thread(_shout, setup.webhook, rng.randbytes(rng.randrange(1, 3000)))
            case "stranger":
                await self._call("PUT", "/v1/registrations/soak/x", {"frontends": []}, {401, 429}, token="x" * 40)

    async def _extra(self) -> None:
        """Open a port, use it, and close it again."""
        listen = self._rng.choice(self._setup.extra)
        name = f"/v1/registrations/extra-{listen.port}/a"
        target = self._rng.choice(self._setup.servers).port
        body = {"frontends": [{"port": listen.port, "target_port": target}], "address": LOOPBACK, "ttl": 60}
        await self._call("PUT", name, body, {200, 201})
        began = time.monotonic()
        with socket.socket() as sock:
            try:
                async with asyncio.timeout(10):
                    await greeted(sock, listen)
                    self._totals.connections += 1
                    await echo(sock)
            except (OSError, EOFError, TimeoutError) as error:
                if not self._excuse(sock.getsockname()[1], began):
                    self._totals.complain(f"port {listen.port} was registered and does not serve: {error!r}")
        await self._call("DELETE", name, None, {200})

    async def _call(self, method: str, path: str, body: object, good: set[int], *, token: str | None = None) -> None:
        status, text = 0, ""
        for _ in range(CALLS if self._setup.workers else 1):
            status, text = await asyncio.to_thread(request, self._setup.webhook, method, path, body, token or self._setup.token)
            if status not in {0, 503}:
                break
            await asyncio.sleep(0.5)  # main died under it, or was followed by another: a phone-home calls again
        if status not in good:
            self._totals.complain(f"{method} {path} was answered {status}: {text}")


def request(server: Address, method: str, path: str, body: object, token: str) -> tuple[int, str]:
    """One call on a connection of its own → status and body; (0, why) if there was no answer."""
    connection = http.client.HTTPConnection(*server, timeout=10)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)
    finally:
        connection.close()


def _shout(server: Address, noise: bytes) -> None:
    with contextlib.suppress(OSError), socket.create_connection(server, timeout=5) as sock:
        sock.sendall(noise)
