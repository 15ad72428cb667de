"""Short-lived deadlines of a session: for its PROXY header, its hello, a delayed dial, a dial, a flush.

Deadlines with the same timeout fall due in the order in which they were set, so a tick looks at the first of each timeout
instead of at all. (A dial's is set by the first tick after it. So the order may be wrong by a tick, and a deadline as late.)
Every flush is looked at on every tick all the same: no event says when the kernel has delivered.
"""

from collections.abc import Iterator
from itertools import islice

from pylb.forward.session import Session

_TAKEN = 64  # at a time: a dict finds its first key by walking over all entries deleted before it


class Deadlines:
    """The deadlines of one engine's sessions. A session has at most one at a time."""

    def __init__(self) -> None:
        self._by_timeout: dict[float, dict[Session, None]] = {}
        self.flushing: dict[Session, None] = {}

    def __len__(self) -> int:
        return len(self.flushing) + sum(map(len, self._by_timeout.values()))

    def set(self, session: Session, seconds: float, now: float) -> None:
        """Set the deadline of a header, a dial or a delayed dial. It replaces the session's previous one."""
        same = self._by_timeout.get(seconds)
        if same is None:
            same = self._by_timeout[seconds] = {}
        self._wait(session, same, now + seconds)

    def flush(self, session: Session, seconds: float, now: float) -> None:
        self._wait(session, self.flushing, now + seconds)

    def _wait(self, session: Session, among: dict[Session, None], deadline: float) -> None:
        if session.waits_among is not None:
            del session.waits_among[session]
        among[session] = None
        session.waits_among = among
        session.deadline = deadline

    def clear(self, session: Session) -> None:
        """Remove the session's deadline. Idempotent."""
        if session.waits_among is not None:
            del session.waits_among[session]
            session.waits_among = None

    def due(self, now: float) -> Iterator[Session]:
        """Headers and dials whose deadline has passed by `now`; it is removed with that."""
        for seconds, same in list(self._by_timeout.items()):
            while some := [session for session in islice(same, _TAKEN) if session.deadline <= now]:
                for session in some:
                    if session.waits_among is same:  # it may have ended meanwhile
                        self.clear(session)
                        yield session
            if not same:
                del self._by_timeout[seconds]
