"""The admin socket and its client."""

import asyncio
import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pylb.api.verbs import MOST_IMPORTED
from pylb.core.address import Address
from pylb.core.errors import Code, Refused
from pylb.core.policy import ProxyProtocol
from pylb.haproxy.legacy_import import LegacyServer
from pylb.web.control_client import call
from pylb.web.control_socket import ITEMS, LINE_BYTES, MOST_VALUES, ControlSocket, pieces
from pylb.web.unix import UnixServer, write
from tests.fuzz.sockets import control


async def echo(request: Mapping[str, Any]) -> dict[str, Any]:
    return {"said": request.get("what")}


async def refuse(_request: Mapping[str, Any]) -> dict[str, Any]:
    raise Refused(Code.NOT_FOUND, "no port 7 here", "look at `pylb routes`")


async def fail(_request: Mapping[str, Any]) -> dict[str, Any]:
    raise KeyError("secret")


VERBS = {"echo": echo, "refuse": refuse, "fail": fail}


async def conversation(path: Path, *requests: Mapping[str, Any], deadline: float = 5.0) -> list[dict[str, Any]]:
    control = ControlSocket(path, VERBS, deadline=deadline)
    await control.start()
    try:
        return [await asyncio.to_thread(call, path, request, 5.0) for request in requests]
    finally:
        await control.stop()


async def test_a_long_answer_is_written_in_pieces_and_each_of_its_rows_is_freed_once_it_is_written() -> None:
    """`pylb routes` of ten thousand servers: its JSON in one step would hold the loop, and so would the end of the rows."""
    rows = [{"port": number} for number in range(5 * ITEMS + 1)]
    answer = {"ok": True, "rows": rows.copy(), "none": [], "left": 7}

    found = await _all(answer)
    assert json.loads(b"".join(found)) == {"ok": True, "rows": rows, "none": [], "left": 7}
    assert [piece.count(b"port") for piece in found] == [ITEMS] * 5 + [1]
    assert set(answer["rows"]) == {None}  # type: ignore[arg-type]
    assert len(await _all({"ok": True, "text": "one"})) == 1


async def _all(answer: Mapping[str, Any]) -> list[bytes]:
    return [piece async for piece in pieces(answer)]


async def test_a_verb_is_answered_and_the_file_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    modes = []

    async def look(_request: Mapping[str, Any]) -> dict[str, Any]:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        return {}

    control = ControlSocket(path, VERBS | {"look": look})
    await control.start()
    assert await asyncio.to_thread(call, path, {"verb": "echo", "what": "443"}) == {"ok": True, "said": "443"}
    assert await asyncio.to_thread(call, path, {"verb": "look"}) == {"ok": True}
    await control.stop()
    assert modes == [0o600]
    assert list(tmp_path.iterdir()) == []


async def test_refusals_faults_and_unknown_verbs_have_one_shape(tmp_path: Path) -> None:
    refused, failed, unknown = await conversation(
        tmp_path / "control.sock", {"verb": "refuse"}, {"verb": "fail"}, {"verb": ["no"]}
    )
    assert refused == {"ok": False, "error": "not_found", "detail": "no port 7 here", "hint": "look at `pylb routes`"}
    assert failed == {"ok": False, "error": "internal", "detail": "pylb failed to answer", "hint": "its log says why"}
    assert unknown == {
        "ok": False,
        "error": "not_found",
        "detail": "unknown verb",
        "hint": "known: echo, refuse, fail",
    }


async def test_a_directory_too_deep_for_a_unix_address_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    assert await conversation(deep / "control.sock", {"verb": "echo"}) == [{"ok": True, "said": None}]


async def test_the_file_of_a_killed_process_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "control.sock"
    dead = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # the path may be longer than a unix address
    dead.bind("control.sock")
    dead.listen()
    dead.close()
    assert path.exists()
    assert await conversation(path, {"verb": "echo", "what": 1}) == [{"ok": True, "said": 1}]


async def test_a_second_pylb_on_the_same_state_is_an_error_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    first = ControlSocket(path, VERBS)
    await first.start()
    with pytest.raises(FileExistsError, match="another pylb is running"):
        await ControlSocket(path, VERBS).start()
    assert (await asyncio.to_thread(call, path, {"verb": "echo"}))["ok"] is True
    await first.stop()


def test_without_a_running_pylb_the_client_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        call(tmp_path / "control.sock", {"verb": "echo"})


async def test_a_line_that_is_no_json_too_long_or_never_ends_is_answered_or_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "control.sock"

    async def send(data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection("control.sock")
        writer.write(data)
        try:
            return await reader.readline()
        finally:
            writer.close()

    monkeypatch.chdir(tmp_path)
    control = ControlSocket(path, VERBS, deadline=0.3)
    await control.start()
    assert b'"error":"invalid_json"' in await send(b"[1\n")
    assert b'"error":"not_found"' in await send(b"[1]\n")
    assert b'"error":"body_too_large"' in await send(b"x" * (LINE_BYTES + 100_000) + b"\n")
    assert await send(b'{"verb":') == b""
    await control.stop()


async def test_the_largest_import_fits_into_a_request_and_more_values_do_not(tmp_path: Path) -> None:
    one = LegacyServer(65535, Address("2001:db8:1111:2222:3333:4444:5555:6666", 65535), "n" * 63, ProxyProtocol.V2).as_call()

    async def count(request: Mapping[str, Any]) -> dict[str, Any]:
        return {"items": len(request["items"])}

    control = ControlSocket(tmp_path / "control.sock", {"import": count}, deadline=30.0)
    await control.start()
    try:
        found = []
        for items in ([one] * MOST_IMPORTED, [0] * (MOST_VALUES + 1)):
            request = {"verb": "import", "token": "old", "items": items}
            answer = await asyncio.to_thread(call, tmp_path / "control.sock", request, 30.0)
            found.append((answer["ok"], answer.get("items"), answer.get("error")))
        assert found == [(True, MOST_IMPORTED, None), (False, None, "body_too_large")]
    finally:
        await control.stop()


@pytest.mark.root
async def test_another_user_is_refused_even_if_the_file_lets_it_in(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    client = (
        "import os, socket, sys\n"
        "os.chdir(sys.argv[1]); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect('control.sock')\n"
        's.sendall(b\'{"verb":"echo"}\\n\'); print(s.recv(9999).decode())'
    )

    def ask_as_nobody() -> bytes:
        path.chmod(0o666)
        tmp_path.chmod(0o711)
        arguments = [sys.executable, "-c", client, os.fspath(tmp_path)]
        return subprocess.run(arguments, stdout=subprocess.PIPE, timeout=20, check=True).stdout

    control = ControlSocket(path, VERBS)
    await control.start()
    try:
        assert b'"error":"unauthorized"' in await asyncio.to_thread(ask_as_nobody)
    finally:
        await control.stop()


@pytest.mark.parametrize(
    "line",
    [
        b'{"verb":"plan","path":"/etc/\\u0000","text":""}',
        b'{"verb":"plan","path":"/etc/pylb.yaml","text":"\\ud800"}',
        b'{"verb":"plan","path":"/etc/pylb.yaml","text":[]}',
        b'{"verb":"plan","token":"t","name":"a","instance":"b","address":"192.0.2.7","body":"\\ud800"}',
        b'{"verb":"import","token":"t","items":[' + b"[" * 900 + b"]" * 900 + b"]}",
    ],
)
def test_a_request_that_means_nothing_is_refused_and_no_fault(line: bytes) -> None:
    answer: Any = control(line)
    assert answer["error"].startswith("invalid") or answer["error"] == "not_found"


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_disk_that_does_not_remove_the_file_stops_neither_the_loop_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    path, answers = tmp_path / "control.sock", threading.Event()

    def unlink(_path: Path) -> None:
        if hangs:
            answers.wait(30)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pylb.web.unix.UNLINK", 0.05)
    control = ControlSocket(path, VERBS)
    await control.start()
    try:
        with monkeypatch.context() as disk:
            disk.setattr(Path, "unlink", unlink)
            await control.leave()
        await control.start()  # in its place
        assert await asyncio.to_thread(call, path, {"verb": "echo", "what": "this"}, 5.0) == {"ok": True, "said": "this"}
    finally:
        answers.set()
        await control.stop()
    assert not path.exists()


async def test_a_disk_that_answers_late_does_not_remove_the_socket_that_is_there_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an upgrade that failed: its old pylb serves again, at the same path."""
    monkeypatch.setattr("pylb.web.unix.UNLINK", 0.05)
    path, late, over = tmp_path / "control.sock", threading.Event(), threading.Event()
    unlink = UnixServer._unlink

    def slow(server: UnixServer, *file: int) -> None:
        late.wait(20)
        unlink(server, *file)
        over.set()

    control = ControlSocket(path, VERBS)
    await control.start()
    monkeypatch.setattr(UnixServer, "_unlink", slow)
    try:
        await control.leave()
        await control.start()
        late.set()
        assert await asyncio.to_thread(over.wait, 20)
        assert path.exists()
    finally:
        late.set()
        await control.stop()


async def test_a_client_that_leaves_in_the_middle_of_a_long_answer_is_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection may be closed between two pieces, when uvloop refuses to write with a RuntimeError."""
    path = tmp_path / "control.sock"
    writers: list[asyncio.StreamWriter] = []
    ended = asyncio.Event()

    async def converse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await write(writer, b"the first piece")
            writer.transport.abort()
            await asyncio.sleep(0)  # the transport's end is a callback
            await write(writer, b"the second")
        finally:
            ended.set()

    server = UnixServer(path, converse, 100)
    await server.start()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, str(path))
        await ended.wait()
    await server.stop()
    assert writers[0].is_closing()
    assert not caplog.records
