"""What a frontend asks of a client before anything is done for it: access list, limits by source, PROXY header.

A frontend that asks nothing has no door, and its sessions carry no admission: what is off costs one look at None.
"""

import socket
from socket import AF_INET, AF_INET6

from pylb.core.access import canonical
from pylb.core.address import Address
from pylb.core.policy import Policy
from pylb.core.rate_limits import Sources


class Admission:
    """What few sessions have: how they came in, how long they waited in the queue."""

    __slots__ = ("ahead", "crc32c", "local", "path", "queued_at", "source", "sources", "tlvs", "unique_id", "waited")

    def __init__(self) -> None:
        self.sources: Sources | None = None
        self.source = b""  # as counted there
        self.local: Address | None = None  # where the client of a PROXY header had connected to
        self.unique_id = b""
        self.path = b""  # the pylbs that it came through, by its PROXY header
        self.tlvs, self.crc32c = b"", False  # what else that had
        self.queued_at = 0.0  # monotonic
        self.ahead = 0  # sessions in the queue before it
        self.waited = 0.0  # seconds in the queue

    def leave(self) -> None:
        """The session is over. Idempotent."""
        sources, self.sources = self.sources, None
        if sources is not None:
            sources.leave(self.source)


class Door:
    """Of one frontend; it outlives a table, because its sources' connections do."""

    def __init__(self, policy: Policy) -> None:
        self.sources: Sources | None = None
        self.update(policy)

    def update(self, policy: Policy) -> None:
        self._access = policy.access or None
        self._trusted = policy.accept_proxy.networks
        if not policy.limits.by_source:
            self.sources = None
        elif self.sources is None:
            self.sources = Sources(policy.limits)
        else:
            self.sources.limits = policy.limits

    def awaits_header(self, ip: str) -> bool:
        """Does this peer speak for others?"""
        return bool(self._trusted) and pack(ip) in self._trusted

    def admit(self, ip: str, admission: Admission, now: float) -> str:
        """ "" and the client is counted until `admission.leave()`; else why it is refused: a metric's label."""
        address = pack(ip)
        if self._access is not None and not self._access.allows(address):
            return "access"
        sources = self.sources
        if sources is not None:
            source = sources.source(address)
            if refusal := sources.enter(source, now):
                return refusal
            admission.sources, admission.source = sources, source
        return ""


def wanted(policy: Policy) -> bool:
    return bool(policy.access or policy.limits.by_source or policy.accept_proxy.networks)


def pack(ip: str) -> bytes:
    """The address of a client as the kernel gives it, 4 bytes or 16."""
    if ":" not in ip:
        return socket.inet_pton(AF_INET, ip)
    # the zone of a link-local one is the kernel's, not the client's
    return canonical(socket.inet_pton(AF_INET6, ip.partition("%")[0]))
