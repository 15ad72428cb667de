"""struct tcp_info of linux/tcp.h, whole and cut short by older kernels."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.tcp_info import SIZE, TcpInfo, in_words, parse_tcp_info

CLEAN = TcpInfo("ESTABLISHED", 0, 204000, 0, 0, 1500, 3100, 800, 10, 0, 1, 2, 0, 3000, 0, 0, 0)
BARE = TcpInfo("CLOSE", 0, *[None] * 15)


def test_the_kernels_own_bytes_say_what_went_over_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"x" * 1000)
            assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000
            server.sendall(b"answer")
            assert client.recv(100) == b"answer"
            info = parse_tcp_info(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SIZE))
    assert info is not None
    assert (info.state, info.total_retrans, info.lost, info.bytes_received) == ("ESTABLISHED", 0, 0, 6)
    assert info.bytes_acked == 1001  # the SYN counts
    assert info.rtt
    assert info.snd_cwnd
    assert info.pmtu
    assert info.pmtu >= 1500


@given(st.binary(max_size=240))
def test_any_length_is_read_as_far_as_it_goes(data: bytes) -> None:
    info = parse_tcp_info(data)
    assert (info is None) == (len(data) < 3)
    if info is not None:
        assert (info.rtt is None) == (len(data) < 72)
        assert (info.sndbuf_limited is None) == (len(data) < 192)
        assert in_words(info).startswith(info.state)


def test_each_number_has_its_place() -> None:
    data = bytearray(SIZE)
    data[0], data[2] = 8, 2
    for number, place in enumerate((8, 24, 32, 60, 68, 72, 80, 100, 120, 128, 144, 148, 168, 176, 184), 1):
        data[place] = number
    assert parse_tcp_info(bytes(data)) == TcpInfo("CLOSE_WAIT", 2, *range(1, 16))


def test_a_state_without_a_name_is_a_number() -> None:
    assert parse_tcp_info(b"\x63\0\0") == TcpInfo("state 99", 0, *[None] * 15)
    assert parse_tcp_info(b"\0\0\0") == TcpInfo("state 0", 0, *[None] * 15)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (CLEAN, "ESTABLISHED, rtt 3.1 ms ± 0.8, 0 retransmits, cwnd 10, path MTU 1500"),
        (CLEAN._replace(rttvar=0, total_retrans=1), "ESTABLISHED, rtt 3.1 ms, 1 retransmit, cwnd 10, path MTU 1500"),
        (CLEAN._replace(rtt=0, snd_cwnd=0, pmtu=0, total_retrans=12), "ESTABLISHED, 12 retransmits"),
        (BARE, "CLOSE"),
        (
            BARE._replace(lost=2, unacked=3, notsent_bytes=1),
            "CLOSE, 2 segments lost, 3 segments unacknowledged, 1 byte not sent",
        ),
        (BARE._replace(retransmits=4), "CLOSE, the last one sent 4 times again without an answer"),
        (
            BARE._replace(busy_time=90_000, rwnd_limited=45_000),
            "CLOSE, its window was shut for 45.0 of 90.0 ms of sending",
        ),
        (BARE._replace(busy_time=90_000, sndbuf_limited=500), "CLOSE, the send buffer was full for 0.5 of 90.0 ms of sending"),
    ],
)
def test_it_is_told_in_words_what_was_slow_and_what_was_lost(info: TcpInfo, words: str) -> None:
    assert in_words(info) == words
