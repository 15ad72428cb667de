"""Sockets as the engine needs them: options set once, addresses in the kernel's form, the two ways to close.

`SocketType` is the C type below `socket.socket`: the same calls without the Python class around them. Creating and closing that
class costs time on every connection.
"""

import errno
import socket
import struct
import sys
from collections.abc import Callable, Container
from contextlib import suppress
from fcntl import ioctl
from socket import SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, SocketType
from termios import TIOCOUTQ
from typing import NamedTuple, Protocol

from pylb.core.address import ANY, UDP, Listen
from pylb.core.tcp_info import SIZE

# linux/in.h; the socket module has no names for them
_IP_FREEBIND = 15
_IP_BIND_ADDRESS_NO_PORT = 24
_STREAM = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC
BACKLOG = 4096  # the kernel cuts it to net.core.somaxconn (4096 since Linux 5.4)
_TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
# Bytes that the kernel buffers for a client beyond those on their way to it. Without a bound a reader that stalls holds 4 MB of
# kernel memory (net.ipv4.tcp_wmem), with this one half of that. It costs bulk transfers a tenth of their CPU, so it holds only
# until a client has shown that it reads: `unbound_unsent`.
UNSENT = 2048 * 1024
# SO_LINGER, see linger.py. shutdown(SHUT_WR) still delivers everything that was queued.
_LINGER_RESET = struct.pack("ii", 1, 0)
_LINGER_OFF = struct.pack("ii", 0, 0)
_NO_BYTES = bytes(4)
_TCP, _TCP_INFO = socket.IPPROTO_TCP, socket.TCP_INFO
_U32 = struct.Struct("=I")
_TCP_INFO_OFFSETS = (24, 140, 228)  # tcpi_unacked, tcpi_segs_in, tcpi_snd_wnd; the struct has only ever grown at its end
_TCP_INFO_SIZE = 232
_BACKLOG_END = _TCP_INFO_OFFSETS[0] + 4

NO_DESCRIPTOR = {errno.EMFILE, errno.ENFILE}

# Errors of a connection that had been established: in SYN_SENT a reset is ECONNREFUSED (tcp_reset, net/ipv4/tcp_input.c).
AFTER_ACCEPT = {errno.ECONNRESET, errno.EPIPE}


class Opener(Protocol):
    """Where the engine gets its listening sockets from."""

    def __call__(self, listen: Listen, *, freebind: bool = ...) -> SocketType:
        """Raises OSError."""


def open_each(
    listen: Listen, known: Container[Listen], open_one: Callable[[Listen], object], close_one: Callable[[Listen], None]
) -> None:
    """Open a port, or all of a range or none; `known` are those that are open. Raises OSError, which names a range's port."""
    opened: list[Listen] = []
    for one in listen.each():
        is_new = one not in known
        try:
            open_one(one)
        except OSError as error:
            for other in opened:
                close_one(other)
            if not listen.last:
                raise
            raise OSError(error.errno, f"port {one.port}: {error.strerror}") from None
        if is_new:
            opened.append(one)


def open_listener(listen: Listen, *, freebind: bool = False, shared: bool = False) -> SocketType:
    """A listening socket for clients, as `listening`; or for datagrams, see datagram_sockets.py.

    Accepted sockets inherit TCP_NODELAY, keep-alive, SO_OOBINLINE and SO_LINGER from here (not O_NONBLOCK).
    listen() is the probe for a taken port: with SO_REUSEADDR two binds both succeed. Raises OSError.
    `shared`: other processes of ours listen there too, each with its share of the clients (SO_REUSEPORT, socket(7)). Nothing is
    probed then, and a root process would silently join another service.
    """

    if listen.protocol == UDP:
        from pylb.forward.datagram_sockets import open_datagram_listener  # noqa: PLC0415 - a pylb without UDP has none of it

        return open_datagram_listener(listen, freebind=freebind, shared=shared)

    def prepare(sock: SocketType) -> None:
        if shared:
            share(sock)
        if freebind and listen.ip != ANY:
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # IPv6 sockets look at the same flag (ip(7); measured)
        inheritable(sock)

    return listening(listen, prepare, BACKLOG)


def listening(listen: Listen, prepare: Callable[[SocketType], None], backlog: int) -> SocketType:
    """Bind and listen, non-blocking. `*` is one dual-stack socket, or IPv4 alone where the kernel has no IPv6.

    `prepare` sets the options that a socket must have before it is bound. Raises OSError.
    """
    if listen.ip != ANY:
        return _listening(socket.AF_INET6 if ":" in listen.ip else socket.AF_INET, (listen.ip, listen.port), prepare, backlog)
    try:
        return _listening(socket.AF_INET6, ("::", listen.port), prepare, backlog, dual_stack=True)
    except OSError as error:
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
            raise
        return _listening(socket.AF_INET, ("0.0.0.0", listen.port), prepare, backlog)


def _listening(
    family: int, address: tuple[str, int], prepare: Callable[[SocketType], None], backlog: int, *, dual_stack: bool = False
) -> SocketType:
    sock = SocketType(family, _STREAM, 0)
    try:
        sock.setsockopt(SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
        prepare(sock)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def share(sock: SocketType) -> None:
    """Allow our other processes to listen there too. Also works on a socket that already listens (measured, Linux 6.18)."""
    sock.setsockopt(SOL_SOCKET, socket.SO_REUSEPORT, 1)


def inheritable(sock: SocketType) -> None:
    """Set the options that accepted sockets are to inherit from their listener."""
    _for_life(sock)
    sock.setsockopt(SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    keep_alive(sock)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, UNSENT)


def unbound_unsent(sock: SocketType) -> None:
    """Remove the bound UNSENT (0: the system's default). Never raises: on an error the bound stays."""
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, 0)


def _for_life(sock: SocketType) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(SOL_SOCKET, socket.SO_OOBINLINE, 1)


def arm(sock: SocketType) -> None:
    """From here on a close sends a reset (SO_LINGER). Never raises: it can only fail for what is not an open socket."""
    with suppress(OSError):
        sock.setsockopt(SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


def keep_alive(sock: SocketType) -> None:
    """A dead peer is noticed after 30 s of silence and three unanswered probes, 60 s in all."""
    sock.setsockopt(SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def dial(family: int, target: tuple[str, int], source: str = "") -> tuple[SocketType | None, int]:
    """Start a non-blocking connect; or (None, errno). The outcome comes as the socket's first OUT or ERR event.

    `source`: the IP to dial from. connect chooses its port, not bind (ip(7), IP_BIND_ADDRESS_NO_PORT, also for IPv6), so that
    each pair of source and server has all ephemeral ports.
    """
    try:
        sock = SocketType(family, _STREAM, 0)
    except OSError as error:
        return None, error.errno or errno.EIO
    try:
        _for_life(sock)
        if source:
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
        failed = sock.connect_ex(target)
    except OSError as error:  # bind: this machine does not have the address
        failed = error.errno or errno.EADDRNOTAVAIL
    if failed in (0, errno.EINPROGRESS):
        return sock, 0
    close(sock)
    return None, failed


def connect_error(sock: SocketType) -> int:
    """Why the connect failed (SO_ERROR; reading it clears it), or 0."""
    return sock.getsockopt(SOL_SOCKET, socket.SO_ERROR)


def unacknowledged(sock: SocketType) -> int:
    """Bytes that the kernel took from us and the peer has not confirmed (SIOCOUTQ, tcp(7)): a reset now would destroy them."""
    return int.from_bytes(ioctl(sock.fileno(), TIOCOUTQ, _NO_BYTES), sys.byteorder)


# TCP states after our FIN while the peer has not confirmed it (include/net/tcp_states.h): FIN_WAIT1, LAST_ACK, CLOSING.
_FINISHING = frozenset((4, 9, 11))


def would_be_lost(sock: SocketType) -> bool:
    """Would a reset now destroy bytes on their way? Our FIN counts as one, but does not matter here.

    The peer may take 40 ms to confirm a lone FIN (a delayed acknowledgement), and the reset says all that the FIN said.
    """
    waiting = unacknowledged(sock)
    return waiting > 1 or (waiting == 1 and sock.getsockopt(_TCP, _TCP_INFO, 1)[0] not in _FINISHING)


# TCP states after the peer's FIN, the first byte of TCP_INFO (include/net/tcp_states.h): TIME_WAIT, CLOSE, CLOSE_WAIT,
# LAST_ACK, CLOSING.
_FINISHED = frozenset((6, 7, 8, 9, 11))


class Transmission(NamedTuple):
    """What the kernel knows about the path to a peer (tcp(7), TCP_INFO; struct tcp_info of linux/tcp.h)."""

    unacknowledged: int  # segments on their way
    heard: int  # segments that came from the peer, acknowledgements included
    window: int  # bytes that the peer would accept


def transmission(sock: SocketType) -> Transmission:
    """Raises OSError. A kernel before 5.4 does not report the window; it then counts as closed."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE).ljust(_TCP_INFO_SIZE, b"\0")
    return Transmission(*(_U32.unpack_from(info, offset)[0] for offset in _TCP_INFO_OFFSETS))


def backlog(listener: SocketType) -> int:
    """Clients that wait to be accepted: for a listening socket TCP_INFO has them in the same field. Raises OSError."""
    waiting: int = _U32.unpack_from(listener.getsockopt(_TCP, _TCP_INFO, _BACKLOG_END), _TCP_INFO_OFFSETS[0])[0]
    return waiting


def tcp_info(sock: SocketType) -> bytes:
    """TCP_INFO as the kernel gives it (core.tcp_info reads it); b"" if there is none."""
    try:
        return sock.getsockopt(_TCP, _TCP_INFO, SIZE)
    except OSError:
        return b""


def has_finished(sock: SocketType) -> bool:
    """Has the peer's FIN arrived, read or not?"""
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _FINISHED
    except OSError:
        return False


def disarm(sock: SocketType) -> None:
    """From here on a close sends a FIN: the kernel delivers what is still queued. Never raises."""
    try:  # by hand: a context manager costs half a microsecond, and this is paid per session
        sock.setsockopt(SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
    except OSError:
        pass  # already reset by the peer: nothing remains to be delivered


def close(sock: SocketType) -> None:
    """Idempotent. Linux frees the descriptor whatever close() answers (close(2), NOTES)."""
    try:
        sock.close()
    except OSError:
        pass  # EIO, ENOSPC: errors of files; for a socket nothing remains to be done


def folded(ip: str) -> str:
    """The text of an address from the kernel, with IPv4-mapped ones as IPv4: that is how a dual-stack listener sees them."""
    return ip[7:] if ip.startswith("::ffff:") and "." in ip else ip
