"""What the kernel knew about a TCP connection: the bytes of TCP_INFO (tcp(7)) as named numbers, and in words.

The layout is struct tcp_info of linux/tcp.h. It has only ever grown at its end, so an older kernel gives fewer bytes, and the
missing fields are None.
"""

from struct import Struct
from typing import NamedTuple

from pylb.core.text import counted

SIZE = 192  # bytes asked for: up to tcpi_sndbuf_limited

_STATES = (  # include/net/tcp_states.h, from 1 on
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
)
_U8, _U32, _U64 = Struct("=B"), Struct("=I"), Struct("=Q")


class TcpInfo(NamedTuple):
    """Times in microseconds. The peer is the other end of the connection."""

    state: str
    retransmits: int  # of the segment that is unanswered right now
    rto: int | None
    unacked: int | None  # segments on their way
    lost: int | None  # those of them that the kernel believes lost
    pmtu: int | None  # bytes
    rtt: int | None
    rttvar: int | None
    snd_cwnd: int | None  # segments
    total_retrans: int | None  # segments sent again over the connection's whole life
    bytes_acked: int | None  # bytes that the peer has confirmed
    bytes_received: int | None
    notsent_bytes: int | None  # in the kernel, not sent yet
    min_rtt: int | None
    busy_time: int | None  # time with something to send; parts of it:
    rwnd_limited: int | None  # while the peer's window was closed
    sndbuf_limited: int | None  # while our send buffer was full


# In the order of the fields after `retransmits`.
_PLACES = (
    (_U32, 8),
    (_U32, 24),
    (_U32, 32),
    (_U32, 60),
    (_U32, 68),
    (_U32, 72),
    (_U32, 80),
    (_U32, 100),
    (_U64, 120),
    (_U64, 128),
    (_U32, 144),
    (_U32, 148),
    (_U64, 168),
    (_U64, 176),
    (_U64, 184),
)


def parse_tcp_info(data: bytes) -> TcpInfo | None:
    """None: the kernel gave nothing."""
    if len(data) < 3:
        return None
    state = data[0]
    name = _STATES[state - 1] if 1 <= state <= len(_STATES) else f"state {state}"
    return TcpInfo(name, data[2], *(_number(data, form, place) for form, place in _PLACES))


def _number(data: bytes, form: Struct, place: int) -> int | None:
    if len(data) < place + form.size:
        return None
    found: int = form.unpack_from(data, place)[0]
    return found


def in_words(info: TcpInfo) -> str:
    """First what people want to know first: how far away, how lossy, its current state; then what held it up."""
    parts = [info.state]
    if info.rtt:
        parts.append(f"rtt {_ms(info.rtt)} ms" + (f" ± {_ms(info.rttvar)}" if info.rttvar else ""))
    if info.total_retrans is not None:
        parts.append(counted(info.total_retrans, "retransmit"))
    if info.lost:
        parts.append(f"{counted(info.lost, 'segment')} lost")
    if info.unacked:
        parts.append(f"{counted(info.unacked, 'segment')} unacknowledged")
    if info.notsent_bytes:
        parts.append(f"{counted(info.notsent_bytes, 'byte')} not sent")
    if info.retransmits:
        parts.append(f"the last one sent {counted(info.retransmits, 'time')} again without an answer")
    if info.snd_cwnd:
        parts.append(f"cwnd {info.snd_cwnd}")
    if info.pmtu:
        parts.append(f"path MTU {info.pmtu}")
    for limited, what in ((info.rwnd_limited, "its window was shut"), (info.sndbuf_limited, "the send buffer was full")):
        if limited and info.busy_time:
            parts.append(f"{what} for {_ms(limited)} of {_ms(info.busy_time)} ms of sending")
    return ", ".join(parts)


def _ms(microseconds: int) -> str:
    return f"{microseconds / 1000:.1f}" if microseconds >= 1000 else f"{microseconds / 1000:.2g}"
