"""What to say to one pylb next, and what it has of ours. Pure: the clock and randomness are arguments.

Order: releases first, then registrations that ask for no new port, then the others, so that a port which passes from one
Service to another is free when its new owner asks for it. Beats come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from phonehome.controller.desired import PortKey, Wanted
from phonehome.controller.pace import Pace
from phonehome.controller.sets import Outcome
from phonehome.message import Accepted, Refused
from phonehome.schedule import Uniform

TTL = 900  # seconds: the death of the controller changes nothing for so long
LOOK_EVERY = 60.0  # seconds between two looks at what pylb has of ours
REFUSED_AGAIN = (30.0, 60.0)  # seconds until a refused port is tried again, at random
SILENT_AGAIN = (30.0, 60.0)  # seconds until a registration is repeated of which no server answers, at random
MOST_REFUSED = 300.0  # seconds until a registration that was refused as a whole is tried again

OLD = "this pylb cannot take the servers of a port in one call: it needs a newer version"

LOOK, PUT, DELETE = "look", "put", "delete"


class Job(NamedTuple):
    kind: str
    name: str = ""
    wanted: Wanted | None = None
    without: frozenset[PortKey] = frozenset()


class Record:
    """One registration at this pylb."""

    __slots__ = ("due", "open", "pace", "refused", "retry_at", "said", "silent", "tried", "trouble")

    def __init__(self, uniform: Uniform) -> None:
        self.said: Wanted | None = None  # what pylb last accepted
        self.open: frozenset[PortKey] = frozenset()
        self.refused: dict[PortKey, Refused] = {}
        self.retry_at = 0.0  # for these ports
        self.silent: Mapping[PortKey, str] = {}  # open ports of which no server accepts a connection, and why that may be
        self.trouble: Refused | None = None  # of the whole call
        self.tried: Wanted | None = None  # and with which content
        self.due = 0.0
        self.pace = Pace(uniform, MOST_REFUSED)


class Work:
    def __init__(self, uniform: Uniform) -> None:
        self._uniform = uniform
        self._pace = Pace(uniform)
        self._wanted: Mapping[str, Wanted] = {}
        self._release: frozenset[str] = frozenset()
        self._look_at = 0.0
        self._blocked_until = 0.0
        self._generation = 0
        self.trouble = ""  # why no call works; "" if calls work
        self.records: dict[str, Record] = {}
        self.strangers: frozenset[str] = frozenset()  # of our token, and not made since this process started

    @property
    def names(self) -> frozenset[str]:
        """What this pylb may have of ours."""
        return self.strangers | self.records.keys()

    def aim(self, wanted: Mapping[str, Wanted], release: Iterable[str]) -> None:
        """A registration that is in neither stays as it is, and so does one without servers."""
        self._wanted, self._release = wanted, frozenset(release)

    def next(self, now: float) -> Job | float:
        """What to do now, or how long there is nothing to do."""
        if now < self._blocked_until:
            return self._blocked_until - now
        if now >= self._look_at:
            return Job(LOOK)
        best: tuple[int, float, Job] | None = None
        soonest = self._look_at
        for name in self._release & self.names:
            record = self.records.get(name)
            due = record.due if record and record.trouble else 0.0
            best, soonest = _better(best, soonest, (0, due, Job(DELETE, name)), now)
        for name, wanted in self._wanted.items():
            if not wanted.servers or name in self._release:
                continue
            best, soonest = _better(best, soonest, self._put(name, wanted, now), now)
        if best is None:
            return max(soonest - now, 0.0)
        if best[2].kind == PUT:
            self._record(best[2].name)  # from here on pylb may have it, whatever comes of the call
        return best[2]

    def _put(self, name: str, wanted: Wanted, now: float) -> tuple[int, float, Job]:
        record = self.records.get(name)
        if record is None:
            return 2, 0.0, Job(PUT, name, wanted)
        without = frozenset(record.refused) & wanted.ports if now < record.retry_at else frozenset()
        changed = not _same(record.said, wanted)
        grows = bool(wanted.ports - record.open - without)
        waits = _same(record.tried, wanted) if record.trouble else not changed
        return (2 if grows else 1) if changed else 3, record.due if waits else 0.0, Job(PUT, name, wanted, without)

    # ------------------------------------------------------------ answers

    def answered(self, job: Job, outcome: Outcome, now: float) -> None:
        answer = outcome.answer
        if isinstance(answer, Refused) and _concerns_all(answer):
            text = OLD if answer.status in (404, 405) else answer.detail
            self.failed(f"{answer.status} {answer.error}: {text}", now, answer.retry_after)
            return
        self._works()
        if job.kind == DELETE:
            self._deleted(job.name, answer, now)
        elif isinstance(answer, Accepted):
            self._accepted(job, answer, outcome.silent, now)
        else:
            self._refused(job, outcome, answer, now)

    def looked(self, names: frozenset[str] | None, now: float) -> None:
        """`names`: what pylb has of our token; None: it does not say (an older version)."""
        self._works()
        self._look_at = now + self._uniform(0.8, 1.0) * LOOK_EVERY
        if names is None:
            return
        self.strangers = names - self.records.keys()
        for name, record in self.records.items():
            if name not in names and record.said is not None:  # it lost its state, or somebody released it there
                record.said, record.open, record.due = None, frozenset(), now

    def failed(self, trouble: str, now: float, retry_after: float | None = None) -> None:
        """There was no answer, or one that any call would get."""
        self.trouble = trouble
        self._blocked_until = now + self._pace.next_wait(retry_after)

    def _works(self) -> None:
        self.trouble = ""
        self._pace.progressed()

    def _deleted(self, name: str, answer: Accepted | Refused, now: float) -> None:
        if isinstance(answer, Accepted):
            self.records.pop(name, None)
            self.strangers -= {name}
            return
        record = self._record(name)
        record.trouble, record.due = answer, now + record.pace.next_wait()

    def _accepted(self, job: Job, answer: Accepted, silent: Mapping[PortKey, str], now: float) -> None:
        wanted, record = job.wanted, self._record(job.name)
        if wanted is None:
            return
        record.said, record.open, record.trouble, record.tried = wanted, wanted.ports - job.without, None, None
        record.refused = {key: why for key, why in record.refused.items() if key in job.without}
        record.pace.progressed()
        third = min(TTL, answer.ttl or TTL) / 3
        record.due = now + self._uniform(0.8 * third, third)
        record.silent = silent
        if silent:  # to hear soon that they answer
            record.due = min(record.due, now + self._uniform(*SILENT_AGAIN))
        if record.refused:
            record.due = min(record.due, record.retry_at)
        if answer.generation < self._generation:  # pylb was restarted without its state
            for one in self.records.values():
                one.due = now if one is not record else one.due
        self._generation = answer.generation

    def _refused(self, job: Job, outcome: Outcome, answer: Refused, now: float) -> None:
        """Without the ports that were refused the others may be registered at once; a call that changes nothing more is
        repeated later."""
        record, wanted = self._record(job.name), job.wanted
        new = (outcome.refused_ports & wanted.ports) - job.without if wanted else frozenset()
        if wanted and new and new | job.without != wanted.ports:
            record.refused = {key: why for key, why in record.refused.items() if key in job.without}
            record.refused.update(dict.fromkeys(new, answer))
            record.retry_at, record.due = now + self._uniform(*REFUSED_AGAIN), now
            return
        record.refused, record.trouble, record.tried = {}, answer, wanted
        record.due = now + record.pace.next_wait()

    def _record(self, name: str) -> Record:
        self.strangers -= {name}
        return self.records.setdefault(name, Record(self._uniform))


def _better(
    best: tuple[int, float, Job] | None, soonest: float, found: tuple[int, float, Job], now: float
) -> tuple[tuple[int, float, Job] | None, float]:
    if found[1] > now:
        return best, min(soonest, found[1])
    return (found if best is None or found[:2] < best[:2] else best), soonest


def _same(one: Wanted | None, other: Wanted) -> bool:
    """Whether both say the same, whatever their versions: a Service changes more often than what it asks of pylb."""
    return one is not None and one._replace(sequence="") == other._replace(sequence="")


def _concerns_all(answer: Refused) -> bool:
    """Whether any call would get this answer: it is about the token, the address, or what answers there."""
    return answer.passing or answer.status in (401, 404, 405) or answer.error in ("source_forbidden", "not_pylb", "redirected")
