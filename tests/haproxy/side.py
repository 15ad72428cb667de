"""Servers and clients inside a network namespace: `python -m tests.haproxy.side`.

One command a line on stdin, one answer on stdout.

`{"serve": {"10.1.0.1:80": "app"}}` says what listens there from now on; "closed" is nothing. `{"several": [{"ask": [PLACE, …],
"clients": 34, "proxy": false}, …]}` sends that many clients of each of three addresses to each place; the answer is for each
`{place: {source: {who answered: how many}}}`. At `203.0.113.1:443/git.example.net` clients begin with a TLS hello that asks for
that name.
"""

import asyncio
import json
import socket
import sys
from collections import Counter
from typing import Any

from tests.support.hellos import asking_for

SOURCES = ("198.51.100.1", "198.51.100.2", "198.51.100.3")
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
PATIENCE = 15  # seconds: HAProxy tries a dead server three more times, a second apart
REFUSED = "refused"


def answers(kind: str) -> dict[bytes, bytes]:
    """What is answered to lines that hold these words."""
    role, bye = (b"slave" if kind == "replica" else b"master"), (b"221 bye\r\n" if kind == "smtp" else b"+OK\r\n")
    greeting = b"250 hello\r\n"
    return {
        b"PING": b"+PONG\r\n",
        b"info replication": b"role:" + role + b"\r\n",
        b"QUIT": bye,
        b"HELO": greeting,
        b"EHLO": greeting,
    }


def split(place: str) -> tuple[str, int]:
    host, _, port = place.rpartition(":")
    return host.strip("[]"), int(port)


class Servers:
    def __init__(self) -> None:
        self._open: dict[str, asyncio.Server] = {}
        self._kinds: dict[str, str] = {}

    async def serve(self, wanted: dict[str, str]) -> None:
        for place, kind in wanted.items():
            self._kinds[place] = kind
            if kind == "closed" and place in self._open:
                self._open.pop(place).close()
            elif kind != "closed" and place not in self._open:
                host, port = split(place)
                self._open[place] = await asyncio.start_server(self._handler(place), host, port, backlog=1000)

    def _handler(self, place: str) -> Any:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self._talk(place, reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass  # the client is gone
            finally:
                writer.close()

        return handle

    async def _talk(self, place: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, header = self._kinds[place], ""
        if kind == "smtp":
            writer.write(b"220 here\r\n")
        elif kind == "sick-smtp":
            writer.write(b"421 not now\r\n")
        while data := await reader.read(4096):
            if data.startswith(SIGNATURE):
                length = int.from_bytes(data[14:16], "big")
                header = "v2 " + (socket.inet_ntoa(data[16:20]) if data[12] & 1 and data[13] >> 4 == 1 else "local")
                data = data[16 + length :]
            elif data.startswith(b"PROXY "):
                line, _, data = data.partition(b"\r\n")
                header = "v1 " + line.split()[2].decode() if b"TCP" in line else "v1"
            if b"who\n" in data:
                writer.write(f"I am {place} {header}\n".encode())
            elif b" HTTP/1." in data:
                status, _, body = (kind.removeprefix("http-") if kind.startswith("http-") else "200").partition("/")
                writer.write(f"HTTP/1.0 {status} OK\r\n\r\n{body}".encode())
                return
            elif data.startswith(b"\0\0\0") and kind == "pgsql":
                writer.write(b"R\0\0\0\x08\0\0\0\0")
            elif data.startswith(b"\0\0\0"):
                writer.write(b"E\0\0\0\x09SFATAL\0\0")
            else:
                writer.write(b"".join(answer for word, answer in answers(kind).items() if word in data))
            await writer.drain()


async def ask(place: str, source: str, *, proxy: bool) -> str:
    listener, _, name = place.partition("/")
    host, port = split(listener)
    local = None if ":" in host else (source, 0)
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(host, port, local_addr=local)
            try:
                header = f"PROXY TCP4 {source} {host} 1000 {port}\r\n" if proxy else ""
                writer.write(header.encode() + (asking_for(name) if name else b"") + b"who\n")
                async for line in reader:
                    if line.startswith(b"I am "):
                        return line[5:].strip().decode()
            finally:
                writer.close()
    except TimeoutError:
        return "timeout"
    except OSError:
        return REFUSED
    return REFUSED


async def ask_all(command: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    async def one(place: str, source: str) -> Counter[str]:
        asked = (ask(place, source, proxy=command["proxy"]) for _ in range(command["clients"]))
        return Counter(await asyncio.gather(*asked))

    found: dict[str, dict[str, dict[str, int]]] = {}
    for place in command["ask"]:
        sources = SOURCES if "[" not in place else SOURCES[:1]
        answers = await asyncio.gather(*(one(place, source) for source in sources))
        found[place] = {source: dict(answer) for source, answer in zip(sources, answers, strict=True)}
    return found


async def main() -> None:
    servers, loop = Servers(), asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if "serve" in command:
            await servers.serve(command["serve"])
            answer: object = "ok"
        else:
            several = await asyncio.gather(*(ask_all(one) for one in command["several"]))
            answer = several
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main())
