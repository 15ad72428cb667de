"""Streams that are no request, or never end, without a pause: what a listener may be made to remember of them."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.contract.instance import secret

PIECES = 64  # of a stream, until its client begins a new connection
Stream = Callable[[], Iterator[bytes]]
_JUNK = b"\xff\x00junk\r\n" * 8000
_GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _behind(*first: bytes, then: bytes = _JUNK) -> Stream:
    def stream() -> Iterator[bytes]:
        yield from first
        for _ in range(PIECES):
            yield then

    return stream


def _put(*headers: str) -> bytes:
    lines = ["PUT /v1/registrations/a/b HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode()


_BODY = b'{"dst-ip":"' + b"x" * 60_000 + b'"}'
HTTP: dict[str, Stream] = {
    "junk": _behind(),
    "junk behind a request": _behind(_GET),
    "junk behind a body": _behind(_put("Content-Length: 2") + b"{}"),
    "a line without an end": _behind(b"GET /", then=b"x" * 65536),
    "a header without an end": _behind(b"GET / HTTP/1.1\r\nX: ", then=b"x" * 65536),
    "headers without an end": _behind(b"GET / HTTP/1.1\r\n", then=b"X: y\r\n" * 8000),
    "a body without an end": _behind(_put("Content-Length: 1000000000"), then=b"x" * 65536),
    "a body of a GET": _behind(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n", then=b"x" * 65536),
    "bad chunks": _behind(_put("Transfer-Encoding: chunked") + b"5\r\nhello\r\n"),
    "chunks without an end": _behind(_put("Transfer-Encoding: chunked"), then=b"1000\r\n" + b"x" * 4096 + b"\r\n"),
    "a bomb": _behind(_put("Content-Encoding: gzip", "Content-Length: 1000000000"), then=b"\x1f\x8b" * 30000),
    "another protocol": _behind(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
    "CONNECT": _behind(b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n"),
    "continue": _behind(_put("Expect: 100-continue", "Content-Length: 4000"), then=b"x" * 65536),
    "requests whose answers nobody reads": _behind(then=_GET * 1000),
    "long calls with a wrong token": _behind(
        then=b"POST /hooks/update-haproxy HTTP/1.1\r\nHost: x\r\nX-Funkypenguin-Token: wrong\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
    ),
    "long calls that are no JSON": _behind(
        then=b"POST /hooks/update-haproxy HTTP/1.1\r\nHost: x\r\nX-Funkypenguin-Token: %b\r\n"
        b"Content-Length: 60000\r\n\r\n%b" % (secret("app").encode(), b"x" * 60_000)
    ),
}
_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x07" * 65
TLS: dict[str, Stream] = {
    "no record": _behind(then=b"\x80\x00\x01" * 20000),
    "a record of junk": _behind(b"\x16\x03\x01\x40\x00", then=b"\x01\xff\xff\xff" * 16000),
    "a hello without an end": _behind(_HELLO, then=b"\x00" * 65536),
    "records of junk": _behind(_HELLO, then=b"\x17\x03\x03\x40\x00" + b"\xaa" * 16384),
    "plain HTTP": _behind(_GET, then=_GET * 1000),
}
CONTROL: dict[str, Stream] = {
    "a line without an end": _behind(then=b"x" * 65536),
    "lines of junk": _behind(),
    "brackets": _behind(then=b"[" * 60000 + b"\n"),
    "a long line of small values": _behind(then=b'{"verb":"x","y":[' + b"{}," * 1_300_000 + b"0]}\n"),
    "long lines": _behind(then=b'{"verb":"x","y":"' + b"y" * 4_100_000 + b'"}\n'),
    "no verb": _behind(then=b'{"verb": ["a"]}\n' * 4000),
    "answers that nobody reads": _behind(then=b'{"verb": "routes"}\n' * 4000),
}
RUNTIME: dict[str, Stream] = {
    "a line without an end": _behind(then=b"x" * 65536),
    "lines of junk": _behind(b"prompt\n"),
    "separators": _behind(b"prompt\n", then=b";" * 60000 + b"\n"),
    "answers that nobody reads": _behind(b"prompt\n", then=b"show info\n" * 4000),
}


def tcp(port: int) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection(("127.0.0.1", port), 5)


def tls(port: int) -> Callable[[], socket.socket]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return lambda: context.wrap_socket(tcp(port)())


def unix(path: Path) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(5)
        sock.connect(str(path))
        return sock

    return connect


class Client(threading.Thread):
    """One stream after the other, until `end` (monotonic)."""

    def __init__(self, connect: Callable[[], socket.socket], stream: Stream, end: float) -> None:
        super().__init__(name="malformed")
        self._connect, self._stream, self._end = connect, stream, end
        self.sent = 0

    def run(self) -> None:
        while time.monotonic() < self._end:
            try:
                sock = self._connect()
            except OSError:
                continue
            with sock:
                sock.settimeout(1)
                try:
                    for piece in self._stream():
                        sock.sendall(piece)
                        self.sent += len(piece)
                        if time.monotonic() > self._end:
                            break
                except OSError:
                    continue  # cut: that is what is to happen
