"""The reader of ClientHellos, with hellos made by hand and those of OpenSSL through Python's ssl."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.client_hello import MOST_BYTES, MOST_EXTENSIONS, MOST_HELLO, HelloReader, Verdict
from tests.support.hellos import GREASE, asking_for, extension, hello, records, server_name, vector

NAME = "git.example.net"
KEY_SHARE = (51, bytes(1300))  # of the size of X25519MLKEM768's


def read(data: bytes) -> tuple[Verdict, str]:
    reader = HelloReader()
    return reader.feed(data), reader.name


def in_pieces(data: bytes, ends: list[int]) -> tuple[Verdict, str]:
    """As MSG_PEEK shows it: each time all that has come so far."""
    reader = HelloReader()
    for end in [*ends, len(data)]:
        if (verdict := reader.feed(data[:end])) is not Verdict.MORE:
            break
    return verdict, reader.name


def openssl_hello(name: str | None, *, oldest: bool = False) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if oldest:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("oldest", [False, True])
def test_openssls_hello_has_the_name(oldest: bool) -> None:
    assert read(openssl_hello(NAME, oldest=oldest)) == (Verdict.NAME, NAME)


def test_openssls_hello_without_a_name() -> None:
    assert read(openssl_hello(None)) == (Verdict.NO_NAME, "")


def test_a_hello_made_by_hand_is_read() -> None:
    assert read(asking_for(NAME)) == (Verdict.NAME, NAME)


def test_every_beginning_of_a_hello_wants_more_and_the_whole_does_not() -> None:
    data = openssl_hello(NAME)
    assert {read(data[:end])[0] for end in range(len(data))} == {Verdict.MORE}


def test_byte_by_byte_is_the_same_as_at_once() -> None:
    data = asking_for(NAME, GREASE, KEY_SHARE, sizes=[1, 2, 700])
    assert in_pieces(data, list(range(len(data)))) == (Verdict.NAME, NAME)


def test_a_post_quantum_hello_is_longer_than_a_segment() -> None:
    data = records(hello(GREASE, KEY_SHARE, server_name(NAME.encode())))
    assert len(data) > 1400
    assert read(data[:1400]) == (Verdict.MORE, "")
    assert read(data) == (Verdict.NAME, NAME)


def test_a_hello_in_records_of_one_byte_is_read() -> None:
    assert read(asking_for(NAME, sizes=[1] * 1000)) == (Verdict.NAME, NAME)


def test_what_follows_the_hello_does_not_matter() -> None:
    early_data = b"\x17\x03\x03" + vector(b"GET /", 2)
    assert read(asking_for(NAME) + early_data) == (Verdict.NAME, NAME)
    assert read(records(hello(server_name(b"a.example")) + b"\x0b" * 9)) == (Verdict.NAME, "a.example")


def test_the_name_is_in_lower_case_and_its_other_bytes_stay() -> None:
    assert read(asking_for(b"GIT.Example.NET")) == (Verdict.NAME, NAME)
    assert read(asking_for(b"\xc0\x1b[2J.net\x00")) == (Verdict.NAME, "\xc0\x1b[2j.net\x00")


def test_the_first_of_several_names_counts() -> None:
    assert read(records(hello(server_name(b"one.net", b"two.net")))) == (Verdict.NAME, "one.net")
    assert read(records(hello(server_name(b"one.net"), server_name(b"two.net")))) == (Verdict.NAME, "one.net")


@pytest.mark.parametrize(
    "message",
    [
        hello(without_extensions=True),  # SSL 3.0 and TLS 1.0
        hello(),
        hello(GREASE, (16, b"\x00\x03\x02h2")),
        hello(server_name(b"")),
        hello(*((1000 + number, b"") for number in range(MOST_EXTENSIONS - 1))),
    ],
)
def test_a_hello_without_a_name(message: bytes) -> None:
    assert read(records(message)) == (Verdict.NO_NAME, "")


WHOLE = hello(server_name(NAME.encode()))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x80\x2e\x01\x03\x01",  # the hello of SSL 2.0
        b"\x00",
        b"\x16\x02",
        b"\x16\x03\x01\x00\x00",  # an empty record
        b"\x16\x03\x01\x40\x01",  # a longer record than allowed
        b"\x16\x03\x01\x00\x01\x02",  # a ServerHello
        records(WHOLE[:40]) + b"\x17\x03\x03\x00\x01\x00",  # another type of record before the hello is whole
        records(b"\x01" + vector(bytes(9), 3)),  # it ends inside the random bytes
        records(b"\x01\x00\x00\x00"),
        records(b"\x01" + vector(WHOLE[4:40], 3)),  # it ends inside
        records(b"\x01" + vector(WHOLE[4:] + b"\x00", 3)),  # more than its extensions
        records(hello((0, b""))),
        records(hello((0, b"\x00"))),
        records(hello((0, vector(b"", 2)))),
        records(hello((0, vector(b"\x00", 2)))),
        records(hello((0, vector(b"\x00" + vector(b"a", 2), 2) + b"\x00"))),
        records(hello((0, vector(b"\x00\x00\x09a", 2)))),
        records(hello(server_name(b"a.net", kind=1))),
        records(hello(*((1000 + number, b"") for number in range(MOST_EXTENSIONS)))),
    ],
)
def test_whatever_is_no_hello_needs_no_further_bytes(data: bytes) -> None:
    assert read(data) == (Verdict.NOT_TLS, "")


def test_extensions_that_lead_out_of_the_hello_are_malformed() -> None:
    cut = extension(0xABCD, b"four")[:-1]
    body = hello(without_extensions=True)[4:] + vector(cut, 2)
    assert read(records(b"\x01" + vector(body, 3))) == (Verdict.NOT_TLS, "")


def test_the_longest_hello_is_read_and_a_longer_one_is_not() -> None:
    padding = MOST_HELLO + 4 - len(hello(server_name(NAME.encode()), (21, b"")))
    longest = hello((21, bytes(padding)), server_name(NAME.encode()))
    assert len(longest) == MOST_HELLO + 4
    data = records(longest, [1 << 14])
    assert len(data) < MOST_BYTES
    assert read(data) == (Verdict.NAME, NAME)
    assert read(records(hello((21, bytes(padding + 1)), server_name(NAME.encode())), [1 << 14])[:9]) == (Verdict.TOO_LONG, "")


def test_a_long_hello_in_very_many_records_is_too_long() -> None:
    data = records(hello((21, bytes(12_000))), [2] * 10_000)
    assert read(data[: MOST_BYTES - 1]) == (Verdict.MORE, "")
    assert read(data[:MOST_BYTES]) == (Verdict.TOO_LONG, "")


SIZES = st.lists(st.integers(1, 300), max_size=12)
EXTENSIONS = st.lists(st.tuples(st.integers(1, 65535), st.binary(max_size=60)), max_size=8)


@given(name=st.binary(min_size=1, max_size=255), before=EXTENSIONS, after=EXTENSIONS, sizes=SIZES, cuts=SIZES)
def test_any_hello_is_read_however_it_is_cut(
    name: bytes, before: list[tuple[int, bytes]], after: list[tuple[int, bytes]], sizes: list[int], cuts: list[int]
) -> None:
    data = records(hello(*before, server_name(name), *after), sizes)
    ends = sorted(sum(cuts[: number + 1]) for number in range(len(cuts)))
    assert in_pieces(data, [end for end in ends if end < len(data)]) == (Verdict.NAME, name.lower().decode("latin-1"))


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=6))
def test_pieces_never_change_the_verdict(data: bytes, cuts: list[int]) -> None:
    data = b"\x16\x03\x01" + data
    assert in_pieces(data, sorted(cuts)) == read(data)


def test_each_byte_is_looked_at_once() -> None:
    """However many pieces there are: the reader stores no more than the message, and every byte enters it once."""
    data = asking_for(NAME, (21, bytes(8000)), sizes=[900] * 8)
    reader = HelloReader()
    added = 0
    for end in range(1, len(data)):
        before = len(reader._message)
        assert reader.feed(data[:end]) is Verdict.MORE
        added += len(reader._message) - before
        assert reader._seen <= end
    assert added == len(reader._message) < len(data)
