"""What `pylb doctor` asks etcd: whether the balancers can share their table through it, now and with one member less.

It works without a running pylb, with that one's name and credentials, and changes nothing: the one key that it writes is bound
to a lease, which it ends at once, and is none that a balancer reads.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from pylb.cluster.etcd import Credentials, Etcd, Waits
from pylb.cluster.gateway import Compacted, Denied, EtcdError, Event, Status, Txn
from pylb.cluster.keys import read_pair
from pylb.cluster.registrations import KNOWN
from pylb.core.merge.values import Member, MemberKey, PresenceKey
from pylb.core.text import counted

FEWEST = 3  # members: of two, both have to live
LEASE = 10  # seconds, of the key that it writes
SLOW = 0.5  # seconds for a write: etcd's disk, or the network
APART = 30.0  # seconds between two clocks
NEVER_COMPACTED = 100_000  # revisions: with a compaction each hour there are fewer
MOST_DATABASE = 1 << 30  # bytes: half of etcd's default quota
CORRUPTING = ("3.5.0", "3.5.1", "3.5.2")
OLDEST = (3, 4)


class Answer(NamedTuple):
    what: str
    ok: bool
    found: str
    remedy: str = ""


async def examine(
    name: str, endpoints: Sequence[str], prefix: str, credentials: Credentials, waits: Waits
) -> AsyncIterator[Answer]:
    """`name`: of this balancer. Raises nothing: what etcd does not answer is an answer."""
    if credentials.wrong:
        yield Answer("etcd", False, credentials.wrong, "pylb check names the line")
        return
    found = await asyncio.gather(*(_member(url, credentials, waits) for url in endpoints))
    for one in found:
        for answer in one.answers:
            yield answer
    statuses = [one.status for one in found if one.status is not None]
    if statuses or not any(one.is_there for one in found):
        yield _quorum(len(endpoints), statuses)
    if answering := [url for url, one in zip(endpoints, found, strict=True) if one.is_there]:
        async with Etcd(answering, credentials, waits=waits) as etcd:
            try:
                async for answer in _prefix(etcd, name, prefix.rstrip("/").encode() + b"/"):
                    yield answer
            except EtcdError as error:
                remedy = "deploy/etcd/users makes a user who may; docs/runbook.md, PylbClusterDisconnected"
                yield Answer("etcd's keys", False, str(error), remedy)


class _Found(NamedTuple):
    """About one endpoint. `status`: what it says of itself, if this user may know it."""

    answers: list[Answer]
    status: Status | None = None
    is_there: bool = True


async def _member(url: str, credentials: Credentials, waits: Waits) -> _Found:
    async with Etcd([url], credentials, waits=waits) as etcd:
        try:
            status = await etcd.status()
        except Denied as error:
            remedy = "cluster.etcd.username and password_file; deploy/etcd/users makes the user"
            return _Found([Answer(f"etcd {url}", False, str(error), remedy)])
        except EtcdError as error:
            remedy = "start it, or let this machine reach it: deploy/etcd/README.md"
            return _Found([Answer(f"etcd {url}", False, str(error), remedy)], is_there=False)
    size = f"{status.database >> 20} MiB" if status.database >> 20 else f"{status.database >> 10} KiB"
    answers = [_health(url, status, f"{status.version}, database {size}")]
    if status.ahead is not None and abs(status.ahead) > APART:
        text = f"its clock is {abs(status.ahead):.0f} s {'ahead of' if status.ahead > 0 else 'behind'} this machine's"
        answers.append(Answer(f"etcd {url}", False, text, "timedatectl set-ntp true on both: certificates go by the clock"))
    return _Found(answers, status)


def _health(url: str, status: Status, text: str) -> Answer:
    what = f"etcd {url}"
    if any("NOSPACE" in one for one in status.errors):
        remedy = "compact and defragment it, then etcdctl alarm disarm; deploy/etcd compacts hourly"
        return Answer(what, False, f"{text}: its quota is used up, and it takes no writes", remedy)
    if status.errors:
        return Answer(what, False, f"{text}: it says {'; '.join(status.errors)}", "etcdctl endpoint status -w table")
    if not status.leader:
        return Answer(what, False, f"{text}: it knows no leader", "start the other members, or repair their network")
    if status.version in CORRUPTING:
        return Answer(what, False, f"{text}: this version corrupts data", "upgrade etcd")
    if not _is_known(status.version):
        return Answer(what, False, f"{text}: pylb was tried with 3.4 and 3.5", "Debian's etcd-server has one of them")
    if status.database > MOST_DATABASE:
        return Answer(what, False, f"{text}: etcd's default quota is 2 GiB", "compact and defragment it, as deploy/etcd does")
    return Answer(what, True, text)


def _is_known(version: str) -> bool:
    major, minor = [*version.split("."), "", ""][:2]
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) >= OLDEST and int(major) == OLDEST[0]


def _quorum(endpoints: int, statuses: Sequence[Status]) -> Answer:
    members = len({one.member for one in statuses})
    text = f"{members} of {counted(endpoints, 'endpoint')} answer"
    if len({one.cluster for one in statuses}) > 1:
        return Answer("etcd's members", False, f"{text}, of several clusters", "endpoints of one cluster only")
    if members < endpoints and statuses:
        return Answer(
            "etcd's members", False, text, "repair the others: with one more away, new names and ports may be refused"
        )
    if members < FEWEST:
        remedy = "three members: of one or two, none may fail"
        return Answer("etcd's members", False, text, remedy)
    return Answer("etcd's members", True, text)


async def _prefix(etcd: Etcd, name: str, prefix: bytes) -> AsyncIterator[Answer]:
    """Raises EtcdError."""
    revision, items = await etcd.list(prefix)
    began = time.monotonic()
    lease = await etcd.grant(LEASE)
    key = prefix + b"doctor/" + secrets.token_hex(8).encode()
    try:
        await etcd.txn(Txn({}, leased={key: (b"", lease)}))
        took = time.monotonic() - began
        await etcd.keepalive(lease)
    finally:
        await etcd.revoke(lease)
    text = f"{counted(len(items), 'key')} below {prefix.decode()}; a lease and a write took {took * 1000:.0f} ms"
    yield Answer("etcd's keys", took < SLOW, text, "etcd needs a disk that syncs fast, and a network without detours")
    if revision > NEVER_COMPACTED and not await _is_compacted(etcd, prefix):
        remedy = "ETCD_AUTO_COMPACTION_MODE=periodic and ETCD_AUTO_COMPACTION_RETENTION=1h, as deploy/etcd has them"
        yield Answer("etcd's history", False, f"{revision:,} revisions, none of them compacted: it grows for ever", remedy)
    found = (read_pair(item.key.removeprefix(prefix).decode("utf-8", "replace"), item.value) for item in items)
    pairs = [pair for pair in found if pair is not None]
    present = {pair.key.balancer for pair in pairs if isinstance(pair.key, PresenceKey)}
    known = {
        pair.key.balancer: pair.value
        for pair in pairs
        if isinstance(pair.key, MemberKey) and isinstance(pair.value, Member) and not pair.value.forgotten
    }
    yield _balancers(name, present, known)
    for pair in pairs:
        if pair.complaint:
            yield Answer("etcd's keys", False, pair.complaint, "a newer pylb wrote it, or somebody else: pylb cluster diff")


def _balancers(name: str, present: set[str], known: dict[str, Member]) -> Answer:
    away = sorted(known.keys() - present)
    older = sorted(one for one, member in known.items() if one in present and KNOWN - member.needs)
    text = f"present: {', '.join(sorted(present)) or 'none'}" + (f"; away: {', '.join(away)}" if away else "")
    if others := [one for one in away if one != name]:
        remedy = f"start {others[0]}, or `pylb cluster forget {others[0]}` if it does not come back"
        return Answer("balancers", False, text, remedy)
    if older:
        lacking = ", ".join(sorted(KNOWN - known[older[0]].needs))
        return Answer("balancers", False, f"{text}; {older[0]} does not know {lacking}", f"upgrade pylb on {older[0]}")
    if name not in present:
        return Answer("balancers", True, f"{text}; this one, {name}, has not been started with cluster.etcd yet")
    if len(present) == 1:
        return Answer("balancers", True, f"{text}; it is alone so far")
    return Answer("balancers", True, text)


class _SeenError(Exception):
    """The oldest revision is still there."""


async def _is_compacted(etcd: Etcd, prefix: bytes) -> bool:
    def seen(_revision: int, _events: Sequence[Event]) -> None:
        raise _SeenError

    try:
        await etcd.watch(prefix, 0, seen)
    except Compacted:
        return True
    except _SeenError:
        return False
