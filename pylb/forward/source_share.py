"""The last quarter of the connections is closed to a source that has half of all already (`limits.source_share`).

Below that nobody is refused: a whole office behind one NAT, or another proxy in front, may have three quarters. So sources are
counted only while half of the connections are in use. From then on the count is exact at every accept, not only at every
tick: two pylbs that send to each other fill a table between two ticks.

Sessions that are older than the count are added to it a few at a time, at each accept and at each tick. From half to three
quarters it takes half as many accepts as there were sessions, so the count is complete before it is needed.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice

from pylb.core.session import State
from pylb.forward.admission import pack
from pylb.forward.counters import Counters
from pylb.forward.session import FrontendState, Session

_NETWORK = 8  # bytes of an IPv6 address that identify one client: its /64
# Never refused for their share: a proxy on this machine (stunnel, nginx) carries everybody's connections, and whoever can
# run programs here needs no connection to do harm.
LOCAL = (b"\x7f", bytes(_NETWORK))  # 127.0.0.0/8, and ::1
_STEP = 256  # sessions, about a tenth of a millisecond
_PER_ACCEPT = 8  # older sessions that are counted at each accept; two would be enough


class SourceShare:
    """The count of one engine. Each worker has its own, as it has its own descriptors."""

    def __init__(self, counters: Counters, sessions: Collection[Session]) -> None:
        self._counters = counters
        self._sessions = sessions
        self._live: Counter[bytes] = Counter()  # counted sessions, by source
        self._uncounted: Iterator[Session] = iter(())  # sessions that are older than the count
        self.counting = False  # new sessions have to be counted

    def refusal(self, frontend: FrontendState, ip: str) -> str:
        """Why this client is refused (a metric's label): its source has its share, and connections are scarce. Or "".

        Call it while `counting`, or once half of the connections are in use.
        """
        most, used = self._counters.max_connections, self._counters.open_sessions
        if not self.counting:
            if used * 2 < most:
                return ""
            self.counting, self._uncounted = True, iter(list(self._sessions))
        self._count(_PER_ACCEPT)
        share = frontend.frontend.policy.limits.source_share
        if used * 4 < most * 3 or share == 100:
            return ""
        client = source(ip)
        return "source_share" if self._live[client] * 100 >= share * most and not client.startswith(LOCAL) else ""

    def enter(self, session: Session) -> None:
        """Count a session, while `counting` and once its client is known: a trusted proxy is not the client. Idempotent."""
        if session.source is None:
            session.source = source(session.address[0])
            self._live[session.source] += 1

    def leave(self, session: Session) -> None:
        """Uncount a session that is over. Idempotent."""
        found, session.source = session.source, None
        if found is not None:
            self._live[found] -= 1
            if not self._live[found]:
                del self._live[found]

    def tick(self) -> Iterator[int]:
        """Go on counting, or stop. Yields how many sessions were counted in each step."""
        if not self.counting:
            return
        if self._counters.open_sessions * 8 < self._counters.max_connections * 3:  # well below half, so that it does not flap
            # Sessions that are counted stay counted, for the next time that counting begins.
            self.counting, self._uncounted = False, iter(())
        while counted := self._count(_STEP):
            yield counted

    def _count(self, most: int) -> int:
        """Look at up to `most` older sessions. Returns at how many; 0: all are counted."""
        looked = 0
        for session in islice(self._uncounted, most):
            looked += 1
            if session.state is not State.CLOSED and session.state is not State.AWAITING_HEADER:
                self.enter(session)
        return looked


def source(ip: str) -> bytes:
    """The key of a client's source: its IPv4 address, or the first half of its IPv6 address."""
    packed = pack(ip)
    return packed if len(packed) == 4 else packed[:_NETWORK]
