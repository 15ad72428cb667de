"""HAProxy's runtime socket: `{state_dir}/haproxy.sock`, for hatop, socat and other tools for HAProxy. It speaks text.

A client sends one line of commands, separated by `;`, and the connection is closed after the answers; after `prompt`, it may
send more lines until `quit`. An empty line ends each answer. The file has mode 0600, and the kernel says who the client is.
"""

import asyncio
import logging
import re
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from pylb.core.errors import Refused
from pylb.haproxy.commands import Commands, Text
from pylb.web.unix import UnixServer, check_peer, write

log = logging.getLogger(__name__)

LINE_BYTES = 16384  # HAProxy's tune.bufsize
IDLE = 10.0  # seconds without a command, like HAProxy's `stats timeout`; `set timeout cli` changes it for a connection
LONGEST_IDLE = 86400.0
DEADLINE = 10.0  # seconds in which a client must take a piece of an answer
PROMPT = "> "

# Possessive, with runs of plain characters in one step: otherwise the matcher would need memory for each character.
_COMMAND = re.compile(r"(?:\\.|[^;\\]++)++")
_WORD = re.compile(r"(?:\\.|[^\s\\]++)++")


class RuntimeSocket:
    """Serves `commands` on `path`."""

    def __init__(self, path: Path, commands: Commands, *, idle: float = IDLE) -> None:
        self._commands = commands
        self._idle = idle
        server = UnixServer(path, self._converse, LINE_BYTES)
        self.start, self.leave, self.stop = server.start, server.leave, server.stop

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(reader, writer, self._idle)
        try:
            lines = await connection.lines()
            check_peer(writer)  # only after reading the line: closing a socket with unread input would destroy the answer
            while lines:
                for line in lines:
                    if not await self._execute(connection, line):
                        return
                lines = await connection.lines() if connection.interactive else []
        except Refused as refused:
            await connection.send(f"{refused.detail}\n")

    async def _execute(self, connection: "_Connection", line: str) -> bool:
        """Carry out all commands of a line. False: the connection ends now."""
        if connection.interactive and not line.strip():
            await connection.send("")
        for words in split(line):
            if words[:1] == ["quit"]:
                return False
            if words[:1] == ["prompt"]:
                connection.interactive = not connection.interactive
            if words[:3] == ["set", "timeout", "cli"]:
                await connection.send(connection.set_idle(words[3:]))
            else:
                await connection.send(await self._answer(words))
        if connection.interactive:
            await connection.send(PROMPT, end="")
        return True

    async def _answer(self, words: Sequence[str]) -> Text:
        try:
            return await self._commands.answer(words)
        except Exception:
            # The task boundary of a command: the client gets an answer and the server goes on.
            log.exception("runtime socket: %s failed", " ".join(words)[:80])
            return "pylb failed to answer; its log says why.\n"


class _Connection:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle: float) -> None:
        self._reader = reader
        self._writer = writer
        self._idle = idle
        self._rest = ""
        self.interactive = False

    async def lines(self) -> list[str]:
        """The lines that have arrived, at least one; [] at the end. Raises TimeoutError."""
        while True:
            async with asyncio.timeout(self._idle):
                data = await self._reader.read(LINE_BYTES)
            *lines, self._rest = (self._rest + data.decode("utf-8", "replace")).split("\n")
            if not data:
                rest, self._rest = self._rest, ""
                return [rest] if rest else []
            if lines:
                return lines
            if len(self._rest) > LINE_BYTES:
                return []

    def set_idle(self, args: Sequence[str]) -> str:
        if not args or not args[0].isdecimal():
            return "Expects an integer value.\n"
        self._idle = min(max(1.0, float(args[0])), LONGEST_IDLE)
        return ""

    async def send(self, text: Text, end: str = "\n") -> None:
        if isinstance(text, str):
            await self._write(text + end)
            return
        async with aclosing(text) as pieces:
            async for piece in pieces:
                await self._write(piece)
        await self._write(end)

    async def _write(self, text: str) -> None:
        async with asyncio.timeout(DEADLINE):
            await write(self._writer, text.encode())


def split(line: str) -> list[list[str]]:
    """The commands of a line, each as its words. A backslash makes the next character an ordinary one."""
    commands = [_WORD.findall(command) for command in _COMMAND.findall(line)]
    return [[re.sub(r"\\(.)", r"\1", word) for word in words] for words in commands if words]
