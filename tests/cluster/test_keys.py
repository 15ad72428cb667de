"""Keys and values of core/merge as etcd has them: whatever is written is read again as the same, and nothing else is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.cluster.keys import Pair, key_name, read_key, read_pair, write_value
from pylb.core.merge.values import (
    BlockKey,
    ClusterKey,
    Entry,
    EntryKey,
    Member,
    MemberKey,
    PresenceKey,
    Slot,
    Tombstone,
    TombstoneKey,
    Unreadable,
    Value,
    Wanted,
)
from pylb.core.registration import SET, Key, State, legacy_key

WEB = Key("t", "web", "pod-1")
ENTRY = Entry(Wanted("10.0.0.1", (Slot("tcp", 443),), 7, 60.0, frozenset({"names"}), "{}"), State.FRESH, 12)

names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)
words = st.sampled_from(("tcp", "udp", "names", "x-1"))
counts = st.integers(0, 2**63 - 1)
slots = st.builds(Slot, words, st.integers(1, 65535), st.sampled_from(("", "a.example", "*.example")))
registrations = st.one_of(
    st.builds(Key, names, names, st.one_of(names, st.just(SET)), st.just(0)),
    st.builds(legacy_key, names, st.integers(1, 65535)),
)
known = st.dictionaries(names, counts, max_size=3)
ips = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(str))
wanted = st.builds(
    Wanted,
    ips,
    st.lists(slots, min_size=1, max_size=3).map(tuple),
    counts,
    st.one_of(st.none(), st.floats(0.5, 1e6)),
    st.frozensets(words),
    st.text(max_size=20),
)
members = st.builds(Member, counts, known, st.frozensets(words), st.frozensets(slots, max_size=3), st.booleans(), st.booleans())
owners = st.one_of(st.tuples(names, names, st.just(False)), st.tuples(names, st.just(""), st.just(True)))


@st.composite
def blocks(draw: st.DrawFn) -> tuple[ClusterKey, Value]:
    protocol, number = draw(words), draw(st.integers(0, 255))
    ports = st.integers(max(1, number << 8), (number << 8) + 255)
    one = st.builds(Slot, st.just(protocol), ports, st.sampled_from(("", "a.example")))
    return BlockKey(protocol, number), draw(st.dictionaries(one, owners, max_size=4))


pairs = st.one_of(
    st.tuples(st.builds(MemberKey, names), members),
    st.tuples(st.builds(PresenceKey, names), st.text(max_size=10)),
    st.tuples(st.builds(EntryKey, names, registrations), st.builds(Entry, wanted, st.sampled_from(State), counts)),
    st.tuples(st.builds(TombstoneKey, registrations), st.builds(Tombstone, names, counts, known, counts)),
    blocks(),
)


@given(pairs)
def test_what_is_written_is_read_again(pair: tuple[ClusterKey, Value]) -> None:
    key, value = pair
    assert read_pair(key_name(key), write_value(value)) == Pair(key, value)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (MemberKey("lb-a"), "members/lb-a"),
        (PresenceKey("lb-a"), "presence/lb-a"),
        (EntryKey("lb-a", WEB), "entries/lb-a/t/web/pod-1"),
        (EntryKey("lb-a", legacy_key("t", 25)), "entries/lb-a/t/~legacy/tcp/25"),
        (TombstoneKey(WEB), "released/t/web/pod-1"),
        (BlockKey("tcp", 1), "claims/tcp/1"),
    ],
)
def test_names_of_keys(key: ClusterKey, name: str) -> None:
    """They never change: the balancers of one cluster may be of several versions."""
    assert key_name(key) == name
    assert read_key(name) == key


def test_the_text_of_values() -> None:
    assert write_value(ENTRY) == (
        b'{"address":"10.0.0.1","details":"{}","needs":["names"],"sequence":7,"slots":[["tcp",443,""]],"stamp":12,'
        b'"state":"fresh","ttl":60.0}'
    )
    assert write_value({Slot("tcp", 443, "a.example"): ("t", "web", False)}) == b'{"443/a.example":["t","web",false]}'
    with pytest.raises(TypeError, match="nobody writes"):
        write_value(Unreadable("x"))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "members",
            "members/",
            "members/a/b",
            "members/a b",
            "newer/x",
            "claims/tcp/256",
            "claims/tcp/01",
            "claims/tcp/-1",
        ),
        *("claims/TCP/1", "entries/a/t/web", "entries/a/t/~legacy/udp/25", "entries/a/t/~legacy/tcp/0", "released/t/web/x/y"),
        *("entries/a/t/~legacy/1", "claims/tcp/²", "presence/\x00"),
    ],
)
def test_keys_of_other_versions_are_ignored(name: str) -> None:
    assert read_key(name) is None
    assert read_pair(name, b"{}") is None


def spoilt(**changes: object) -> bytes:
    fields = json.loads(write_value(ENTRY)) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be read: Expecting value"),
        (b"[]", "it is not a JSON object"),
        (b"\xff", "codec can't decode"),
        (b'{"a":' * 50_000, "recursion"),
        (spoilt(stamp=...), "the field 'stamp' is missing"),
        (spoilt(stamp=True), "'True' is not of type int"),
        (spoilt(stamp=1.5), "is not of type int"),
        (spoilt(stamp=-1), "out of range"),
        (spoilt(stamp=2**63), "out of range"),
        (spoilt(address="10.0.0.256"), "is not an IP address"),
        (spoilt(address=7), "is not of type str"),
        (spoilt(slots=[]), "it has no ports"),
        (spoilt(slots=[["tcp", 0, ""]]), "out of range"),
        (spoilt(slots=[["tcp", 443]]), "unpack"),
        (spoilt(slots=[["tcp", 443, "A b"]]), "is not a server name"),
        (spoilt(slots={"tcp": 443}), "is not of type list"),
        (spoilt(state="gone"), "is not a valid State"),
        (spoilt(ttl=0), "out of range"),
        (spoilt(ttl=float("nan")), "NaN is not JSON"),
        (spoilt(ttl=1e300), "out of range"),
        (spoilt(needs=["\x1b"]), "is not a word"),
        (spoilt(details=None), "is not of type str"),
    ],
)
def test_an_entry_that_cannot_be_read_says_why(data: bytes, reason: str) -> None:
    pair = read_pair("entries/a/t/web/pod-1", data)
    assert pair is not None
    assert isinstance(pair.value, Unreadable)
    assert pair.complaint == pair.value.reason
    assert pair.complaint.startswith("entries/a/t/web/pod-1 in etcd cannot be read: ")
    assert reason in pair.complaint


def test_fields_of_newer_versions_are_ignored() -> None:
    assert read_pair("entries/a/t/web/pod-1", spoilt(colour="red")) == Pair(EntryKey("a", WEB), ENTRY)


def test_a_claim_that_cannot_be_read_costs_no_other() -> None:
    data = b'{"443":["t","web",false],"444":7,"25":["t","",true],"445":["t","",false],"x":["t","web",false],"446":["t","x"]}'
    pair = read_pair("claims/tcp/1", data)
    assert pair is not None
    assert pair.value == {Slot("tcp", 443): ("t", "web", False)}
    assert pair.complaint.startswith("the claim '444' of claims/tcp/1 in etcd cannot be read: '7' is not of type list; ")
