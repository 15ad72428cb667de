"""The client against the real etcd: each of its peculiarities, and what it means for us."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Self

import pytest

from pylb.cluster import etcd as client
from pylb.cluster import gateway
from pylb.cluster.etcd import Etcd, Waits
from pylb.cluster.gateway import Compacted, EtcdError, Event, Full, Item, LeaseGone, Txn, Unreachable
from tests.support.etcd import Member
from tests.support.ports import free_port

QUICK = Waits(call=0.5, silence=0.5)  # for what is to run out


@pytest.fixture
async def etcd(member: Member) -> AsyncIterator[Etcd]:
    async with Etcd([member.url]) as found:
        yield found


class Watching:
    """A watch beside the test, and what it has seen."""

    def __init__(self, etcd: Etcd, prefix: str, after: int) -> None:
        self.seen: list[tuple[int, dict[str, bytes | None]]] = []
        self._more = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(etcd.watch(prefix.encode(), after, self._see))

    def _see(self, revision: int, events: Sequence[Event]) -> None:
        assert all(one.revision == revision for one in events)
        self.seen.append((revision, {one.key.decode(): one.value for one in events}))
        self._more.set()

    async def until(self, revision: int) -> None:
        async with asyncio.timeout(10):
            while not any(one >= revision for one, _ in self.seen):
                self._more.clear()
                await self._more.wait()

    async def end(self) -> None:
        """Raises what ended it."""
        async with asyncio.timeout(10):
            await self._task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


def put(key: str, value: str, revision: int = 0) -> Txn:
    return Txn({key.encode(): revision}, puts={key.encode(): value.encode()})


# ---------------------------------------------------------------- lists and transactions


async def test_a_transaction_happens_if_its_comparisons_are_true(etcd: Etcd, prefix: str) -> None:
    first = await etcd.txn(put(prefix + "a", ""))
    assert first.succeeded
    again = await etcd.txn(put(prefix + "a", "x"))
    assert not again.succeeded
    key = prefix.encode() + b"a"
    assert await etcd.list(prefix.encode()) == (first.revision, [Item(key, b"", first.revision)])
    assert not (await etcd.txn(Txn({}, {key: b"other"}, deletes=frozenset({key})))).succeeded
    assert (await etcd.txn(Txn({key: first.revision}, {key: b""}, deletes=frozenset({key})))).succeeded
    assert (await etcd.list(prefix.encode()))[1] == []


async def test_a_list_is_of_one_revision_however_many_pages_it_has(
    etcd: Etcd, member: Member, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 2)
    for number in range(5):
        member.put(f"{prefix}{number}", "before")
    read_page = gateway.read_page

    def read_and_write(body: bytes) -> gateway.Page:
        member.put(f"{prefix}{4}", "after")
        member.put(f"{prefix}x", "new")
        return read_page(body)

    monkeypatch.setattr(gateway, "read_page", read_and_write)
    revision, items = await etcd.list(prefix.encode())
    assert [(one.key.decode().removeprefix(prefix), one.value) for one in items] == [(str(n), b"before") for n in range(5)]
    assert max(one.revision for one in items) == revision


async def test_a_list_whose_revision_is_compacted_meanwhile_starts_again(
    etcd: Etcd, member: Member, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PAGE", 1)
    member.put(f"{prefix}1", "")
    member.put(f"{prefix}2", "")
    read_page = gateway.read_page

    def read_and_compact(body: bytes) -> gateway.Page:
        member.put(f"{prefix}3", "")
        member.compact()
        return read_page(body)

    monkeypatch.setattr(gateway, "read_page", read_and_compact)
    with pytest.raises(Compacted, match="has been compacted"):
        await etcd.list(prefix.encode())


async def test_only_keys_below_the_prefix_are_listed(etcd: Etcd, member: Member, prefix: str) -> None:
    member.put(prefix + "a", "in")
    member.put(prefix[:-1] + "0", "behind")
    assert [one.value for one in (await etcd.list(prefix.encode()))[1]] == [b"in"]


# ---------------------------------------------------------------- leases


async def test_what_has_a_lease_goes_with_it(etcd: Etcd, prefix: str) -> None:
    lease, key = await etcd.grant(30), prefix.encode()
    assert (await etcd.txn(Txn({key: 0}, leased={key: (b"nonce", lease)}))).succeeded
    await etcd.keepalive(lease)
    await etcd.revoke(lease)
    assert (await etcd.list(key))[1] == []


async def test_a_lease_that_is_gone_is_named(etcd: Etcd, prefix: str) -> None:
    with pytest.raises(LeaseGone):
        await etcd.keepalive(77)
    with pytest.raises(LeaseGone):
        await etcd.revoke(77)
    with pytest.raises(LeaseGone):
        await etcd.txn(Txn({}, leased={prefix.encode(): (b"nonce", 77)}))


# ---------------------------------------------------------------- watches


async def test_a_watch_reports_each_revision_with_all_its_events(etcd: Etcd, member: Member, prefix: str) -> None:
    after = member.put(prefix + "before", "x")
    first = member.put(prefix + "a", "")
    member.put(prefix + "b", "2")  # both before the watch begins: etcd reports them on one line
    async with Watching(etcd, prefix, after) as watching:
        both = Txn({}, puts={f"{prefix}{n}".encode(): b"3" for n in "ab"}, deletes=frozenset({f"{prefix}before".encode()}))
        await etcd.txn(both)
        await watching.until(first + 2)
        assert watching.seen == [
            (first, {prefix + "a": b""}),
            (first + 1, {prefix + "b": b"2"}),
            (first + 2, {prefix + "a": b"3", prefix + "b": b"3", prefix + "before": None}),
        ]


async def test_long_lines_are_read(etcd: Etcd, member: Member, prefix: str) -> None:
    after, large = member.put(prefix + "before", "x"), b"v" * 5_000
    async with Watching(etcd, prefix, after) as watching:
        await etcd.txn(Txn({}, puts={f"{prefix}{n}".encode(): large for n in range(100)}))
        await watching.until(after + 1)
        assert watching.seen == [(after + 1, {f"{prefix}{n}": large for n in range(100)})]


async def test_a_watch_that_is_too_old_ends_though_its_stream_stays_open(etcd: Etcd, member: Member, prefix: str) -> None:
    old = member.put(prefix + "a", "1")
    for _ in range(3):
        member.put(prefix + "a", "2")
    member.compact()
    async with Watching(etcd, prefix, old) as watching:
        with pytest.raises(Compacted, match="compacted its history"):
            await watching.end()
    assert watching.seen == []


async def test_a_watch_from_the_future_is_silent_and_ends(member: Member, prefix: str) -> None:
    """etcd accepts it. After a restore, a balancer that watched on from its own revision would wait for ever."""
    async with Etcd([member.url], waits=QUICK) as etcd:
        revision = member.put(prefix + "a", "1")
        async with Watching(etcd, prefix, revision + 1000) as watching:
            member.put(prefix + "a", "2")
            with pytest.raises(Unreachable, match=r"silent for 0.5 s"):
                await watching.end()


# ---------------------------------------------------------------- endpoints


async def test_an_endpoint_that_refuses_is_left(member: Member, prefix: str) -> None:
    async with Etcd([f"http://127.0.0.1:{free_port()}", member.url]) as etcd:
        with pytest.raises(Unreachable, match=r"127.0.0.1:\d+: .*[Cc]onnect"):
            await etcd.list(prefix.encode())
        assert etcd.endpoint == member.url
        await etcd.list(prefix.encode())
        assert etcd.endpoint == member.url


async def test_several_calls_that_fail_together_leave_it_once(member: Member, prefix: str) -> None:
    async with Etcd([f"http://127.0.0.1:{free_port()}", member.url]) as etcd:
        found = await asyncio.gather(*(etcd.grant(30) for _ in range(4)), return_exceptions=True)
        assert all(isinstance(one, Unreachable) for one in found)
        assert etcd.endpoint == member.url


async def test_a_frozen_member_is_left_by_calls_and_by_watches(member: Member, prefix: str) -> None:
    """It accepts connections, and says nothing at all."""
    revision = member.put(prefix + "a", "1")
    async with Etcd([member.url, "http://other"], waits=QUICK) as etcd, Watching(etcd, prefix, revision) as watching:
        member.put(prefix + "a", "2")
        await watching.until(revision + 1)
        member.freeze()
        try:
            with pytest.raises(Unreachable, match=r"silent for 0.5 s"):
                await watching.end()
            assert etcd.endpoint == "http://other"
            etcd.leave("http://other")
            with pytest.raises(Unreachable, match=r"no answer within 0.5 s"):
                await etcd.txn(put(prefix + "b", "1"))
            assert etcd.endpoint == "http://other"
        finally:
            member.wake()


async def test_a_watch_on_a_frozen_member_does_not_begin(member: Member, prefix: str) -> None:
    async with Etcd([member.url], waits=QUICK) as etcd:
        member.freeze()
        try:
            with pytest.raises(Unreachable, match=r"(no answer within|silent for) 0.5 s"):  # both are over
                await etcd.watch(prefix.encode(), 1, lambda *_: None)
        finally:
            member.wake()


async def test_what_is_no_etcd_is_named() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n<html>\x1b[2J\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Etcd([f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"]) as etcd:
        with pytest.raises(Unreachable, match=r"its answer is not etcd's: '<html>\\\\x1b"):
            await etcd.list(b"/")
        with pytest.raises(Unreachable, match=r"its answer is not etcd's"):
            await etcd.watch(b"/", 1, lambda *_: None)


# ---------------------------------------------------------------- refusals


async def test_a_full_etcd_writes_nothing_and_is_not_left(member: Member, prefix: str) -> None:
    member.put(prefix + "a", "1")
    async with Etcd([member.url, "http://other"]) as etcd:
        lease = await etcd.grant(30)
        member.ask("maintenance/alarm", {"action": "ACTIVATE", "alarm": "NOSPACE"})
        try:
            with pytest.raises(Full, match="database space exceeded"):
                await etcd.txn(put(prefix + "b", "1"))
            await etcd.keepalive(lease)
            assert len((await etcd.list(prefix.encode()))[1]) == 1
            assert (await etcd.txn(Txn({}, deletes=frozenset({f"{prefix}a".encode()})))).succeeded
            assert etcd.endpoint == member.url
        finally:
            member.ask("maintenance/alarm", {"action": "DEACTIVATE", "alarm": "NOSPACE"})


async def test_an_etcd_without_users_takes_calls_with_a_login(member: Member, prefix: str) -> None:
    async with Etcd([member.url], client.Credentials(client.Login("pylb", "secret"))) as etcd:
        assert (await etcd.list(prefix.encode()))[1] == []


async def test_a_call_that_is_wrong_is_refused_with_etcds_words(etcd: Etcd, prefix: str) -> None:
    twice = prefix.encode()
    with pytest.raises(EtcdError, match="duplicate key given in txn request"):
        await etcd.txn(Txn({}, puts={twice: b"1"}, deletes=frozenset({twice})))
