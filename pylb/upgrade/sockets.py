"""Where listening sockets come from: left to us by systemd or by the pylb before us, else bound here.

One place knows them all, so that a successor can be given every one, and systemd's fd store keeps a copy of each: whoever
connects while pylb is started anew waits instead of being refused (sd_listen_fds(3), FDSTORE in sd_notify(3)).
"""

import errno
import logging
import os
import re
import socket
from collections.abc import Iterable, Mapping
from socket import SocketType

from pylb.core.address import ANY, Listen
from pylb.forward.sockets import folded, inheritable, open_listener, share
from pylb.host.systemd import Service

log = logging.getLogger("pylb")

FIRST = 3  # the first descriptor that systemd passes


class Listeners:
    """All listening TCP sockets of this pylb, frontends' and its own. The sockets are owned by whoever asked for them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._left: dict[Listen, list[SocketType]] = {}  # to us, and not asked for yet
        self._open: dict[Listen, list[SocketType]] = {}
        self._inherited: set[SocketType] = set()  # of those left to us

    def inherit(self, descriptors: Iterable[int]) -> None:
        """Take over what somebody listened on before. What is no listening TCP socket is closed."""
        for fd in descriptors:
            try:
                sock = SocketType(-1, -1, -1, fd)
            except OSError as error:
                if error.errno != errno.EBADF:  # no socket: systemd passes what a unit told it to
                    os.close(fd)
                continue
            if not _listens(sock):
                sock.close()
                continue
            os.set_inheritable(fd, False)
            self._inherited.add(sock)
            self._left.setdefault(_listen(sock), []).append(sock)

    def open(self, listen: Listen, *, freebind: bool = False, shared: bool = False) -> SocketType:
        """A frontend's. As `open_listener`, of which there may be several if `shared`. Raises OSError."""
        sock = self._take(listen)
        if sock is None:
            sock = open_listener(listen, freebind=freebind, shared=shared)
        else:
            sock.setblocking(False)
            inheritable(sock)
            if shared:
                share(sock)
        self._note(listen, sock)
        return sock

    def twin(self, listen: Listen) -> SocketType | None:
        """The socket for IPv6 alone that was left to us beside the one for IPv4, which is open as `*`."""
        left = self._left.get(Listen(listen.protocol, "::", listen.port)) if listen.ip == ANY else None
        if not left or not any(sock.family == socket.AF_INET for sock in self._open.get(listen, ())):
            return None
        sock = self._take(Listen(listen.protocol, "::", listen.port))
        if sock is not None:
            sock.setblocking(False)
            inheritable(sock)
            self._note(listen, sock)
        return sock

    def adopt(self, listen: Listen) -> socket.socket | None:
        """The socket for an HTTP listener, if one was left to us."""
        sock = self._take(listen)
        if sock is None:
            return None
        adopted = socket.socket(fileno=sock.detach())
        adopted.setblocking(False)
        self.note(listen, adopted)
        return adopted

    def note(self, listen: Listen, sock: socket.socket) -> None:
        """An HTTP listener that was bound elsewhere."""
        self._note(listen, sock)

    def closed(self, listen: Listen) -> None:
        """Nobody is to be reached there any more: in no process that holds a copy. Idempotent."""
        for sock in self._open.pop(listen, ()):
            self._inherited.discard(sock)
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed meanwhile
            self._service.unstore(_name(listen))

    def give_back(self, listen: Listen) -> None:
        """Not all that were needed could be opened. What others may hold stays as it was, what is new is closed. Idempotent."""
        places = {listen}
        for sock in self._open.pop(listen, ()):
            if sock in self._inherited:
                places.add(place := _listen(sock))  # of two for a family each, each has its own
                self._left.setdefault(place, []).append(sock)
            else:
                sock.close()
        self._service.unstore(_name(listen))
        for place in places:
            for sock in self._left.get(place, ()):
                self._service.store(_name(place), sock.fileno())

    def forget_left(self) -> None:
        """Close what nobody has asked for since the start: ports that are not in the table any more."""
        for listen, socks in self._left.items():
            self._service.unstore(_name(listen))
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
                log.info("%s was left open for us, and is closed: nothing listens there now", listen)
            for sock in socks:
                if listen not in self._open:
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        self._left.clear()

    def store(self) -> None:
        """Everything into the fd store; what is there already is not kept twice."""
        for listen in self._open:
            self._store(listen)

    def _store(self, listen: Listen) -> None:
        for sock in self._open[listen]:
            if sock.fileno() >= 0:
                self._service.store(_name(listen), sock.fileno())

    def all(self) -> list[int]:
        """The descriptors, for a successor."""
        return [sock.fileno() for socks in self._open.values() for sock in socks if sock.fileno() >= 0]

    def _note(self, listen: Listen, sock: SocketType) -> None:
        self._open.setdefault(listen, []).append(sock)
        self._service.store(_name(listen), sock.fileno())

    def _take(self, listen: Listen) -> SocketType | None:
        places = [listen]
        if listen.ip == ANY:
            places.append(Listen(listen.protocol, "0.0.0.0", listen.port))  # of a machine without IPv6
        for place in places:
            if left := self._left.get(place):
                sock = left.pop()
                if not left:
                    del self._left[place]
                return sock
        return None


def passed(environ: Mapping[str, str]) -> list[int]:
    """The descriptors that systemd passed to this process (sd_listen_fds(3)).

    Only what came through exec: all that this process opened itself is close-on-exec (PEP 446, and libuv), such as the
    loop's own descriptors, which a wrong count would have closed.
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
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return False
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _listen(sock: SocketType) -> Listen:
    ip, port = sock.getsockname()[:2]
    if sock.family == socket.AF_INET6 and ip == "::" and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return Listen("tcp", ANY, port)
    return Listen("tcp", folded(ip), port)


def _name(listen: Listen) -> str:
    """In the fd store: no colons there."""
    return f"{listen.protocol}-{listen.ip.replace(':', '_').replace(ANY, 'any')}-{listen.port}"
