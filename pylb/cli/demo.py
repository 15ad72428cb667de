"""`pylb demo`: shows pylb and a phone-home at work, on loopback.

Two echo servers play one app on two nodes (127.0.0.1 and 127.0.0.2, the same NodePort), the real phone-home moves the app
from node to node the way a rescheduled pod does (it announces a pause here and registers there), and clients connect all the
time. pylb and the phone-home are real processes; nothing listens beyond loopback and everything is gone afterwards.
"""

import asyncio
import json
import os
import secrets
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

NODES = {"A": "127.0.0.1", "B": "127.0.0.2"}
START_SECONDS = 10.0  # for pylb to listen and for a call to be in force
CLIENTS = 4  # connecting one after the other, each a few dozen times a second
PAUSE = 0.02  # seconds between two connections of a client
TAIL = 10  # lines of pylb's log that are shown when the demo fails


class DemoFailed(Exception):  # noqa: N818 - shown to the person in front, in one line
    """The demo failed; the text says why."""


class Demo:
    """A demo with `moves` moves, one every `every` seconds. `say` prints a line."""

    def __init__(self, *, moves: int, every: float, say: Callable[[str], None]) -> None:
        self._moves = moves
        self._every = every
        self._say = say
        self._served: Counter[str] = Counter()  # connections by node
        self._failed: list[str] = []
        self._webhook, self._admin, self._port, self._node_port = _free_ports(4)
        self._token = secrets.token_urlsafe(24)

    async def run(self) -> int:
        """0 if no connection failed, 1 otherwise. Raises DemoFailed."""
        with tempfile.TemporaryDirectory(prefix="pylb-demo-") as folder:
            log = Path(folder) / "log"
            failed: DemoFailed | None = None
            try:
                await self._show(Path(folder), log)
            except* (OSError, TimeoutError) as errors:
                said = log.read_text().splitlines()[-TAIL:] if log.exists() else []
                failed = DemoFailed("\n".join([*_reasons(errors), *said]))
            if failed is not None:  # raised here: Python before 3.11.4 puts what is raised above into another group
                raise failed
        return self._summary()

    async def _show(self, folder: Path, log: Path) -> None:
        async with AsyncExitStack() as stack:
            for node, ip in NODES.items():
                server = await asyncio.start_server(_echo(node), ip, self._node_port)
                stack.push_async_callback(_stop_server, server)
                self._say(f"node {node}: an echo server on {ip}:{self._node_port}")
            config = folder / "pylb.yaml"
            config.write_text(self._config(folder))
            process = await stack.enter_async_context(_process(log, "pylb", "run", "-c", str(config)))
            await _until(lambda: _connects(self._webhook), "pylb does not answer", process)
            self._say(f"pylb:   webhook on 127.0.0.1:{self._webhook}, nothing registered yet")
            await self._move_about(log)

    async def _move_about(self, log: Path) -> None:
        names = list(NODES)
        async with AsyncExitStack() as home:
            await home.enter_async_context(self._phone_home("A", log))
            await _until(lambda: self._routed_to("A"), "the first registration did not arrive")
            self._say(f"phone-home on node A: listen on {self._port}, send it to 127.0.0.1:{self._node_port}")
            self._say(f"{CLIENTS} clients connect all the time …")
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(self._client(stop))
                for move in range(self._moves):
                    await asyncio.sleep(self._every)
                    node = names[(move + 1) % len(names)]
                    await home.aclose()  # SIGTERM: it says goodbye
                    await home.enter_async_context(self._phone_home(node, log))
                    await _until(partial(self._routed_to, node), f"the move to node {node} did not arrive")
                    self._say(f"moved to node {node}   {self._so_far()}")
                await asyncio.sleep(self._every)
                stop.set()

    async def _client(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                async with asyncio.timeout(5):
                    node = await _exchange(self._port)
                self._served[node] += 1
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                self._failed.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(PAUSE)

    def _phone_home(self, node: str, log: Path) -> AbstractAsyncContextManager[Process]:
        env = {
            "PYLB_URL": f"http://127.0.0.1:{self._webhook}",
            "PYLB_TOKEN": self._token,
            "PYLB_NAME": "demo",
            "PYLB_INSTANCE": f"pod-on-{node.lower()}",
            "PYLB_FRONTENDS": f"{self._port}:{self._node_port}",
            "PYLB_ADDRESS": NODES[node],
        }
        return _process(log, "phonehome", env=env)

    async def _routed_to(self, node: str) -> bool:
        """Whether pylb has a fresh registration of that node."""
        body = await _get(self._admin, "/v1/registrations")
        return any(
            one["instance"] == f"pod-on-{node.lower()}" and one["state"] == "fresh"
            for one in json.loads(body or b'{"registrations": []}')["registrations"]
        )

    def _config(self, state: Path) -> str:
        return json.dumps(
            {
                "webhook": {"listen": f"127.0.0.1:{self._webhook}"},
                "admin": {"listen": f"127.0.0.1:{self._admin}"},
                "state_dir": str(state / "state"),
                "defaults": {"bind": "127.0.0.1"},
                "tokens": [
                    {
                        "name": "demo",
                        "secret": self._token,
                        "ports": [self._port],
                        "targets": ["127.0.0.0/8"],
                        "target_ports": [self._node_port],
                    }
                ],
            }
        )

    def _so_far(self) -> str:
        shares = ", ".join(f"node {node} served {self._served[node]}" for node in NODES)
        return f"{shares}, {len(self._failed)} failed"

    def _summary(self) -> int:
        for reason, times in Counter(self._failed).most_common(5):
            self._say(f"failed {times} times: {reason}")
        self._say(f"{sum(self._served.values()) + len(self._failed)} connections, {len(self._failed)} failed")
        return 1 if self._failed or not self._served else 0


def _echo(node: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line:
                writer.write(node.encode() + b" " + line)
                await writer.drain()
        except ConnectionError:
            pass  # pylb's probes connect and leave
        finally:
            writer.close()

    return answer


async def _exchange(port: int) -> str:
    """One connection through pylb; the name of the node that answered. Raises OSError or IncompleteReadError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        said = secrets.token_hex(16).encode() + b"\n"
        writer.write(said)
        answer = await reader.readuntil(b"\n")
        node, _, echoed = answer.partition(b" ")
        if echoed != said:
            raise OSError(f"sent {said!r}, got {echoed!r}")
        return node.decode()
    finally:
        writer.close()


async def _get(port: int, path: str) -> bytes | None:
    """The body of a GET on loopback, None while nobody answers."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return body if b" 200 " in head.partition(b"\r\n")[0] else None
    finally:
        writer.close()


async def _connects(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _until(met: Callable[[], Awaitable[bool]], otherwise: str, process: Process | None = None) -> None:
    """Raises TimeoutError with `otherwise`, ChildProcessError as soon as `process` has ended."""
    try:
        async with asyncio.timeout(START_SECONDS):
            while not await met():
                if process is not None and process.returncode is not None:
                    raise ChildProcessError("pylb ended, and said")
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TimeoutError(f"{otherwise} (waited {START_SECONDS:.0f} s)") from None


@asynccontextmanager
async def _process(log: Path, module: str, *args: str, env: dict[str, str] | None = None) -> AsyncIterator[Process]:
    """`python -m module`, its messages in `log`; ended by SIGTERM, by SIGKILL if that does not help."""
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *args,
            env=_clean(os.environ) | (env or {}),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=file,
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), START_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without variables for a phone-home or pylb that the user has exported."""
    foreign = ("WEBHOOK", "WEBHOOK_TOKEN", "NAME", "FRONTEND_PORT", "BACKEND_PORT", "SEND_PROXY", "REPEAT_INTERVAL")
    return {key: value for key, value in environ.items() if not key.startswith("PYLB_") and key not in foreign}


def _reasons(errors: BaseExceptionGroup[BaseException]) -> list[str]:
    """One line each, however deep a TaskGroup has wrapped them."""
    found = []
    for error in errors.exceptions:
        found += _reasons(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return found


async def _stop_server(server: asyncio.Server) -> None:
    server.close()


def _free_ports(count: int) -> list[int]:
    """Free loopback ports outside the ephemeral range, so that no outgoing connection takes them meanwhile."""
    found: list[int] = []
    while len(found) < count:
        port = 20000 + secrets.randbelow(10000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
