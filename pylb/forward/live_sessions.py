"""The live sessions of an engine: the fresh ones, and the groups in which the others are swept.

Most connections are over before the next tick. So a session that begins or dials is only put among the fresh ones. What it
needs if it lasts is done by the tick (timers.py) for those that are still there: SO_LINGER on the server's socket, the deadline
of the dial, a place in a sweep.
"""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain

from pylb.forward.session import Session


class SweepGroup:
    """Sessions that are each visited once in `period` seconds, in the order of their last visit."""

    __slots__ = ("owed", "period", "sessions")

    def __init__(self, period: float, sessions: OrderedDict[Session, None]) -> None:
        self.period = period
        # A plain dict finds its first key by walking over all entries deleted before it.
        self.sessions = sessions
        self.owed = 0.0  # visits that are due, a fraction included


class LiveSessions:
    """A session is in exactly one place: its sweep group, or without one, `fresh`."""

    def __init__(self, period: float) -> None:
        """`period`: seconds in which a session is visited once, unless short timeouts require more visits."""
        self.fresh: dict[Session, None] = {}
        self.whole = SweepGroup(period, OrderedDict())
        self.short: dict[float, SweepGroup] = {}  # groups for short timeouts, by period

    def __iter__(self) -> Iterator[Session]:
        return chain(self.fresh, *(group.sessions for group in self.groups()))

    def __len__(self) -> int:
        return len(self.fresh) + sum(len(group.sessions) for group in self.groups())

    def __contains__(self, session: object) -> bool:
        if not isinstance(session, Session):
            return False
        return session in (self.fresh if session.sweep_group is None else session.sweep_group.sessions)

    def groups(self) -> tuple[SweepGroup, ...]:
        return (self.whole, *self.short.values())

    def remove(self, session: Session) -> None:
        if session.sweep_group is None:
            del self.fresh[session]
        else:
            del session.sweep_group.sessions[session]

    def move(self, session: Session, group: SweepGroup | None) -> None:
        """To the end of that group, or None: the next tick looks at it as at a new one."""
        self.remove(session)
        session.sweep_group = group
        (self.fresh if group is None else group.sessions)[session] = None
