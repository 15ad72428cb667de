"""Sockets of UDP: options of the listening one and of a flow's, and their ancillary data, read and made.

All of them have UDP_GRO on, so what is read may be a train: datagrams of one size (the last may be shorter), as one block. They
must be read by recvmsg, which gives that size: a plain recv, or GRO switched off while a train is queued, returns the train as
if it were one datagram.
"""

import errno
import socket
import struct
import sys
from pathlib import Path
from socket import SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOL_SOCKET, SocketType

from pylb.core.address import ANY, Listen
from pylb.forward import sockets

BUFFER = 65536  # bytes; a datagram has at most 65,527, a train 65,535
ANCILLARY = 256  # bytes; the local address and the size take 88
TRUNCATED = socket.MSG_TRUNC | socket.MSG_CTRUNC  # without its ancillary data a train would pass as one datagram

# linux/udp.h, linux/in.h, linux/in6.h, linux/socket.h; the socket module has no names for most of them
SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104
IP_PKTINFO, IPV6_PKTINFO = 8, 50
_IP_RECVERR, _IPV6_RECVERR, _IPV6_RECVPKTINFO = 11, 25, 49
_IP_FREEBIND = 15
_SO_MEMINFO, _DROPS = 55, 8  # SK_MEMINFO_DROPS of linux/sock_diag.h
_IP, _IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6

# Asked for; the kernel cuts it to net.core.rmem_max and wmem_max. A default buffer holds 256 small or 92 full datagrams.
LISTENER_BUFFER, FLOW_BUFFER = 4 << 20, 1 << 20  # bytes

_INT, _U16 = struct.Struct("=i"), struct.Struct("=H")
_PKTINFO4, _PKTINFO6 = struct.Struct("=i4s4x"), struct.Struct("=16si")
_ERROR = struct.Struct("=IB")  # ee_errno, ee_origin of struct sock_extended_err (linux/errqueue.h)
_ERRORS_AT_ONCE = 64  # a chatty network must not hold the loop

Client = tuple[str, int] | tuple[str, int, int, int]  # as recvmsg gives it
Ancillary = list[tuple[int, int, bytes]]

unpack_size = _INT.unpack
# Of sendmsg or send: segments of that size are impossible on this route. EMSGSIZE on new kernels, EINVAL on 5.10; EIO without
# checksum offload.
NO_SEGMENTS = frozenset((errno.EIO, errno.EINVAL, errno.EMSGSIZE))
FULL = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))  # a full buffer, or a full queue of the network card


def open_datagram_listener(listen: Listen, *, freebind: bool = False, shared: bool = False) -> SocketType:
    """A socket for the datagrams of clients. `*` is one dual-stack socket, or IPv4 alone where the kernel has no IPv6.

    Bound without SO_REUSEADDR: with it two binds succeed, and the last one gets everything. Raises OSError.
    `shared`: other processes of ours listen there too, each with its share of the clients (SO_REUSEPORT).
    """
    if listen.ip != ANY:
        family = socket.AF_INET6 if ":" in listen.ip else socket.AF_INET
        return _bound(family, (listen.ip, listen.port), freebind=freebind, shared=shared)
    try:
        return _bound(socket.AF_INET6, ("::", listen.port), shared=shared, dual_stack=True)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _bound(socket.AF_INET, ("0.0.0.0", listen.port), shared=shared)


def _bound(
    family: int, address: tuple[str, int], *, freebind: bool = False, shared: bool = False, dual_stack: bool = False
) -> SocketType:
    sock = SocketType(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        if shared:
            sockets.share(sock)
        if freebind:
            sock.setsockopt(_IP, _IP_FREEBIND, 1)
        prepare_listener(sock, wildcard=address[0] in ("::", "0.0.0.0"))
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare_listener(sock: SocketType, *, wildcard: bool) -> None:
    """The options of a listening socket, also of an inherited one. Not IP_RECVERR: an ICMP about one client is not for all.

    `wildcard`: it has several local addresses, so each datagram must say which one was called.
    """
    sock.setblocking(False)
    sock.setsockopt(SOL_SOCKET, socket.SO_RCVBUF, LISTENER_BUFFER)
    sock.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, LISTENER_BUFFER)
    if wildcard:
        sock.setsockopt(_IP, IP_PKTINFO, 1)  # for IPv4 clients of a dual-stack socket, too
        if sock.family == socket.AF_INET6:
            sock.setsockopt(_IPV6, _IPV6_RECVPKTINFO, 1)
    sock.setsockopt(SOL_UDP, UDP_GRO, 1)


def connect(family: int, target: tuple[str, int], source: str = "") -> tuple[SocketType | None, int]:
    """A flow's socket, connected: the kernel then matches the answers, and strangers never enter. Or (None, errno).

    EAGAIN: no local port is free. connect takes one that is unique over all destinations.
    """
    try:
        sock = SocketType(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    except OSError as error:
        return None, error.errno or errno.EIO
    try:
        sock.setsockopt(SOL_SOCKET, socket.SO_RCVBUF, FLOW_BUFFER)
        sock.setsockopt(SOL_SOCKET, socket.SO_SNDBUF, FLOW_BUFFER)
        # Without it a dead neighbour says nothing: its EHOSTUNREACH is only in the error queue.
        if family == socket.AF_INET6:
            sock.setsockopt(_IPV6, _IPV6_RECVERR, 1)
        else:
            sock.setsockopt(_IP, _IP_RECVERR, 1)
        sock.setsockopt(SOL_UDP, UDP_GRO, 1)
        if source:
            sock.bind((source, 0))
        failed = sock.connect_ex(target)
    except OSError as error:
        failed = error.errno or errno.EIO
    except BaseException:
        sock.close()
        raise
    if failed:
        sockets.close(sock)
        return None, failed
    return sock, 0


def segments(size: int) -> tuple[int, int, bytes]:
    """The ancillary item that lets the kernel cut a block into datagrams of `size` bytes."""
    return SOL_UDP, UDP_SEGMENT, _U16.pack(size)


def reply_from(local: bytes, client: Client) -> Ancillary:
    """The ancillary data that gives an answer its source: the local address that the client called, b"": the only one.

    The interface is left to the routes, except for link-local addresses, which mean nothing without it.
    """
    if len(local) == 4:
        return [(_IP, IP_PKTINFO, _PKTINFO4.pack(0, local))]
    if not local or local[0] == 0xFF:  # multicast is nobody's source
        return []
    scope = client[3] if is_link_local(local) and len(client) == 4 else 0
    return [(_IPV6, IPV6_PKTINFO, _PKTINFO6.pack(local, scope))]


def is_link_local(local: bytes) -> bool:
    """Is it in fe80::/10?"""
    return len(local) == 16 and local[0] == 0xFE and local[1] & 0xC0 == 0x80


def local_text(local: bytes, sock: SocketType) -> str:
    """The local address for people and for PROXY headers."""
    if not local:
        return sockets.folded(sock.getsockname()[0])
    return sockets.folded(socket.inet_ntop(socket.AF_INET if len(local) == 4 else socket.AF_INET6, local))


def take_error(sock: SocketType) -> int:
    """The errno that waits for the socket, or 0. Empties its error queue: what is in there would be reported for ever.

    EMSGSIZE is none: the kernel has learned the path's MTU, and fragments from now on.
    """
    found = sock.getsockopt(SOL_SOCKET, socket.SO_ERROR)
    for _ in range(_ERRORS_AT_ONCE):
        try:
            _, ancillary, _, _ = sock.recvmsg(0, ANCILLARY, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:
            break
        for level, kind, data in ancillary:
            if (level, kind) in ((_IP, _IP_RECVERR), (_IPV6, _IPV6_RECVERR)) and len(data) >= _ERROR.size:
                error = _ERROR.unpack_from(data)[0]
                if error != errno.EMSGSIZE:
                    found = found or error
    return 0 if found == errno.EMSGSIZE else found


def kernel_drops(sock: SocketType) -> int:
    """Datagrams that the kernel has dropped for this socket since it was opened, mostly because its buffer was full."""
    try:
        data = sock.getsockopt(SOL_SOCKET, _SO_MEMINFO, 4 * (_DROPS + 1))
    except OSError:
        return 0
    return int.from_bytes(data[4 * _DROPS :], sys.byteorder) if len(data) > 4 * _DROPS else 0


def local_ports(path: str = "/proc/sys/net/ipv4/ip_local_port_range") -> int:
    """How many local ports the kernel gives to sockets that do not ask for one."""
    try:
        low, high = map(int, Path(path).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return 28232  # the kernel's default
    return max(1, high - low + 1)
