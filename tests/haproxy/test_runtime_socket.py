"""The conversation on HAProxy's runtime socket, with commands that only repeat what they are given."""

import asyncio
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from pylb.core.address import Address, Listen
from pylb.core.session import SessionView
from pylb.haproxy.commands import Commands, Text
from pylb.haproxy.runtime_socket import LINE_BYTES, RuntimeSocket, split
from pylb.web.sessions import named
from tests.fuzz.measures import memory
from tests.support.peers import need_root

T = TypeVar("T")


class Repeats(Commands):
    """In place of the table of commands: what is under test here is the conversation."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    async def answer(self, words: Sequence[str]) -> Text:
        self.asked.append(list(words))
        if words[:1] == ["fail"]:
            raise KeyError("secret")
        if words[:1] == ["long"]:
            return pieces()
        return "".join(f"{word}\n" for word in words if words[:1] != ["prompt"])


async def pieces() -> AsyncIterator[str]:
    for number in range(1000):
        yield f"{number}" + "." * 1000 + "\n"


async def talk(path: Path, data: bytes, *, end: bool = True, idle: float = 10.0) -> str:
    """What the socket says until it closes."""
    served = RuntimeSocket(path, Repeats(), idle=idle)
    await served.start()
    try:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(data)
        if end:
            writer.write_eof()
        async with asyncio.timeout(8):
            found = await reader.read()
        writer.close()
        return found.decode()
    finally:
        await served.stop()


async def asked(path: Path, ask: Callable[[], T]) -> T:
    """What `ask` finds, from a thread of its own."""
    served = RuntimeSocket(path, Repeats())
    await served.start()
    try:
        return await asyncio.to_thread(ask)
    finally:
        await served.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "haproxy.sock"


async def test_an_answer_ends_with_an_empty_line_and_the_connection_with_the_answer(path: Path) -> None:
    assert await talk(path, b"one two\n", end=False) == "one\ntwo\n\n"


async def test_commands_of_one_line_are_answered_one_after_the_other(path: Path) -> None:
    assert await talk(path, b"one ; two;;three\n") == "one\n\ntwo\n\nthree\n\n"


async def test_with_a_prompt_lines_are_answered_until_quit(path: Path) -> None:
    assert await talk(path, b"prompt\none;two\n\nset timeout cli 60\nset timeout cli x\nquit\nthree\n", end=False) == (
        "\n> one\n\ntwo\n\n> \n> \n> Expects an integer value.\n\n> "
    )
    assert await talk(path, b"prompt;one\nprompt\ntwo\n") == "\none\n\n> \ntwo\n\n"


async def test_a_silent_client_is_left_and_one_that_sends_no_line_too(path: Path) -> None:
    assert await talk(path, b"", end=False, idle=0.1) == ""
    assert await talk(path, b"prompt\n", end=False, idle=0.1) == "\n> "
    assert await talk(path, b"x" * (LINE_BYTES + 100), end=False) == ""


async def test_a_fault_is_answered_and_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert await talk(path, b"fail;one\n") == "pylb failed to answer; its log says why.\n\none\n\n"
    assert "runtime socket: fail failed" in caplog.text


async def test_a_long_answer_comes_in_pieces(path: Path) -> None:
    lines = (await talk(path, b"long\n")).splitlines()
    assert (len(lines), lines[0][:2], lines[-2][:4], lines[-1]) == (1001, "0.", "999.", "")


async def test_another_user_is_refused_even_if_the_file_lets_it_in(path: Path, tmp_path: Path) -> None:
    need_root()
    client = (
        "import os, socket, sys\n"
        "os.chdir(sys.argv[1]); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect('haproxy.sock')\n"
        "s.sendall(b'one\\n'); print(s.recv(9999).decode())"
    )

    def ask_as_nobody() -> str:
        path.chmod(0o666)
        tmp_path.chmod(0o711)
        return subprocess.run(
            [sys.executable, "-c", client, tmp_path], capture_output=True, timeout=20, check=True, text=True
        ).stdout

    assert await asked(path, ask_as_nobody) == "only root and pylb's own user may do this\n\n\n"


async def test_the_file_is_private_and_gone_at_the_end(path: Path) -> None:
    assert await asked(path, lambda: stat.S_IMODE(path.stat().st_mode)) == 0o600
    assert not path.exists()


def test_a_backslash_takes_the_next_character_as_it_is() -> None:
    assert split(r"set server a\ b/c\;d state\\x ; show  stat") == [["set", "server", "a b/c;d", "state\\x"], ["show", "stat"]]
    assert split(" ;; ") == []


def test_a_long_command_takes_no_memory_for_each_of_its_characters() -> None:
    assert memory(split, "x" * LINE_BYTES) < 20 * LINE_BYTES


@pytest.mark.parametrize("client", ["192.0.2.7", "2001:db8::7"])
def test_a_session_is_named_by_its_id_or_by_its_client(client: str) -> None:
    view = SessionView(client, 40123, "web", Listen("tcp", "*", 443), "a", None, "relaying", 1.0, 0, 0, "0x1a2b")
    for text in ("0x1a2b", "0x1A2B", str(Address(client, 40123))):
        assert named(text, [view]) == [view]
    assert named("0x12", [view]) == []
    for text in ("0xzz", "7", ""):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it is, it is no session
            named(text, [view])


async def test_it_can_be_asked_with_a_plain_socket(path: Path) -> None:
    """As socat does, which shuts its side down first."""

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(path))
            sock.sendall(b"one\n")
            sock.shutdown(socket.SHUT_WR)
            return sock.recv(100)

    assert await asked(path, ask) == b"one\n\n"
