"""The reader of ClientHellos beside HAProxy's req.ssl_sni and nginx's ssl_preread: 200 hellos, the same name from all three.

nginx answers with the name that it has read; HAProxy logs it. Where they differ, REASONS says why; a reason that is not needed
any more fails the test too.
"""

import os
import random
import re
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from pylb.core.client_hello import HelloReader
from tests.support.hellos import GREASE, asking_for, hello, records, server_name, vector
from tests.support.peers import need
from tests.support.ports import free_ports
from tests.support.processes import Processes
from tests.support.waiting import eventually

HAPROXY = """
global
  tune.bufsize 32768
  log 127.0.0.1:{log} format raw local0
defaults
  mode tcp
  timeout client 20s
  timeout server 20s
  timeout connect 1s
listen hellos
  bind 127.0.0.1:{port}
  log global
  log-format "client %cp asks for <%[var(sess.sni)]>"
  tcp-request inspect-delay 10s
  tcp-request content set-var(sess.sni) req.ssl_sni if {{ req.ssl_hello_type 1 }}
  tcp-request content reject if {{ req.ssl_hello_type 1 }}
  tcp-request content reject
"""
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 1;
load_module {modules}/ngx_stream_module.so;
events {{ worker_connections 64; }}
stream {{
  ssl_preread on;
  preread_buffer_size 32k;
  server {{ listen 127.0.0.1:{port}; return "<$ssl_preread_server_name>"; }}
}}
"""
MODULES = Path("/usr/lib/nginx/modules")
NAME = b"git.example.net"


class Names(NamedTuple):
    pylb: str
    haproxy: str
    nginx: str


class Oracles:
    """Both, on ports of their own. HAProxy's answer comes as a datagram of its log."""

    def __init__(self, processes: Processes, folder: Path, log: socket.socket) -> None:
        self.haproxy_at, self.nginx_at = free_ports(2)
        self._log = log
        self._log.bind(("127.0.0.1", 0))
        self._log.settimeout(10)
        self._logged: dict[int, str] = {}
        haproxy, nginx = folder / "haproxy.cfg", folder / "nginx.conf"
        haproxy.write_text(HAPROXY.format(port=self.haproxy_at, log=self._log.getsockname()[1]))
        nginx.write_text(NGINX.format(folder=folder, modules=MODULES, port=self.nginx_at))
        processes.start("haproxy", (need("haproxy"), "-db", "-f", str(haproxy)))
        processes.start("nginx", (need("nginx"), "-e", "stderr", "-c", str(nginx)))
        for port in (self.haproxy_at, self.nginx_at):
            eventually(lambda port=port: not socket.create_connection(("127.0.0.1", port), 1).close(), what=f"{port} listens")

    def ask(self, data: bytes) -> Names:
        reader = HelloReader()
        reader.feed(data)
        ours, answer = _answer(self.haproxy_at, data)
        assert not answer, "HAProxy only logs"
        while ours not in self._logged:
            found = re.fullmatch(rb"client (\d+) asks for <(.*)>\n?", self._log.recv(65536), re.DOTALL)
            assert found is not None
            self._logged[int(found[1])] = "" if found[2] == b"-" else _lower(found[2])
        _, answer = _answer(self.nginx_at, data)
        return Names(reader.name, self._logged.pop(ours), _lower(answer[1:-1]))


def _answer(port: int, data: bytes) -> tuple[int, bytes]:
    """(our port, the answer to the hello and a FIN): whoever waits for more of the hello gives up at that."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        ours = sock.getsockname()[1]
        with suppress(OSError):  # it may have decided, and closed, before all of it came
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while piece := sock.recv(65536):
                found += piece
    return ours, found


def _lower(name: bytes) -> str:
    return name.lower().decode("latin-1")


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracles]:
    folder = tmp_path_factory.mktemp("hellos")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log, Processes(folder) as processes:
        yield Oracles(processes, folder, log)


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


ONE_RECORD = "HAProxy reads one record and takes what follows for the message"
NOT_SO_STRICT = (
    "HAProxy looks only at the lengths on the way to the name, and takes what stands behind the hello for a part of it"
)
REASONS = {
    "two extensions": "nginx reads the second one, too, and is not content with two; RFC 8446 forbids them (4.2)",
    "hello version 0300": "HAProxy looks for extensions only from TLS 1.0 on",
    **dict.fromkeys(("two records", "type alone", "one-byte records", "in the name"), ONE_RECORD),
    "empty record": "nginx skips it; RFC 8446 forbids it (5.1), and any number of them could come",
    "record too long": "HAProxy does not look at its length; RFC 8446 allows 16 KiB (5.1)",
    "list shorter than its extension": NOT_SO_STRICT,
    "name longer than its list": NOT_SO_STRICT,
    "extensions shorter than the hello": NOT_SO_STRICT,
}


def test_200_hellos_have_the_name_that_haproxy_and_nginx_read(oracles: Oracles) -> None:
    """Among the hellos with bits turned over, and among the odd ones, HAProxy and nginx do not always agree: then one of them
    reads what pylb reads. Why they differ is written down for those that are made on purpose."""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for the path of Chromium's socket
        tried = hellos(Path(folder))
    assert len(tried) >= 200
    found = {what: oracles.ask(data) for what, data in tried.items()}
    assert {what: names for what, names in found.items() if names.pylb not in names[1:]} == {}
    differ = {what: names for what, names in found.items() if len(set(names)) > 1 and not what.startswith("noise")}
    assert differ.keys() == REASONS.keys(), differ
    assert sum(bool(names.pylb) for names in found.values()) > 60
