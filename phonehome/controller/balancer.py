"""One pylb: a thread that makes it have what is wanted. What to say next is decided in work.py."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from phonehome.client import CallError, Cancel, Client
from phonehome.controller import sets
from phonehome.controller.desired import PortKey, Wanted
from phonehome.controller.watch import Changes, Log
from phonehome.controller.work import DELETE, LOOK, TTL, Job, Work
from phonehome.credentials import Credentials
from phonehome.message import Refused, Reply, Request
from phonehome.schedule import Uniform
from phonehome.settings import Settings
from phonehome.values import Endpoint

MOST_NAMES = 1024 * 1024  # bytes of the answer to "what do you have of ours"
NEWER = " (another controller, which knows a newer version of the Service, has it)"
REMIND = 600.0  # seconds between two lines about the same trouble


class View(NamedTuple):
    """What this pylb serves for one Service, for the Service's status and events."""

    open: frozenset[PortKey]
    refused: Mapping[PortKey, Refused]
    trouble: str  # of all ports that are not open
    error: str  # its code
    known: bool  # whether this pylb has said anything about it to this process
    refused_whole: bool = False  # `trouble` is pylb's refusal of its last call: what it has is older than what is wanted
    silent: Mapping[PortKey, str] = MappingProxyType({})  # open ports of which no server accepts a connection, and why


class Balancer(threading.Thread):
    """`changes` is noted when there is something new to show; never while `_lock` is held, because its readers take that."""

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint,
        context: ssl.SSLContext | None,
        changes: Changes,
        *,
        log: Log,
        uniform: Uniform,
    ) -> None:
        super().__init__(name=endpoint.label, daemon=True)
        self.label = endpoint.label
        self._client = Client(endpoint, settings.address, context)
        self._credentials = Credentials(settings, endpoint, context, log)
        self._work = Work(uniform)
        self._changes, self._log = changes, log
        self._lock = threading.Condition()  # of all that follows
        self._aimed = 0  # counts the calls of `aim`
        self._stopping = False
        self._cancel = Cancel()
        self._said: dict[str, tuple[str, float]] = {}  # name -> the last line about it, and when

    # ------------------------------------------------------------ for other threads

    def aim(self, wanted: Mapping[str, Wanted], release: Iterable[str]) -> None:
        with self._lock:
            self._work.aim(wanted, release)
            self._aimed += 1
            self._lock.notify_all()

    @property
    def names(self) -> frozenset[str]:
        with self._lock:
            return self._work.names

    def view(self, name: str) -> View:
        with self._lock:
            return self._view(name)

    def _view(self, name: str) -> View:
        record = self._work.records.get(name)
        if record is None:
            return View(frozenset(), {}, self._work.trouble, "pending", known=False)
        if record.trouble is None:
            known = record.said is not None
            return View(record.open, dict(record.refused), self._work.trouble, "pending", known, silent=record.silent)
        why = record.trouble
        return View(record.open, dict(record.refused), explained(why), why.error, known=True, refused_whole=True)

    def stop(self) -> None:
        """Nothing is said: the registrations live on, for the next controller."""
        with self._lock:
            self._stopping = True
            self._lock.notify_all()
        self._cancel.abort()

    # ------------------------------------------------------------ the thread

    def run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._perform(job)
            except Exception as exc:  # noqa: BLE001  the task boundary: a bug must not end the beats
                with self._lock:
                    self._work.failed(f"internal error: {type(exc).__name__}: {exc}", time.monotonic())
                self._say("", f"internal error: {type(exc).__name__}: {exc}")

    def _next(self) -> Job | None:
        with self._lock:
            while not self._stopping:
                found = self._work.next(time.monotonic())
                if isinstance(found, Job):
                    return found
                aimed = self._aimed
                self._lock.wait_for(lambda: self._stopping or self._aimed != aimed, found)  # noqa: B023  used at once
        return None

    def _perform(self, job: Job) -> None:
        try:
            reply = self._call(_request(job))
        except CallError as exc:
            if self._cancel.aborted:
                return
            self._say("", f"{exc}" + (f" ({exc.hint})" if exc.hint else ""))
            with self._lock:
                self._work.failed(str(exc), time.monotonic())
            self._changes.note()
            return
        now = time.monotonic()
        if job.kind == LOOK and reply.status in (200, 404, 405):
            with self._lock:
                before = self._work.names
                self._work.looked(sets.names(reply), now)
                found = self._work.names
            if found != before:
                self._changes.note()
            return
        outcome = sets.read(reply, time.time(), self._credentials.token)
        with self._lock:
            view = self._view(job.name)
            self._work.answered(job, outcome, now)
            after = self._view(job.name)
        if after != view or job.kind == DELETE:
            self._changes.note()
        self._tell(job, outcome, after)

    def _call(self, request: Request) -> Reply:
        self._credentials.refresh()
        self._client.use(self._credentials.pins, self._credentials.context)
        return self._client.call(request, self._credentials.token, cancel=self._cancel, most=MOST_NAMES)

    def _tell(self, job: Job, outcome: sets.Outcome, view: View) -> None:
        if isinstance(outcome.answer, Refused):
            self._say(job.name, f"refused: {explained(outcome.answer)}")
        elif job.kind == DELETE:
            self._say(job.name, "released")
            self._said.pop(job.name, None)
        else:
            ports = ", ".join(f"{port}/{protocol}" for protocol, port in sorted(view.open, key=lambda one: one[1]))
            count = len(job.wanted.servers) if job.wanted else 0
            note = NEWER if outcome.answer.result == "superseded" else ""
            self._say(job.name, f"open: {ports} on {count} {'node' if count == 1 else 'nodes'}{note}")

    def _say(self, name: str, text: str) -> None:
        """Log a trouble again only after ten minutes, and a heartbeat that changed nothing never."""
        now = time.monotonic()
        last, at = self._said.get(name, ("", 0.0))
        if text == last and (text.startswith("open") or now - at < REMIND):
            return
        self._said[name] = text, now
        self._log(f"{self.label}: " + (f"{name}: " if name else "") + text)


def _request(job: Job) -> Request:
    if job.kind == LOOK:
        return sets.get()
    if job.kind == DELETE or job.wanted is None:
        return sets.delete(job.name)
    return sets.put(job.wanted, TTL, job.without)


def explained(refused: Refused) -> str:
    text = f"{refused.error}: {refused.detail}" if refused.detail else refused.error
    return f"{text} ({refused.hint})" if refused.hint else text
