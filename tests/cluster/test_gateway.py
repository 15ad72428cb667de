"""etcd's answers as values: what the real one says too rarely, or only when something is broken."""

import pytest

from pylb.cluster import gateway
from pylb.cluster.gateway import Denied, EtcdError, Event, Unauthenticated, Unreachable

_HEADER = b'{"result":{"header":{"revision":"7"}'


def test_a_line_without_events_says_up_to_where_there_was_nothing() -> None:
    """etcd sends it every ten minutes."""
    watched = gateway.read_watched(_HEADER + b"}}")
    assert (watched.revision, watched.created, list(watched.events)) == (7, False, [])
    assert gateway.read_watched(_HEADER + b',"created":true}}').created


@pytest.mark.parametrize(
    "line",
    [
        b'{"result":{"header":{"revision":"7"},"events":[%s]}}',
        b'{"result": {"header": {"revision": "7"}, "events": [ %s ]} }\r',
        b'{"result":{"events":[%s],"header":{"revision":"7"}}}',
    ],
)
def test_the_order_of_fields_and_blanks_are_etcds_own(line: bytes) -> None:
    events = b'{"type":"DELETE","kv":{"key":"aw==","mod_revision":"6"}} ,{"kv":{"key":"aw==","mod_revision":"7"}}'
    watched = gateway.read_watched(line % events)
    assert watched.revision == 7
    assert [*watched.events] == [Event(b"k", None, 6), Event(b"k", b"", 7)]


def test_an_event_that_is_none_ends_the_watch() -> None:
    for events in (b"7]}}", b'{"kv":{"key":"a"}}]}}', b'{"kv"', b'{"kv":{"key":"aw=="}}'):
        with pytest.raises(Unreachable, match="not etcd's"):
            [*gateway.read_watched(_HEADER + b',"events":[' + events).events]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}', Unreachable),
        (b'{"result":{"canceled":true,"cancel_reason":"etcdserver: no leader"}}', Unreachable),
        (b'{"result":{"canceled":true,"cancel_reason":"... = etcdserver: user name is empty"}}', Unauthenticated),
        (b'{"result":{"canceled":true,"cancel_reason":"... = etcdserver: permission denied"}}', Denied),
        (b'{"error":{"grpc_code":16,"message":"x"}}', Unauthenticated),
    ],
)
def test_what_ends_a_watch(line: bytes, kind: type[EtcdError]) -> None:
    with pytest.raises(EtcdError) as caught:
        gateway.read_watched(line)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"[" * 100_000, b'{"header":{}', b"{}", b'{"header":{"revision":7}}', b'{"header":{"revision":"seven"}}'),
        *(b'{"header":{"revision":"7"},"kvs":[1]}', b'{"header":{"revision":"7"},"kvs":[{"key":"!"}]}', b'{"header":7}'),
        *(b'{"header":{"revision":"7"},"kvs":[{"key":["aw=="]}]}', b'{"header":{"revision":"7"},"kvs":7}'),
    ],
)
def test_answers_that_are_not_etcds(body: bytes) -> None:
    with pytest.raises(Unreachable, match="not etcd's"):
        gateway.read_page(body)
