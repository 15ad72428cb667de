"""Names for failed connects: a metric's label, and what control reads. One table for traffic, probes and checks."""

import errno

REFUSED = "refused"  # the host answers, and nothing listens on the port
TIMEOUT = "timeout"
UNREACHABLE = "unreachable"  # no route to it, and any errno that the manual does not name
RESOURCE = "resource"  # a shortage on our side, which says nothing about the server

# Every errno that connect(2), tcp(7) and ip(7) name for a connect.
_NAMES = {
    errno.ECONNREFUSED: REFUSED,
    errno.ECONNRESET: REFUSED,
    errno.ECONNABORTED: REFUSED,
    errno.EPIPE: REFUSED,
    errno.ETIMEDOUT: TIMEOUT,
    errno.EHOSTUNREACH: UNREACHABLE,
    errno.EHOSTDOWN: UNREACHABLE,
    errno.ENETUNREACH: UNREACHABLE,
    errno.ENETDOWN: UNREACHABLE,
    errno.ENONET: UNREACHABLE,
    errno.EACCES: UNREACHABLE,  # a firewall or a prohibiting route
    errno.EPERM: UNREACHABLE,
    errno.EINVAL: UNREACHABLE,
    errno.EPROTO: UNREACHABLE,
    errno.EADDRINUSE: RESOURCE,
    errno.EADDRNOTAVAIL: RESOURCE,  # no local port is left, or the source address is not ours
    errno.EAFNOSUPPORT: RESOURCE,
    errno.EAGAIN: RESOURCE,  # no local port is left
    errno.EMFILE: RESOURCE,
    errno.ENFILE: RESOURCE,
    errno.ENOBUFS: RESOURCE,
    errno.ENOMEM: RESOURCE,
    errno.ENOSPC: RESOURCE,  # of epoll: more sockets than fs.epoll.max_user_watches
}


def failure_name(error: int) -> str:
    """The name of an errno."""
    return _NAMES.get(error, UNREACHABLE)
