"""Every parser of bytes that somebody else wrote: what it may raise, valid examples, and what is true of what it makes.

A line here is the promise that `make fuzz-parsers` tests: for any bytes no exception but those, no hang, work and memory in
proportion to the input, and what has a writer is written and read again as the same. Not here: HTTP itself, which aiohttp's
parser reads (`make fuzz-webhook`), and what the kernel says in /proc.
"""

import json
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import yaml
from pydantic_core import PydanticCustomError

from pylb.config import ConfigErrors, parse
from pylb.config import addresses as a
from pylb.config import values as v
from pylb.config.generated_tokens import read_generated
from pylb.config.yamlplace import read
from pylb.control.storage import snapshot
from pylb.control.storage import table_history as history
from pylb.control.storage.store import Store, _canonical
from pylb.core import proxy_protocol
from pylb.core.address import parse_network
from pylb.core.announcement import parse_native
from pylb.core.checks import BadCheck, parse_check, written
from pylb.core.client_hello import MOST_BYTES, HelloReader, Verdict
from pylb.core.codec import Malformed
from pylb.core.errors import Refused
from pylb.core.health import judge
from pylb.core.legacy import parse_legacy
from pylb.core.log import parse_target
from pylb.core.policy import Check, CheckKind, ProxyProtocol, Step
from pylb.core.recorder import parse_session_id
from pylb.core.registration import check_name
from pylb.core.strict_json import strict_json
from pylb.core.tcp_info import parse_tcp_info
from pylb.haproxy import legacy_import
from pylb.haproxy.translate import translate
from pylb.host.systemd import SystemdService
from pylb.statuspage import peers
from pylb.upgrade import processes as generations
from pylb.upgrade.protocol import report_of, word
from pylb.upgrade.sockets import passed
from pylb.web.client_address import bearer, caller_ip
from pylb.web.sessions import query_of
from pylb.web.types import NoRoute, Router
from pylb.workers.channel import BadFrame, Channel, ChannelClosed, Frame
from pylb.workers.messages import KINDS, decoded, encoded
from tests.fuzz import examples as x
from tests.fuzz.controller import CONTROLLER
from tests.fuzz.etcd import ETCD
from tests.fuzz.inputs import Parser
from tests.fuzz.remote import PHONEHOME
from tests.fuzz.sockets import SOCKETS

NETWORK = parse_network("192.0.2.0/24")
_WORDS_OF_JSON = (b'{"', b'":', b",", b"[", b"]", b"}", b"null", b'"', b"1.5")


def text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def in_file(name: str, work: Callable[[Path], object]) -> Callable[[bytes], object]:
    """For what reads a file of the state directory."""

    def parse_file(data: bytes) -> object:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            return work(path)

    return parse_file


# ---------------------------------------------------------------- what the engine and the workers read


def _proxy(found: object) -> None:
    if not isinstance(found, proxy_protocol.ParsedHeader) or found.client is None or found.local is None:
        return
    for version in (ProxyProtocol.V1, ProxyProtocol.V2):
        made = proxy_protocol.header(version, found.client, found.local)
        again = proxy_protocol.parse(made + b"GET /")
        assert again is not None
        assert again.size == len(made)
        if found.client.is_ipv6 == found.local.is_ipv6:
            assert (again.client, again.local) == (found.client, found.local)


def _hello(data: bytes) -> tuple[bytes, Verdict, str]:
    reader = HelloReader()
    return data, reader.feed(data), reader.name


def _hello_in_pieces(found: Any) -> None:
    data, verdict, name = found
    reader = HelloReader()
    ends = range(0, len(data), 1 + len(data) // 50)
    seen = next((one for one in map(reader.feed, (data[:end] for end in ends)) if one is not Verdict.MORE), None)
    assert (seen or reader.feed(data), reader.name) == (verdict, name)


def frames(data: bytes) -> list[Frame]:
    ours, theirs = socket.socketpair()
    channel, found = Channel(theirs), list[Frame]()
    with ours:
        try:
            for start in range(0, len(data), 65536):
                ours.sendall(data[start : start + 65536])
                found += channel.receive()
            ours.close()
            while True:
                found += channel.receive()
        except ChannelClosed:
            return found
        finally:
            channel.close()


def message(data: bytes) -> object:
    """The first byte is the kind."""
    return decoded(Frame(data[0] % len(KINDS) if data else 0, data[1:], []))


def _message(found: Any) -> None:
    kind, body = encoded(found)
    assert encoded(decoded(Frame(kind, body, []))) == (kind, body)


# ---------------------------------------------------------------- files


def _of_json(work: Callable[[Mapping[str, Any]], object]) -> Callable[[bytes], object]:
    """What works on a JSON object that somebody else has read already."""

    def parse_object(data: bytes) -> object:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return None
        return work(found) if isinstance(found, dict) else None

    return parse_object


def _snapshot(found: Any) -> None:
    if found is None:
        return
    text = b"".join(_canonical(snapshot.Encoder().encode(found[0])))
    again, complaints = snapshot.decode(json.loads(text))
    assert not complaints
    assert b"".join(_canonical(snapshot.Encoder().encode(again))) == text


def _restored(path: Path) -> list[history.Generation]:
    kept = history.TableHistory(lambda: 0.0, path)
    kept.restore()
    return kept.generations()


def _history(found: Any) -> None:
    lines = history._encoded(found)
    assert in_file("history.jsonl", _restored)(lines) == found


def _processes(path: Path) -> object:
    return list(generations._read(path))


def config(data: bytes) -> object:
    return parse(text(data), "pylb.yaml")


def _scalars(data: bytes) -> object:
    """The first byte says which."""
    kinds: list[Callable[[Any], object]] = [
        v.parse_duration,
        a.parse_listen_at,
        a.parse_server_at,
        a._ip,
        a._bind,
        a.parse_host,
        a.parse_network,
        a._ports,
        v._name,
        v._secret,
        v._facility,
        v._legacy_from,
        v._check,
        v._access_rule,
        a.parse_url,
    ]
    number = (data[0] if data else 0) % len(kinds)
    value: object = text(data[1:])
    with suppress(ValueError, RecursionError):
        value = json.loads(data[1:])
    found = kinds[number](value)
    if number == 0:
        assert isinstance(found, float)
        assert abs(v.parse_duration(v.duration_text(found)) - found) < 0.0005
    elif number in (1, 2, 6):
        assert kinds[number](str(found)) == found
    return found


def _translated(found: Any) -> None:
    assert not read(found.text, "pylb.yaml").problems
    assert len(yaml.safe_load(found.text)["frontends"]) == found.frontends


def _imported(found: Any) -> None:
    for item in found.items:
        call = parse_legacy(json.dumps(item.as_call()).encode())
        assert (call.port, call.target_port, call.address) == (item.port, item.address.port, item.address.ip)


# ---------------------------------------------------------------- the web's bodies and headers


async def _nobody(_call: object) -> Any:
    raise AssertionError


_ROUTES = Router({"PUT /v1/registrations/{}/{}": _nobody, "GET /v1/sessions": _nobody})


def _request(data: bytes) -> object:
    """The target of a request and its headers, line by line."""
    target, *lines = data.decode("latin-1").split("\n")
    headers = dict(line.split(":", 1) for line in lines if ":" in line)
    path, _, query = target.partition("?")
    _, args = _ROUTES.find("PUT", path) if path.startswith("/v1/registrations") else (None, ())
    for arg in args:
        check_name("name", arg)
    bearer(headers)
    caller_ip("192.0.2.1", headers, (NETWORK,))
    return query_of(dict(parse_qsl(query, keep_blank_values=True)), 0.0)


def _checked(data: bytes) -> object:
    return parse_check(json.loads(data))


def _check_is_written(found: Any) -> None:
    assert parse_check(written(found)) == found


def _answer(data: bytes) -> object:
    """Of a health check."""
    for kind in CheckKind:
        step = Step(b"ping", b"pong")
        judge(Check(kind, (step,)), step, data, ended=False)
        judge(Check(kind, (step,)), step, data, ended=True)
    return parse_tcp_info(data[:300])


# ---------------------------------------------------------------- the environment


def _environment(data: bytes) -> object:
    value = data.decode("utf-8", "surrogateescape")
    SystemdService({"WATCHDOG_USEC": value})
    found = passed({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": value})
    assert len(found) <= 1 << 20, "no process has that many descriptors"
    return found


def _upgrade(data: bytes) -> object:
    said = word(Frame(0, data, []))
    assert isinstance(said, dict)
    return report_of(said) if "count" in said else said


def _loaded(path: Path) -> object:
    store = Store(path.parent)
    try:
        return store.load()
    finally:
        store.close()


PARSERS: tuple[Parser, ...] = (
    Parser("proxy", proxy_protocol.parse, (proxy_protocol.BadHeader,), x.PROXY, x.PROXY_WORDS, _proxy, most=4200),
    Parser("hello", _hello, (), x.HELLOS, x.HELLO_WORDS, _hello_in_pieces, most=MOST_BYTES),
    Parser("frames", frames, (BadFrame,), x.FRAMES, (b"LB\x00\x00", bytes(8)), memory=1000),
    Parser("message", message, (BadFrame,), x.MESSAGES, _WORDS_OF_JSON, _message, memory=1000),
    Parser("upgrade", _upgrade, (BadFrame, Malformed), x.UPGRADE, _WORDS_OF_JSON, memory=1000),
    Parser("state.json", in_file("state.json", _loaded), (), x.STATE, _WORDS_OF_JSON, memory=1000),
    Parser("snapshot", _of_json(snapshot.decode), (), x.SNAPSHOT, _WORDS_OF_JSON, _snapshot, memory=1000),
    Parser("history", in_file("history.jsonl", _restored), (), x.HISTORY, (*_WORDS_OF_JSON, b"\n"), _history, memory=1000),
    Parser("processes", in_file("processes", _processes), (), (b"12 345\n678 9\n",), (b" ",)),
    Parser("token file", in_file("tokens/web", lambda path: read_generated(path.parent.parent)), (), x.MADE, _WORDS_OF_JSON),
    Parser("config", config, (ConfigErrors,), x.CONFIG, x.YAML_WORDS, memory=10_000, most=1 << 18, slow=True),
    Parser("values", _scalars, (PydanticCustomError,), x.VALUES, x.VALUE_WORDS, memory=1000),
    Parser(
        "haproxy.cfg",
        lambda data: translate([("h", text(data))]),
        (),
        x.HAPROXY,
        x.HAPROXY_WORDS,
        _translated,
        memory=10_000,
        slow=True,
    ),
    Parser(
        "old files",
        lambda data: legacy_import.parse_haproxy([("h", text(data))]),
        (),
        x.OLD,
        x.HAPROXY_WORDS,
        _imported,
        memory=10_000,
    ),
    Parser("strict JSON", strict_json, (Refused,), x.NATIVE, x.NATIVE_WORDS, memory=1000),
    Parser("native body", parse_native, (Refused,), x.NATIVE, x.NATIVE_WORDS, memory=1000),
    Parser("legacy body", parse_legacy, (Refused,), x.LEGACY, x.LEGACY_WORDS, memory=1000),
    Parser("peer", peers.taken, (ValueError, RecursionError, peers._NoPylbError), x.PEERS, x.PEER_WORDS, most=peers.MOST_BYTES),
    Parser("active", peers.activity, (ValueError, RecursionError, peers._NoPylbError), x.ACTIVE, x.PEER_WORDS, most=1000),
    Parser("request", _request, (Refused, NoRoute), x.REQUESTS, x.REQUEST_WORDS, most=8192),
    Parser(
        "check",
        _checked,
        (BadCheck, json.JSONDecodeError, RecursionError, ValueError),
        x.CHECKS,
        x.NATIVE_WORDS,
        _check_is_written,
    ),
    Parser(
        "check's answer", _answer, (), (b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", b"pong"), (b"HTTP/1.0 ", b"\r\n"), most=16384
    ),
    Parser("environment", _environment, (), (b"3", b"60000000"), (b"1", b"99999999999999999999")),
    Parser("session id", lambda data: parse_session_id(text(data)), (ValueError,), (b"0x1a2b", b"0xff"), (b"-", b"0x")),
    Parser("log target", lambda data: parse_target(text(data)), (ValueError,), x.TARGETS, (b"udp:", b"unix:", b"file:", b":")),
    *SOCKETS,
    *PHONEHOME,
    *CONTROLLER,
    *ETCD,
)
BY_NAME = {parser.name: parser for parser in PARSERS}
