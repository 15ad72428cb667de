"""The checks on a client before a server is chosen for it: access list, limits per source, PROXY header.

A frontend without such checks has no `AdmissionRules`, and its sessions have no `Admission`: a feature that is off costs one
test for None.
"""

import socket
from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING

from pylb.core.access import canonical
from pylb.core.address import Address
from pylb.core.client_hello import HelloReader
from pylb.core.policy import Policy
from pylb.core.rate_limits import SourceLimiter

if TYPE_CHECKING:
    from pylb.forward.session import FrontendState


class Admission:
    """What only some sessions have: data from the PROXY header, the limits they count against, their time in the queue, the
    port of a range that was called, and on a port with routes their hello."""

    __slots__ = (
        "ahead",
        "asked",
        "called",
        "crc32c",
        "hello",
        "local",
        "path",
        "port",
        "queued_at",
        "source",
        "sources",
        "tlvs",
        "unique_id",
        "waited",
    )

    def __init__(self) -> None:
        self.sources: SourceLimiter | None = None
        self.source = b""  # the key under which `sources` counts it
        self.local: Address | None = None  # the address that the client of a PROXY header had connected to
        self.unique_id = b""
        self.path = b""  # the pylbs that it came through, according to its PROXY header
        self.tlvs, self.crc32c = b"", False  # the rest of that header
        self.queued_at = 0.0  # monotonic
        self.ahead = 0  # sessions in the queue before it
        self.waited = 0.0  # seconds in the queue
        self.called = 0  # the port that the client called, if the frontend has a range; 0: its only one
        self.hello: HelloReader | None = None  # until it has a route; so long it is not in its port's `sessions_total`
        self.asked = ""  # the server name that it asks for, safe to show; never a label of a metric
        self.port: FrontendState | None = None  # if its frontend is a route: the one of the route's port

    def leave(self) -> None:
        """Stop counting the session against its source's limits. Idempotent."""
        sources, self.sources = self.sources, None
        if sources is not None:
            sources.leave(self.source)


class AdmissionRules:
    """The checks of one frontend. It outlives a table, because the connections that it counts do."""

    def __init__(self, policy: Policy) -> None:
        self.sources: SourceLimiter | None = None
        self.update(policy)

    def update(self, policy: Policy) -> None:
        self._access = policy.access or None
        self._trusted = policy.accept_proxy.networks
        if not policy.limits.by_source:
            self.sources = None
        elif self.sources is None:
            self.sources = SourceLimiter(policy.limits)
        else:
            self.sources.limits = policy.limits

    def awaits_header(self, ip: str) -> bool:
        """Is this peer a trusted proxy, which sends a PROXY header for its clients?"""
        return bool(self._trusted) and pack(ip) in self._trusted

    def admit(self, ip: str, admission: Admission, now: float) -> str:
        """Why the client is refused (the label of a metric), or "": then it counts until `admission.leave()`."""
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


def needs_admission(policy: Policy) -> bool:
    return bool(policy.access or policy.limits.by_source or policy.accept_proxy.networks)


def pack(ip: str) -> bytes:
    """A client's address in the kernel's binary form, 4 or 16 bytes."""
    if ":" not in ip:
        return socket.inet_pton(AF_INET, ip)
    # the zone of a link-local one is the kernel's, not the client's
    return canonical(socket.inet_pton(AF_INET6, ip.partition("%")[0]))
