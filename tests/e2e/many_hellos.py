"""200 ClientHellos: of real clients, odd ones made on purpose, and good ones with bits turned over."""

import os
import random
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.hellos import GREASE, asking_for, hello, records, server_name, vector
from tests.support.peers import need

NAME = b"git.example.net"

# ---------------------------------------------------------------- hellos of real clients


def first_bytes(folder: Path, *argv: str) -> bytes:
    """What a program sends first to 127.0.0.1; {port} in its arguments is where we listen."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        port = str(listener.getsockname()[1])
        command = [one.replace("{port}", port) for one in argv]
        environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)}
        silent = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=silent, stderr=silent, env=environ) as client:
            try:
                sock, _ = listener.accept()
                with closing(sock):
                    return _whole_hello(sock)
            finally:
                client.terminate()


def _whole_hello(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    found = b""
    while len(found) < 5 or len(found) < 5 + int.from_bytes(found[3:5], "big"):
        piece = sock.recv(65536)
        assert piece, found
        found += piece
    return found


def real_clients(folder: Path) -> Iterator[tuple[str, bytes]]:
    openssl, name = need("openssl"), NAME.decode()
    for options in (
        ("-servername", name),
        ("-noservername",),
        ("-servername", name, "-tls1_2"),
        ("-servername", name, "-tls1_3", "-groups", "X25519:P-256:P-521"),
        ("-servername", name, "-tls1", "-cipher", "ALL@SECLEVEL=0"),
        ("-servername", name, "-alpn", "h2,http/1.1", "-status"),
        ("-servername", name.upper()),
    ):
        yield (
            " ".join(("openssl", *options)),
            first_bytes(folder, openssl, "s_client", "-connect", "127.0.0.1:{port}", *options),
        )
    curl = need("curl")
    for host in (name, f"{name}.", "localhost"):
        resolve = f"{host}:{{port}}:127.0.0.1"
        yield f"curl {host}", first_bytes(folder, curl, "-sk", "--resolve", resolve, f"https://{host}:{{port}}/")
    profile = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", f"--user-data-dir={folder}")
    hosts = f"--host-resolver-rules=MAP {name} 127.0.0.1:{{port}}"
    yield "chromium", first_bytes(folder, need("chromium"), *profile, hosts, f"https://{name}/")
    yield "curl of an address", first_bytes(folder, curl, "-sk", "https://127.0.0.1:{port}/")


def pythons() -> Iterator[tuple[str, bytes]]:
    for number, versions in enumerate([(None, None), (None, ssl.TLSVersion.TLSv1_2), (ssl.TLSVersion.TLSv1_3, None)]):
        for name in (NAME.decode(), "xn--bcher-kva.example", "a" * 63 + ".example.net", None):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.minimum_version = versions[0] or context.minimum_version
            context.maximum_version = versions[1] or context.maximum_version
            outgoing = ssl.MemoryBIO()
            with pytest.raises(ssl.SSLWantReadError):
                context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
            yield f"python {number} {name}", outgoing.read()


# ---------------------------------------------------------------- hellos made by hand

WHOLE = hello(server_name(NAME))
KEY_SHARE = (51, bytes(1300))


def odd() -> Iterator[tuple[str, bytes]]:
    yield "grease", asking_for(NAME, GREASE)
    yield "grease first", records(hello(GREASE, (0x1A1A, b"\x00"), server_name(NAME), GREASE))
    yield "post-quantum", records(hello(KEY_SHARE, server_name(NAME)))
    yield "16 KiB record", records(hello((21, bytes(16_000)), server_name(NAME)))
    yield "no extensions", records(hello(without_extensions=True))
    yield "empty extensions", records(hello())
    yield "no name", records(hello(GREASE, (16, b"\x00\x03\x02h2")))
    yield "empty name", records(hello(server_name(b"")))
    yield "empty extension", records(hello((0, b"")))
    yield "empty list", records(hello((0, vector(b"", 2))))
    yield "another type of name", records(hello(server_name(b"a.net", kind=1)))
    yield "two names", records(hello(server_name(b"one.net", b"two.net")))
    yield "two extensions", records(hello(server_name(b"one.net"), server_name(b"two.net")))
    yield "empty session id", records(hello(server_name(NAME), session_id=b""))
    yield "many ciphers", records(hello(server_name(NAME), ciphers=bytes(2000)))
    yield "many compressions", records(hello(server_name(NAME), compression=bytes(range(200))))
    for version in (b"\x03\x00", b"\x03\x02", b"\x03\x03", b"\x03\x04"):
        yield f"record version {version.hex()}", records(WHOLE, version=version)
        yield f"hello version {version.hex()}", records(hello(server_name(NAME), version=version))
    yield "two records", records(WHOLE, [40])
    yield "type alone", records(WHOLE, [1])
    yield "one-byte records", records(WHOLE, [1] * 1000)
    yield "in the name", records(WHOLE, [len(WHOLE) - 4])
    yield "empty record", b"\x16\x03\x01\x00\x00" + records(WHOLE)
    yield "record too long", b"\x16\x03\x01\x50\x00" + WHOLE
    yield "two messages in a record", records(WHOLE + hello(server_name(b"two.net")))
    yield "early data", records(WHOLE) + b"\x17\x03\x03\x00\x05early"
    yield "another record before its end", records(WHOLE[:50]) + b"\x15\x03\x03\x00\x02\x01\x00" + records(WHOLE[50:])
    yield "server hello", records(b"\x02" + WHOLE[1:])
    yield "hello request", records(b"\x00\x00\x00\x00")
    yield "alert", b"\x15\x03\x01\x00\x02\x02\x28"
    yield "SSL 2.0", b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10" + bytes(38)
    yield "HTTP", b"GET / HTTP/1.1\r\nHost: git.example.net\r\n\r\n"
    yield "SSH", b"SSH-2.0-OpenSSH_9.2\r\n"
    yield "zeros", bytes(100)
    yield "nothing", b""
    yield "byte 0x16 alone", b"\x16"
    yield "name longer than 255", asking_for(b"a." * 200 + b"net")
    yield "trailing dot", asking_for(NAME + b".")
    yield "an address", asking_for(b"192.0.2.7")
    yield "spaces", asking_for(b"a b.example.net")
    yield "UTF-8", asking_for("bücher.example".encode())
    yield "capitals", asking_for(NAME.upper())
    yield "list longer than its extension", records(hello((0, b"\x00\xff" + vector(b"\x00" + vector(NAME, 2), 2)[2:])))
    yield "list shorter than its extension", records(hello((0, vector(b"\x00" + vector(NAME, 2), 2) + b"more")))
    yield "name longer than its list", records(hello((0, vector(b"\x00\x00\xff" + NAME, 2))))
    yield "extensions shorter than the hello", records(b"\x01" + vector(WHOLE[4:] + b"more", 3))
    for end in range(1, len(WHOLE), 6):
        yield f"cut at {end}", records(WHOLE)[:end]
    for end in range(5, len(WHOLE), 9):
        yield f"a whole message that ends at {end}", records(b"\x01" + vector(WHOLE[4:end], 3))


def noise(count: int) -> Iterator[tuple[str, bytes]]:
    """Bits turned over in a good hello, from one seed."""
    drawn = random.Random(22)
    for number in range(count):
        data = bytearray(records(hello(GREASE, server_name(NAME), (16, b"\x00\x03\x02h2"))))
        for _ in range(drawn.choice((1, 1, 2))):
            place = drawn.randrange(5, len(data))
            data[place] ^= 1 << drawn.randrange(8)
        yield f"noise {number}", bytes(data)


def hellos(folder: Path) -> dict[str, bytes]:
    found = dict([*real_clients(folder), *pythons(), *odd()])
    return {**found, **dict(noise(200 - len(found)))}
