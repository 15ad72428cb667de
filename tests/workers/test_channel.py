"""The control channel: whole frames or none, descriptors where they belong, and nothing that is not ours."""

import errno
import os
import socket
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.recorder import Attempt, Query, SessionTrace
from pylb.core.session import SessionRecord
from pylb.core.table import Server
from pylb.core.tcp_info import TcpInfo
from pylb.workers.channel import MOST_BODY, MOST_FDS, BadFrame, Channel, ChannelClosed, Frame
from pylb.workers.messages import (
    KINDS,
    VERSION,
    Applied,
    ConnectEnded,
    Drain,
    Hello,
    NumberedFrontend,
    Ready,
    Request,
    Response,
    TableChange,
    TablePart,
    decoded,
    encoded,
)
from tests.support.baseline import descriptors


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    before = descriptors()
    one, two = map(Channel, socket.socketpair())
    yield one, two
    one.close()
    two.close()
    two.close()
    assert descriptors() == before


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Channel]]:
    sock, other = socket.socketpair()
    channel = Channel(other)
    yield sock, channel
    sock.close()
    channel.close()


def pump(sender: Channel, receiver: Channel) -> list[Frame]:
    """Everything that is under way."""
    frames = []
    while True:
        sender.flush()
        frames += receiver.receive()
        if not sender.backlog:
            return frames + receiver.receive()


def test_frames_arrive_in_order_and_whole(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    bodies = [b"", b"x", os.urandom(3 << 20), b"last"]
    for kind, body in enumerate(bodies):
        one.send(kind, body)
    assert one.backlog
    frames = pump(one, two)
    assert [(frame.kind, frame.body) for frame in frames] == list(enumerate(bodies))


def test_a_frame_in_pieces_waits_for_its_end(raw: tuple[socket.socket, Channel]) -> None:
    sock, channel = raw
    ours, theirs = socket.socketpair()
    sender = Channel(ours)
    sender.send(3, b"hello")
    data = theirs.recv(4096)
    for place in range(len(data)):
        assert channel.receive() == []
        sock.send(data[place : place + 1])
    assert channel.receive() == [Frame(3, b"hello", [])]
    sender.close()
    theirs.close()


def test_a_reader_may_take_a_little_at_a_time(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    for kind in range(4):
        one.send(kind, bytes(1000))
    assert [frame.kind for frame in two.receive(1500)] == [0]
    assert [frame.kind for frame in two.receive(1500)] == [1]
    assert [frame.kind for frame in two.receive()] == [2, 3]


def test_descriptors_come_with_their_frame_also_when_it_had_to_wait(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    one.send(1, os.urandom(2 << 20))
    pipes = [os.pipe() for _ in range(3)]
    for number, (reader, writer) in enumerate(pipes):
        one.send(2, b"%d" % number, [writer])
        os.close(writer)  # the sender's copy may go at once
        os.set_blocking(reader, False)
    frames = pump(one, two)
    assert [frame.body for frame in frames[1:]] == [b"0", b"1", b"2"]
    for (reader, _), frame in zip(pipes, frames[1:], strict=True):
        [fd] = frame.fds
        assert not os.get_inheritable(fd)
        os.write(fd, b"through")
        assert os.read(reader, 10) == b"through"
        os.close(fd)
        os.close(reader)


def test_descriptors_nobody_took_are_closed_with_the_channel(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    one.send(1, os.urandom(2 << 20))
    one.send(2, b"", [0])  # waits: a duplicate of ours
    two.receive()


def no_descriptor(_fd: int) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_descriptors_that_go_at_once_cost_none(ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of open files every listening socket must still find its way."""
    one, two = ends
    with monkeypatch.context() as limit:
        limit.setattr(os, "dup", no_descriptor)
        one.send(1, b"", [0])
    [frame] = two.receive()
    os.close(frame.fds[0])


def test_without_a_descriptor_to_keep_them_both_ends_see_the_end(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a message without its descriptors, and none of them lost."""
    one, two = ends
    one.send(1, os.urandom(2 << 20))
    taken: list[int] = []
    dup = os.dup

    def one_is_left(fd: int) -> int:
        if taken:
            no_descriptor(fd)
        taken.append(dup(fd))
        return taken[0]

    with monkeypatch.context() as limit:
        limit.setattr(os, "dup", one_is_left)
        with pytest.raises(ChannelClosed, match="could not be duplicated"):
            one.send(2, b"", [0, 1])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(taken[0])
    with pytest.raises(ChannelClosed):  # what had come of the first one is no whole frame
        two.receive()


def test_the_end_comes_after_what_was_said_before_it(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    one.send(1, b"last words")
    one.close()
    assert [frame.body for frame in two.receive()] == [b"last words"]
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            two.receive()
    with pytest.raises(ChannelClosed):
        two.send(1, b"to nobody")


def test_too_much_is_refused_before_it_is_sent(ends: tuple[Channel, Channel]) -> None:
    one, two = ends
    for body, fds in ((bytes(MOST_BODY + 1), []), (b"", [0] * (MOST_FDS + 1))):
        with pytest.raises(ValueError, match="too large"):
            one.send(1, body, fds)
    assert two.receive() == []


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"LB\x01\x00\xff\xff\xff\xff\x00\x00\x00\x00",  # four gigabytes to come
        b"LB\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00x",  # another checksum
        b"LB\x01\x02\x00\x00\x00\x00\x00\x00\x00\x00",  # two descriptors, and none came
    ],
)
def test_what_is_no_frame_of_ours_is_never_guessed_at(raw: tuple[socket.socket, Channel], data: bytes) -> None:
    sock, channel = raw
    sock.send(data)
    with pytest.raises(BadFrame):
        channel.receive()


SERVER = Server("a", Address("192.0.2.1", 30443))
LISTEN = Listen("tcp", "*", 443)
STORY = SessionTrace(
    "0x1000000000007",
    SessionRecord("web", "a", "192.0.2.9", 51000, 443, 1.5, 0, -1, 2, 3, 4, "SC", 1, True, 1, 1, 1, number=7),
    "closed",
    LISTEN,
    SERVER.address,
    3,
    "leastconn",
    (Attempt("a", SERVER.address, "refused", "ECONNREFUSED", 1), Attempt("", None, "waited", "", 5)),
    -1,
    "pylb",
    "no server left",
    2,
    TcpInfo("CLOSE", 0, *[None] * 15),
    None,
    (SERVER,),
)


@pytest.mark.parametrize(
    "message",
    [
        Hello(VERSION, 1, 2, 100, 10, 1 << 20, "json", 5),
        Ready(VERSION),
        Applied(7),
        ConnectEnded(LISTEN, SERVER, None),
        TablePart({3: Policy(retries=5)}, (NumberedFrontend("web", LISTEN, 3, (SERVER,)),)),
        TableChange(1, 2, (1,), (LISTEN,)),
        Request(7, "ended", None, None, Query((ip_network("192.0.2.0/24"), ip_network("::1")), "web", "", ("SC",), 1.5, 10)),
        Request(8, "trace", None, None, None, 1 << 48 | 7),
        Response(8, 0, (), (STORY,), more=True),
    ],
)
def test_a_message_arrives_as_it_was_sent(message: Any) -> None:
    assert decoded(Frame(*encoded(message), [])) == message


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (KINDS.index(Applied), b"[true]"),
        (KINDS.index(Applied), b"[1,2]"),
        (KINDS.index(Applied), b"[1"),
        (KINDS.index(Applied), b"\xff"),
        (KINDS.index(Applied), b"[" * 100_000),
        (KINDS.index(TablePart), b"[[[3,[]]],[]]"),
        (KINDS.index(Drain), b"[1" + b"0" * 400 + b",true]"),  # no float
        (len(KINDS), b"[]"),
    ],
)
def test_a_malformed_message_is_a_bad_frame(kind: int, body: bytes) -> None:
    with pytest.raises(BadFrame):
        decoded(Frame(kind, body, []))


def test_descriptors_of_the_frames_before_a_bad_one_are_closed(raw: tuple[socket.socket, Channel]) -> None:
    sock, channel = raw
    before = descriptors()
    sender = Channel(sock.dup())
    sender.send(1, b"whole", [0, 0])
    sender.send(2, b"too", [0])
    sock.send(b"garbage that is no head")
    with pytest.raises(BadFrame):
        channel.receive()
    sender.close()
    channel.close()
    assert len(descriptors()) == len(before) - 1  # the channel's own
