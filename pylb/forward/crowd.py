"""The last quarter of the connections is not for whoever has half of all already (`limits.source_share`).

Below that nobody is refused: a whole office behind one NAT, or another proxy in front, may have three quarters. So sources are
counted only while half of the connections are in use. From then on the count is exact at every accept, and not only at every
tick: two pylbs that send to each other fill a table between two ticks.

Those that came before are counted a few at a time, with each accept and with each tick: from a half to three quarters it takes
half as many accepts as there were sessions, so the count is whole before it is asked.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice

from pylb.core.session import State
from pylb.forward.admission import pack
from pylb.forward.counters import Counters
from pylb.forward.session import FrontendState, Session

_NETWORK = 8  # bytes of an IPv6 address that are one client: its /64
# Never refused for their share: a proxy on this machine (stunnel, nginx) carries everybody's connections, and whoever can run
# programs here needs no connection to do harm.
LOCAL = (b"\x7f", bytes(_NETWORK))  # of 127.0.0.0/8, and of ::1
_STEP = 256  # sessions, a tenth of a millisecond
_PER_ACCEPT = 8  # earlier sessions that are counted with each accept: two would do


class Crowd:
    """Of one engine, and so each worker's own, as its descriptors are."""

    def __init__(self, counters: Counters, sessions: Collection[Session]) -> None:
        self._counters = counters
        self._sessions = sessions
        self._live: Counter[bytes] = Counter()  # counted sessions, by source
        self._uncounted: Iterator[Session] = iter(())  # those that were here when the counting began
        self.counting = False  # each new session is to be counted

    def refusal(self, frontend: FrontendState, ip: str) -> str:
        """Why this client is refused, a metric's label: it has its share, and there is no room to be generous. Or "".

        To be asked while `counting`, or from the half on.
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
        """While `counting`, and once the client is known: a trusted proxy is not the client. Idempotent."""
        if session.source is None:
            session.source = source(session.address[0])
            self._live[session.source] += 1

    def leave(self, session: Session) -> None:
        """One that was counted is over. Idempotent."""
        found, session.source = session.source, None
        if found is not None:
            self._live[found] -= 1
            if not self._live[found]:
                del self._live[found]

    def tick(self) -> Iterator[int]:
        """Go on counting, or stop. Yields how many were counted since the last step."""
        if not self.counting:
            return
        if self._counters.open_sessions * 8 < self._counters.max_connections * 3:  # well below the half: it may come and go
            # Who is counted stays so, and is found counted when it begins again.
            self.counting, self._uncounted = False, iter(())
        while counted := self._count(_STEP):
            yield counted

    def _count(self, most: int) -> int:
        """How many were looked at: 0, and all are counted."""
        looked = 0
        for session in islice(self._uncounted, most):
            looked += 1
            if session.state is not State.CLOSED and session.state is not State.AWAITING_HEADER:
                self.enter(session)
        return looked


def source(ip: str) -> bytes:
    """What one client is: an IPv4 address, or the first half of an IPv6 one."""
    packed = pack(ip)
    return packed if len(packed) == 4 else packed[:_NETWORK]
