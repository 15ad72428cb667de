"""The certificate of a TLS listener, met by real handshakes."""

import asyncio
import os
import pty
import socket
import ssl
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from pylb.web.listener import HttpLimits
from pylb.web.tls import load_pair, next_pin, pin, repaired, self_signed, switch
from pylb.web.types import Answer, Call, text_answer
from tests.web.loopback import ask, read_reply, serving, until


async def hello(_call: Call) -> Answer:
    return text_answer(200, "hello")


def _client(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    # What Python 3.13 turns on by default, so that a pinned certificate passes there too.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


async def test_a_client_that_pins_the_certificate_is_served(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path / "tls", ["lb.example.net", "127.0.0.1", "localhost"])
    async with serving(hello, tls=certificate) as server:
        reply = await ask(server.port, "GET", "/", tls=_client(certificate.path))
        assert reply.body == b"hello"
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(server.port, "GET", "/", tls=ssl.create_default_context())
    ten_years = 10 * 365 * 86400
    assert certificate.expires_at == pytest.approx(time.time() + ten_years, abs=3600)


def test_the_pair_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first = self_signed(tmp_path / "tls", ["localhost"]).path.read_bytes()
    again = self_signed(tmp_path / "tls", ["other.example.net"])
    assert again.path.read_bytes() == first
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()}
    assert modes == {"cert.pem": 0o600, "key.pem": 0o600}


def test_a_certificate_without_its_key_is_an_error_and_is_not_replaced(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, ["localhost"])
    (tmp_path / "key.pem").unlink()
    with pytest.raises(FileNotFoundError, match=r"key\.pem is missing"):
        self_signed(tmp_path, ["localhost"])
    assert certificate.path.exists()


@pytest.mark.parametrize(
    ("spoilt", "pins_hold"), [("cert.pem", True), ("key.pem", False), ("both", False), ("key.pem missing", False)]
)
def test_a_start_makes_garbage_anew_and_saves_the_key_where_it_can(tmp_path: Path, spoilt: str, pins_hold: bool) -> None:
    folder = tmp_path / "tls"
    assert repaired(folder, ["localhost"])[1] == ""
    before = pin(folder / "cert.pem")
    for name in ("cert.pem", "key.pem") if spoilt == "both" else (spoilt.split(maxsplit=1)[0],):
        (folder / name).unlink()
        if "missing" not in spoilt:
            (folder / name).write_bytes(b"garbage")
    certificate, complaint = repaired(folder, ["localhost"])
    assert (pin(certificate.path) == before) == pins_hold
    assert ("every pin still matches" in complaint) == pins_hold
    assert ("need a new join string" in complaint) != pins_hold
    assert list(folder.glob("*.bad-1"))
    assert repaired(folder, ["localhost"])[1] == ""


def test_a_key_left_alone_by_a_crash_is_made_anew(tmp_path: Path) -> None:
    tmp_path.joinpath("key.pem").write_bytes(b"half a k")
    assert self_signed(tmp_path, []).expires_at > time.time()


def test_a_key_without_its_certificate_is_given_one(tmp_path: Path) -> None:
    """As after a restore of the key alone; and as a switch that was cut short leaves it, with the old certificate."""
    first = pin(self_signed(tmp_path, ["localhost"]).path)
    (tmp_path / "cert.pem").unlink()
    assert pin(self_signed(tmp_path, ["localhost"]).path) == first
    following = next_pin(tmp_path)
    (tmp_path / "next-key.pem").rename(tmp_path / "key.pem")
    assert pin(tmp_path / "cert.pem") == first
    assert pin(self_signed(tmp_path, ["localhost"]).path) == following


def test_the_next_key_stays_the_same_until_it_is_switched_to(tmp_path: Path) -> None:
    first = pin(self_signed(tmp_path, ["localhost"]).path)
    following = next_pin(tmp_path)
    assert following == next_pin(tmp_path) != first
    assert stat.S_IMODE((tmp_path / "next-key.pem").stat().st_mode) == 0o600
    assert switch(tmp_path, ["localhost"]) == following == pin(self_signed(tmp_path, ["localhost"]).path)
    with pytest.raises(FileNotFoundError):
        switch(tmp_path, ["localhost"])
    assert next_pin(tmp_path) != following


async def test_a_reload_serves_the_new_certificate_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    served = self_signed(tmp_path / "a", ["localhost"])
    renewed = self_signed(tmp_path / "b", ["localhost", "127.0.0.1"])
    async with serving(hello, tls=served) as server:
        key = tmp_path / "a" / "key.pem"
        old_key = key.read_bytes()
        key.write_bytes((tmp_path / "b" / "key.pem").read_bytes())
        with pytest.raises(ssl.SSLError):
            served.reload()
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            await ask(server.port, "GET", "/", tls=_client(served.path))
        assert old_key != key.read_bytes()
        served.path.write_bytes(renewed.path.read_bytes())
        served.reload()
        assert (await ask(server.port, "GET", "/", tls=_client(renewed.path))).body == b"hello"


async def test_a_client_that_stops_in_its_handshake_is_cut_at_the_deadline_and_others_are_served(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, ["127.0.0.1"])
    limits = HttpLimits(deadline=0.5)
    async with serving(hello, tls=certificate, limits=limits) as server:
        silent = socket.create_connection(("127.0.0.1", server.port))
        begun = socket.create_connection(("127.0.0.1", server.port))
        begun.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")  # the start of a ClientHello
        start = time.monotonic()
        assert (await ask(server.port, "GET", "/", tls=_client(certificate.path))).body == b"hello"
        await until(lambda: server.connections == 0)
        assert 0.3 < time.monotonic() - start < 2
        for sock in (silent, begun):
            sock.settimeout(2)
            assert await asyncio.to_thread(_is_over, sock)
            sock.close()


async def test_plain_http_on_a_tls_port_is_answered_in_plain_text_and_leaves_no_word_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = self_signed(tmp_path, ["127.0.0.1"])
    async with serving(hello, tls=certificate) as server:
        for body in (None, b"x" * 1_000_000):
            reply = await ask(server.port, "PUT", "/", body=body)
            assert (reply.status, reply.body) == (400, b"this port speaks TLS: use https://\n")
        await until(lambda: server.connections == 0)
    assert caplog.records == []


async def test_plain_http_without_an_end_on_a_tls_port_is_cut_within_a_second(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, ["127.0.0.1"])
    async with serving(hello, tls=certificate) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\n")
        assert (await read_reply(reader)).status == 400
        await until(lambda: server.connections == 0, seconds=4)  # with the writer open all the time
        writer.close()


def _is_over(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


LISTENER = """
from pylb.web.tls import Certificate
read = Certificate
"""
CLIENT_OF_ETCD = """
from pylb.app.cluster import _tls
from pylb.config.cluster import Etcd
def read(certificate, key):
    _tls(Etcd.model_construct(endpoints=("https://127.0.0.1:2379",), ca=None, certificate=certificate, key=key))
"""


@pytest.mark.parametrize("reads", [LISTENER, CLIENT_OF_ETCD], ids=["of a listener", "for etcd"])
def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_pass_phrase(tmp_path: Path, reads: str) -> None:
    """In a process with a terminal, where OpenSSL would ask (and hold the loop until somebody answers)."""
    certificate = self_signed(tmp_path, ["127.0.0.1"])
    key = serialization.load_pem_private_key(certificate.key.read_bytes(), None)
    sealed = serialization.BestAvailableEncryption(b"secret")
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed)
    code = f"""
from pathlib import Path
{reads}
try:
    read(Path({str(certificate.path)!r}), Path({str(certificate.key)!r}))
except ValueError as error:
    print(error)
"""
    certificate.key.write_bytes(text)
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=theirs,
            stderr=theirs,
            stdout=subprocess.PIPE,
            text=True,
            timeout=20,
            check=False,
            start_new_session=True,
        )
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.stdout.startswith("the key is encrypted")


def test_a_pipe_in_place_of_a_key_is_not_waited_for(tmp_path: Path) -> None:
    certificate = self_signed(tmp_path, ["127.0.0.1"])
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    context = ssl.create_default_context()
    for pair in ((pipe, certificate.key), (certificate.path, pipe)):
        with pytest.raises(ValueError, match="not a regular file"):
            load_pair(context, *pair)
