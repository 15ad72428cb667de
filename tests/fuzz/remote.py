"""The parsers of the phone-home: its environment, join strings, what a load balancer answers, and its certificate."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from phonehome.client import CallError, Cancel, Client
from phonehome.message import READY, Accepted, Refused, Reply, Request, read, registration
from phonehome.outcome_log import OutcomeLog
from phonehome.pin import key_pin
from phonehome.settings import Settings, SettingsError, parse
from phonehome.values import NotationError, Token, parse_join, parse_url
from tests.fuzz.inputs import Parser

SECRET = "0123456789abcdefghijklmn"
MOST_ANSWER = 1 << 20  # bytes of an answer that may be looked at; more than the limits of its body and its headers together


class _Sent:
    """A peer that has sent all it has to say."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)
        self.read = 0

    def recv_into(self, buffer: bytearray) -> int:
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        self.read += size
        return size

    def sendall(self, _data: bytes) -> None: ...

    def settimeout(self, _seconds: float) -> None: ...

    def close(self) -> None: ...


class _Answered(Client):
    """A client whose connections lead to what was sent."""

    def __init__(self, sent: _Sent) -> None:
        super().__init__(parse_url("http://127.0.0.1:9"), "source", None)
        self._sent = sent

    def _connect(self, deadline: float, cancel: Cancel) -> Any:  # noqa: ARG002 - as the other one
        return self._sent


def answer(data: bytes) -> object:
    sent = _Sent(data)
    try:
        reply = _Answered(sent).call(Request("GET", "/", None), Token(SECRET))
    finally:
        assert sent.read <= MOST_ANSWER
    return _noted(reply)


def _noted(reply: Reply) -> list[str]:
    found, outcome_log = read(reply, 1.7e9, SECRET), OutcomeLog("lb", "source")
    lines = outcome_log.accepted(found, READY, 0.0) if isinstance(found, Accepted) else outcome_log.refused(found, 0.0)
    assert all(line.isprintable() for line in lines)
    return lines


def body(data: bytes) -> object:
    """Of any status; headers are in the first line."""
    head, _, rest = data.partition(b"\n")
    for status in (200, 302, 429, 503):
        _noted(Reply(status, {"retry-after": head.decode("latin-1"), "location": head.decode("latin-1")}, rest))
    found = read(Reply(503, {"retry-after": head.decode("latin-1")}, rest), 1.7e9, SECRET)
    assert isinstance(found, Refused)
    return found


def environment(data: bytes) -> Settings:
    """A variable a line. PYLB_TOKEN_FILE and the like find the whole text."""
    given = data.decode("utf-8", "surrogateescape")
    environ = dict(line.split("=", 1) for line in given.split("\n") if "=" in line)
    return parse(environ, hostname="pod-1", read_file=lambda _path: environ.get("FILE", ""))


def _can_be_called(found: Any) -> None:
    registration(found, READY)
    for endpoint in found.endpoints:
        _is_a_host(endpoint.host)
        assert endpoint.label.isprintable()


def _is_a_host(host: str) -> None:
    assert host.isascii()
    assert host.isprintable()
    assert " " not in host


def join(data: bytes) -> object:
    return parse_join(data.decode("utf-8", "surrogateescape"))


def _joined(found: Any) -> None:
    _, endpoint = found
    _is_a_host(endpoint.host)
    assert endpoint.token


def _certificate() -> bytes:
    """The same on every run: of a fixed key whose signatures have nothing random."""
    key, day = Ed25519PrivateKey.from_private_bytes(bytes(32)), datetime(2030, 1, 1, tzinfo=UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pylb")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, day, day + timedelta(days=1)).sign(key, None)
    return made.public_bytes(Encoding.DER)


def pin(data: bytes) -> object:
    """If there is one, it is that of the key which a reader of certificates finds, where that one reads it at all."""
    found = key_pin(data)
    assert found == "" or len(found) == 43
    try:
        key = x509.load_der_x509_certificate(data).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except Exception:  # noqa: BLE001 - it refuses in a dozen ways
        return found
    assert found in ("", base64.urlsafe_b64encode(hashlib.sha256(key).digest()).decode().rstrip("="))
    return found


_PIN = "A" * 43
_ENVIRONMENTS = (
    f"""PYLB_URL=https://lb.example.net:9000/x
PYLB_TOKEN={SECRET}
PYLB_NAME=web
PYLB_FRONTENDS=443:30443/proxy=v2/weight=3 25:30025
PYLB_TTL=60s""",
    f"""PYLB_JOIN=pylb://web:{SECRET}@lb.example.net:9000/{_PIN}
PYLB_FRONTENDS=443:30443
PYLB_HEALTH={{"443":{{"http":"/h"}}}}
PYLB_ADDRESS=192.0.2.7""",
    f"""WEBHOOK=http://192.0.2.1:9000/hooks/update-haproxy
WEBHOOK_TOKEN={SECRET}
NAME=mqtt
FRONTEND_PORT=8443
BACKEND_PORT=30843
SEND_PROXY=send-proxy
REPEAT_INTERVAL=300""",
    f"""PYLB_URL=https://[2001:db8::1]:9000
PYLB_TOKEN_FILE=/x
FILE={SECRET}
PYLB_NAME=web
PYLB_WAIT=127.0.0.1:80 [::1]:81
PYLB_CA=-----BEGIN CERTIFICATE-----
PYLB_FRONTENDS=1:2""",
)
_ENVIRONMENT_WORDS = (
    b"PYLB_URL=",
    b"PYLB_JOIN_FILE=/x\nFILE=",
    b"pylb://a:b@",
    b"https://",
    b"443:30443 ",
    b"/weight=",
    b"PYLB_HEALTH=",
    b"\n",
    b",",
    b"@",
    b"[",
)
_ACCEPTED = (
    b'{"result":"created","generation":7,"durable":true,"lease":{"ttl":60,"expires_in":60},'
    b'"frontends":[{"port":443,"address":"203.0.113.7","target_port":30443,"reachable":"timeout"}],"note":"x"}'
)
_REFUSED = b'{"error":"port_owned","detail":"it is","hint":"ask"}'
_ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(_ACCEPTED) + _ACCEPTED,
    b"HTTP/1.1 409 Conflict\r\nRetry-After: 5\r\n\r\n" + _REFUSED,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\nA: b\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
)
_ANSWER_WORDS = (
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n",
    b"A: b\r\n",
    b"\r\n",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"-1\r\n",
    b"0\r\n",
    b"1\r\nx\r\n",
)

PHONEHOME = (
    Parser("phone-home's answer", answer, (CallError,), _ANSWERS, _ANSWER_WORDS),
    Parser(
        "phone-home's body",
        body,
        (),
        (b"120\n" + _ACCEPTED, b"Wed, 21 Oct 2026 07:28:00 GMT\n" + _REFUSED),
        (b'"frontends":[{', b'"port":'),
        most=1 << 16,
        memory=2000,
    ),
    Parser(
        "phone-home's environment",
        environment,
        (SettingsError,),
        tuple(map(str.encode, _ENVIRONMENTS)),
        _ENVIRONMENT_WORDS,
        _can_be_called,
        most=1 << 17,
        memory=2000,
    ),
    Parser(
        "join string",
        join,
        (NotationError,),
        (f"pylb://web:{SECRET}@lb.example.net:9000/{_PIN}".encode(), b"pylb://a:b@[::1]:1"),
        (b"pylb://", b"@", b":", b"/", b"\x00", b"%"),
        _joined,
    ),
    Parser(
        "certificate's key",
        pin,
        (),
        (_certificate(),),
        (b"\x30\x80", b"\x00\x00", b"\x30\x84\xff\xff\xff\xff", b"\x30\x03\x02\x01\x01"),
        most=1 << 20,
    ),
)
