"""The ports that tests listen on: outside the ephemeral range, and each process that runs tests has a share of its own.

Whoever else runs tests on this machine, as another worker of xdist, another user or from another clone, has another share:
the name that a process holds is one for the whole network namespace, as ports are, and goes with the process.
20000 to 20099 are left out: whatever a fuzzer opens.
"""

import os
import random
import socket
from contextlib import ExitStack
from functools import cache
from itertools import cycle

_FIRST, _SHARES, _SIZE = 20100, 9, 1100
_NODE_PORTS = range(32700, 30000, -1)  # what a token's calls may be sent to by default


def _hold(share: int) -> bool:
    """Hold a name until this process ends, which closes the descriptor."""
    with socket.socket(socket.AF_UNIX) as holder:
        try:
            holder.bind(f"\0pylb-tests-ports-{share}")
        except OSError:
            return False
        holder.detach()
        return True


def _share() -> range:
    """The first share that nobody has; any, if all are taken, because `free_port` still checks each port."""
    share = next(filter(_hold, range(_SHARES)), os.getpid() % _SHARES)
    first = _FIRST + share * _SIZE
    return range(first, first + _SIZE)


PORTS = _share()
_random = random.Random(os.getpid())
_in_turn = cycle(_random.sample(PORTS, len(PORTS)))


def free_port() -> int:
    """A port on which nobody listens. Each is given once before any is given again."""
    for _ in PORTS:
        port = next(_in_turn)
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind(("::", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port in {PORTS}")


@cache
def refusing_port() -> int:
    """A NodePort of 127.0.0.1 that refuses connections: bound until this process ends, so that nobody else listens there."""
    holder = socket.socket()
    for port in _NODE_PORTS:
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:
            continue
        holder.detach()
        return port
    raise AssertionError(f"no free port in {_NODE_PORTS}")


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]


def ports_in_a_row(width: int) -> int:
    """The first of so many free ports in a row. Connections that ended a minute ago on one of them are no hindrance."""
    firsts = PORTS[: len(PORTS) - width]
    for first in _random.sample(firsts, len(firsts)):
        with ExitStack() as stack:
            try:
                for port in range(first, first + width):
                    probe = stack.enter_context(socket.socket())
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise AssertionError(f"no {width} free ports in a row")
