"""What etcd answers, what other balancers have written into it, and what a balancer remembers of both."""

import json
from dataclasses import replace

from pylb.cluster import gateway
from pylb.cluster.gateway import EtcdError
from pylb.cluster.keys import Pair, key_name, read_pair, write_value
from pylb.cluster.memory import UnreadableMemory, read_memory, write_memory
from pylb.cluster.registrations import as_registration, as_wanted
from pylb.core.errors import Refused
from pylb.core.merge.local import Memory
from pylb.core.merge.values import Unreadable
from pylb.core.policy import Rules
from pylb.core.registration import FrontendRequest, Key, Registration
from pylb.core.static_rules import StaticRules
from tests.fuzz.inputs import Parser

_HEADER = b'{"header":{"revision":"7"}'
_ANSWERS = (
    _HEADER + b',"succeeded":true}',
    _HEADER + b',"kvs":[{"key":"aw==","mod_revision":"5","value":"dg=="}],"more":true,"count":"2"}',
    _HEADER + b',"ID":"1418812111863917584","TTL":"30","token":"MHlAATKBKiboFZAd.23"}',
    b'{"result":{"header":{"raft_term":"2"},"canceled":true,"compact_revision":"4","cancel_reason":"x"}}',
    b'{"error":"etcdserver: requested lease not found","message":"etcdserver: requested lease not found","code":5}',
    b'{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}',
)
_WATCHED = (
    b'{"result":{"header":{"revision":"6"},"created":true}}',
    b'{"result":{"header":{"revision":"6"},"events":[{"type":"DELETE","kv":{"key":"aw==","mod_revision":"6"}}]}}',
)
_WORDS = (b'"events":[', b'{"kv":{', b'"result":', b'"header":', b'"revision":"', b'"canceled":true', b"]}}", b"aw==", b'{"')
_PAIRS = (
    b'members/a\n{"count":3,"forgotten":false,"needs":["udp"],"partial":false,"processed":{"b":2},"reserved":[["tcp",25,""]]}',
    b"presence/a\n5f",
    b'entries/a/t/w/1\n{"address":"::1","details":"","needs":["x"],"sequence":7,"slots":[["tcp",443,"a.b"]],"stamp":1,"state":"stale","ttl":60}',
    b'released/t/~legacy/tcp/25\n{"known":{"a":3},"sequence":0,"stamp":4,"writer":"b"}',
    b'claims/tcp/1\n{"443":["t","web",false],"443/a.example":["t","",true]}',
)


def _watched(data: bytes) -> list[gateway.Event]:
    return list(gateway.read_watched(data).events)


def _every_answer(data: bytes) -> None:
    """It raises nothing but EtcdError, whichever call it answers."""
    reads = (gateway.read_page, gateway.read_outcome, gateway.read_grant, gateway.read_keepalive, gateway.read_status)
    for read in (*reads, gateway.read_token):
        try:
            read(data)
        except EtcdError:
            pass
    for status in (200, 404, 500):
        assert isinstance(gateway.failure(status, data), EtcdError)


def _pair(data: bytes) -> Pair | None:
    name, _, value = data.partition(b"\n")
    return read_pair(name.decode("latin-1"), value)


def _is_written(found: object) -> None:
    if isinstance(found, Pair):
        if isinstance(found.value, Unreadable):
            assert found.complaint
        else:
            assert read_pair(key_name(found.key), write_value(found.value)) == Pair(found.key, found.value)


_MEMORY = json.dumps(
    write_memory(Memory())
    | {
        "values": [[*pair.decode().split("\n"), 3] for pair in _PAIRS],
        "unwritten": ["released/t/web/1"],
        "newer": [["members/a", _PAIRS[0].decode().split("\n")[1], [[*_PAIRS[2].decode().split("\n"), 2]]]],
        "own": [["released/t/web/1", _PAIRS[2].decode().split("\n")[1], 1, False]],
    }
).encode()


def _memory(data: bytes) -> Memory | None:
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return None  # it is a part of the snapshot, which is JSON
    return read_memory(plain)


def _is_written_again(found: object) -> None:
    if isinstance(found, Memory):
        assert write_memory(read_memory(write_memory(found))) == write_memory(found)


_WEB = Key("t", "web", "1")
_SHARED = as_wanted(
    Registration(_WEB, "web", "192.0.2.1", (FrontendRequest(443, 30443), FrontendRequest(2000, 30000, last=2003))),
    StaticRules(Rules()),
)


def _registration(data: bytes) -> Registration:
    return as_registration(_WEB, replace(_SHARED, details=data.decode("latin-1")))


def _is_told_again(found: object) -> None:
    if isinstance(found, Registration):
        assert as_registration(_WEB, as_wanted(found, StaticRules(Rules()))) == found


ETCD = (
    Parser(
        "a registration of another balancer",
        _registration,
        (Refused,),
        (_SHARED.details.encode(),),
        (b'"frontends":[', b'"health":', b'"members":[', b"null", b'{"', b"]", b"1e999"),
        _is_told_again,
        memory=1000,
    ),
    Parser("the cluster's memory", _memory, (UnreadableMemory,), (_MEMORY,), (b'"x"', b"[", b"]", b"{"), _is_written_again),
    Parser("etcd's answer", _every_answer, (), _ANSWERS, _WORDS, memory=1000),
    Parser("etcd's watch", _watched, (EtcdError,), _WATCHED, (*_WORDS, *_ANSWERS), memory=1000),
    Parser(
        "etcd's keys", _pair, (), _PAIRS, (b'{"', b'":', b",", b"[", b"]", b"null", b"/", b"~legacy"), _is_written, memory=1000
    ),
)
