"""SO_LINGER: whatever ends this process, `kill -9` included, the kernel sends RST and not a FIN.

A FIN would make half of a stream look like all of it. Clients' sockets inherit the option from their listener. Sockets towards
servers do not: setting it at the dial, and clearing it before an orderly close, are two system calls that most connections
do not live long enough to need. So a new one is armed by the next tick, at most 200 ms later, or by the first full read from
its client: what is being uploaded is worth it by then. Until that an end by reset arms the socket first, and an orderly close
has nothing to clear.
"""

from pylb.forward import sockets
from pylb.forward.session import Half


def arm(half: Half) -> None:
    """Idempotent."""
    if not half.armed:
        half.armed = True
        sockets.arm(half.sock)


def change(half: Half) -> None:
    """Its socket is about to be closed, and not in the way for which it is armed, or not armed."""
    if half.armed:
        sockets.disarm(half.sock)
    else:
        sockets.arm(half.sock)
