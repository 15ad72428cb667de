"""Where listening sockets come from: passed on by systemd or by the previous pylb, else bound here.

One place knows them all, so that a successor can get every one, and systemd's fd store has a copy of each: clients that
connect while pylb restarts wait instead of being refused (sd_listen_fds(3), FDSTORE in sd_notify(3)).
"""

import errno
import logging
import os
import re
import socket
from collections.abc import Iterable, Mapping
from socket import SocketType

from pylb.core.address import ANY, TCP, UDP, Listen
from pylb.forward.sockets import folded, inheritable, open_listener, share
from pylb.host.systemd import SystemdService

log = logging.getLogger("pylb")

FIRST = 3  # the first descriptor that systemd passes


class ListeningSockets:
    """All listening sockets of this pylb, the frontends' and its own. Whoever asked for a socket owns it."""

    def __init__(self, systemd: SystemdService) -> None:
        self._systemd = systemd
        self._unclaimed: dict[Listen, list[SocketType]] = {}  # inherited, and not asked for yet
        self._open: dict[Listen, list[SocketType]] = {}
        self._inherited: set[SocketType] = set()  # those that were inherited

    def inherit(self, descriptors: Iterable[int]) -> None:
        """Take over listening sockets from systemd or the previous pylb. Close whatever neither listens nor is a bound UDP
        socket."""
        for fd in descriptors:
            try:
                sock = SocketType(-1, -1, -1, fd)
            except OSError as error:
                if error.errno != errno.EBADF:  # not a socket: systemd passes whatever a unit names
                    os.close(fd)
                continue
            if not _listens(sock):
                sock.close()
                continue
            os.set_inheritable(fd, False)
            self._inherited.add(sock)
            self._unclaimed.setdefault(_listen(sock), []).append(sock)

    def open(self, listen: Listen, *, freebind: bool = False, shared: bool = False) -> SocketType:
        """Open the socket of a frontend. Like `open_listener`; with `shared` there may be several. Raises OSError."""
        sock = self._take(listen)
        if sock is None:
            sock = open_listener(listen, freebind=freebind, shared=shared)
        else:
            if listen.protocol == UDP:
                from pylb.forward.datagram_sockets import prepare_listener  # noqa: PLC0415 - a pylb without UDP has none of it

                prepare_listener(sock, wildcard=listen.ip in (ANY, "0.0.0.0", "::"))
            else:
                sock.setblocking(False)
                inheritable(sock)
            if shared:
                share(sock)
        self._note(listen, sock)
        return sock

    def twin(self, listen: Listen) -> SocketType | None:
        """The inherited socket for IPv6 only that belongs to the one for IPv4, which is open as `*`."""
        left = self._unclaimed.get(Listen(TCP, "::", listen.port)) if listen == Listen(TCP, ANY, listen.port) else None
        if not left or not any(sock.family == socket.AF_INET for sock in self._open.get(listen, ())):
            return None
        sock = self._take(Listen(listen.protocol, "::", listen.port))
        if sock is not None:
            sock.setblocking(False)
            inheritable(sock)
            self._note(listen, sock)
        return sock

    def adopt(self, listen: Listen) -> socket.socket | None:
        """The socket for an HTTP listener, if one was inherited."""
        sock = self._take(listen)
        if sock is None:
            return None
        adopted = socket.socket(fileno=sock.detach())
        adopted.setblocking(False)
        self.note(listen, adopted)
        return adopted

    def note(self, listen: Listen, sock: socket.socket) -> None:
        """Add an HTTP listener that was bound elsewhere."""
        self._note(listen, sock)

    def closed(self, listen: Listen) -> None:
        """No process with a copy of the socket may accept clients there any more. Idempotent."""
        for sock in self._open.pop(listen, ()):
            self._inherited.discard(sock)
            _stop(sock)
            self._systemd.unstore(_name(listen))

    def give_back(self, listen: Listen) -> None:
        """Undo a failed opening. Sockets that others may hold stay as they were, new ones are closed. Idempotent."""
        places = {listen}
        for sock in self._open.pop(listen, ()):
            if sock in self._inherited:
                places.add(place := _listen(sock))  # of two for a family each, each has its own
                self._unclaimed.setdefault(place, []).append(sock)
            else:
                sock.close()
        self._systemd.unstore(_name(listen))
        for place in places:
            for sock in self._unclaimed.get(place, ()):
                self._systemd.store(_name(place), sock.fileno())

    def close_unclaimed(self) -> None:
        """Close inherited sockets that nobody has asked for since the start: their ports are not in the table any more."""
        for listen, socks in self._unclaimed.items():
            self._systemd.unstore(_name(listen))
            if (
                listen in self._open
            ):  # there were more workers before: in the store it would get its share of the clients for ever
                self._store(listen)
            elif listen.ip == "::" and Listen(listen.protocol, ANY, listen.port) in self._open:
                text = (
                    "IPv6 clients of *:%d are refused: workers share one socket, and the one for IPv6 alone is closed. In the "
                    "socket unit BindIPv6Only=both and one ListenStream=%d; or two frontends, 0.0.0.0:%d and [::]:%d"
                )
                log.error(text, *(4 * [listen.port]))
            else:
                log.info("%s was inherited and is now closed: nothing uses it any more", listen)
            for sock in socks:
                if listen not in self._open:
                    _stop(sock)
                sock.close()
        self._unclaimed.clear()

    def store(self) -> None:
        """Put everything into the fd store; what is already there is not stored twice."""
        for listen in self._open:
            self._store(listen)

    def _store(self, listen: Listen) -> None:
        for sock in self._open[listen]:
            if sock.fileno() >= 0:
                self._systemd.store(_name(listen), sock.fileno())

    def all(self) -> list[int]:
        """The descriptors of all listening sockets, for a successor."""
        return [sock.fileno() for socks in self._open.values() for sock in socks if sock.fileno() >= 0]

    def _note(self, listen: Listen, sock: SocketType) -> None:
        self._open.setdefault(listen, []).append(sock)
        self._systemd.store(_name(listen), sock.fileno())

    def _take(self, listen: Listen) -> SocketType | None:
        places = [listen]
        if listen.ip == ANY:
            places.append(Listen(listen.protocol, "0.0.0.0", listen.port))  # for a machine without IPv6
        for place in places:
            if left := self._unclaimed.get(place):
                sock = left.pop()
                if not left:
                    del self._unclaimed[place]
                return sock
        return None


def passed(environ: Mapping[str, str]) -> list[int]:
    """The descriptors that systemd passed to this process (sd_listen_fds(3)).

    Only descriptors that came through exec: all that this process opened itself are close-on-exec (PEP 446, and libuv), such as
    the loop's own ones, which a wrong count would otherwise close.
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not re.fullmatch("[0-9]{1,6}", count):  # no process has a million
        return []
    return [fd for fd in range(FIRST, FIRST + int(count)) if _came_through_exec(fd)]


def _came_through_exec(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _listens(sock: SocketType) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    if sock.type == socket.SOCK_DGRAM:
        return sock.proto in (0, socket.IPPROTO_UDP) and sock.getsockname()[1] != 0 and not _is_connected(sock)
    return sock.type == socket.SOCK_STREAM and bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _is_connected(sock: SocketType) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _stop(sock: SocketType) -> None:
    """No process with a copy may accept clients there any more.

    Not for UDP: shutdown() of a socket that is not connected fails, and epoll reports its copies for ever. There the old
    process stops reading before it hands a socket over.
    """
    if sock.type != socket.SOCK_STREAM:
        return
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # closed meanwhile


def _listen(sock: SocketType) -> Listen:
    protocol = UDP if sock.type == socket.SOCK_DGRAM else TCP
    ip, port = sock.getsockname()[:2]
    if sock.family == socket.AF_INET6 and ip == "::" and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return Listen(protocol, ANY, port)
    return Listen(protocol, folded(ip), port)


def _name(listen: Listen) -> str:
    """Its name in the fd store, where colons are not allowed."""
    return f"{listen.protocol}-{listen.ip.replace(':', '_').replace(ANY, 'any')}-{listen.port}"
