"""SO_LINGER: whatever ends this process, `kill -9` included, the kernel sends RST and not a FIN.

A FIN would make half of a stream look like all of it. Clients' sockets inherit the option from their listener. Sockets towards
servers do not: setting it at the dial, and clearing it before an orderly close, are two system calls that most connections
do not live long enough to need. So a new one is armed by the next tick, at most 200 ms later, or by the first full read from
its client: what is being uploaded is worth it by then. Until that an end by reset arms the socket first, and an orderly close
has nothing to clear.
"""

from pylb.forward import sockets
from pylb.forward.session import Half


class Linger:
    """The servers' sockets of one engine that are not armed yet."""

    def __init__(self) -> None:
        self.unarmed: dict[Half, None] = {}

    def arm(self, half: Half) -> None:
        del self.unarmed[half]
        sockets.arm(half.sock)

    def arm_all(self) -> None:
        """Called by the tick."""
        for half in self.unarmed:
            sockets.arm(half.sock)
        self.unarmed.clear()

    def closing(self, half: Half, *, in_order: bool) -> None:
        """Its socket is about to be closed: with a FIN, or with a reset."""
        if half in self.unarmed:
            del self.unarmed[half]
            if not in_order:
                sockets.arm(half.sock)
        elif in_order:
            sockets.disarm(half.sock)
