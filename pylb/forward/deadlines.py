"""Deadlines that a session has for a short time: of its PROXY header, a dial that is put off, a dial, a flush.

Those with the same timeout are due in the order in which they got it, so a tick looks at the first of each timeout and not at
all that wait. A flush is looked at on every tick all the same: no event tells when the kernel has delivered.
"""

from collections.abc import Iterator
from itertools import islice

from pylb.forward.session import Session

_TAKEN = 64  # at a time: a dict finds its first key by walking over all that were deleted before it


class Deadlines:
    """A session waits for one of them at a time."""

    def __init__(self) -> None:
        self._by_timeout: dict[float, dict[Session, None]] = {}
        self.flushing: dict[Session, None] = {}

    def __len__(self) -> int:
        return len(self.flushing) + sum(map(len, self._by_timeout.values()))

    def set(self, session: Session, seconds: float, now: float) -> None:
        """Of a header, or of or before a dial. It replaces the one before."""
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
        """Idempotent."""
        if session.waits_among is not None:
            del session.waits_among[session]
            session.waits_among = None

    def due(self, now: float) -> Iterator[Session]:
        """Headers and dials whose time is over by `now`; they have no deadline any more."""
        for seconds, same in list(self._by_timeout.items()):
            while some := [session for session in islice(same, _TAKEN) if session.deadline <= now]:
                for session in some:
                    if session.waits_among is same:  # it may have ended meanwhile
                        self.clear(session)
                        yield session
            if not same:
                del self._by_timeout[seconds]
