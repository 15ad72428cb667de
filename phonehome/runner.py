"""A loop per load balancer, all with the same goal; the goodbye.

Threads: each loop is simply "wait, call, read the answer", one load balancer that hangs must not delay another, and blocking
calls need no asyncio in the pod's memory. The loops share only `Goal`.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable
from typing import Union

from phonehome import message, preflight
from phonehome.client import CALL_TIMEOUT, CallError, Cancel, Client
from phonehome.credentials import Credentials, tokens
from phonehome.drain_socket import DrainSocket
from phonehome.message import DRAINING, READY, Accepted, Answer, Request
from phonehome.outcome_log import OutcomeLog
from phonehome.schedule import Schedule, Uniform
from phonehome.settings import Settings
from phonehome.values import Endpoint

GRACE = 1.0  # seconds for a call under way when a goodbye is due: sent twice is better than sent out of order
GOODBYE = 3.0  # seconds for the goodbye itself; Kubernetes grants 30 for everything
GOODBYE_AGAIN = 0.5  # seconds between two attempts
PROBE_EVERY = 2.0  # seconds between two looks at PYLB_WAIT
PROBE_FALL = 2  # misses in a row: one lost SYN of a busy app is not a fault
DRAIN_ANSWER = GRACE + GOODBYE + 0.5  # seconds until `phonehome drain` gets its answer, done or not

Log = Callable[[str], None]
Outcome = Union[Answer, CallError]  # noqa: UP007  evaluated at run time: X | Y needs Python 3.10


class Caller:
    """One load balancer as the verbs see it: call it, log what is worth it, return the outcome."""

    def __init__(
        self,
        settings: Settings,
        endpoint: Endpoint,
        context: ssl.SSLContext | None,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = endpoint.label
        self._client = Client(endpoint, settings.address, context)
        self._outcome_log = OutcomeLog(endpoint.label, settings.address)
        self._credentials = Credentials(settings, endpoint, context, log)
        self._log = log
        self._clock = clock

    def ask(
        self,
        request: Request,
        state: str,
        timeout: float = CALL_TIMEOUT,
        *,
        cancel: Cancel | None = None,
        ask_dns: bool = True,
    ) -> Outcome:
        outcome: Outcome
        carried = self._credentials
        carried.refresh()
        self._client.use(carried.pins, carried.context)
        try:
            reply = self._client.call(request, carried.token, timeout, cancel=cancel, ask_dns=ask_dns)
            outcome = message.read(reply, time.time(), carried.token)
        except CallError as exc:
            outcome = exc
        lines = self._outcome_log.resolved(self._client.dns_trouble, self._client.addresses)
        if not (cancel and cancel.aborted):  # if we ended it ourselves, its failure says nothing new
            lines += self._lines(outcome, state)
        for line in lines:
            self._log(line)
        return outcome

    def _lines(self, outcome: Outcome, state: str) -> list[str]:
        now = self._clock()
        if isinstance(outcome, Accepted):
            return self._outcome_log.accepted(outcome, state, now)
        if isinstance(outcome, CallError):
            return self._outcome_log.failed(outcome.what, outcome.detail, outcome.hint, now)
        return self._outcome_log.refused(outcome, now)


def broadcast(
    settings: Settings, context: ssl.SSLContext | None, request: Request, state: str, log: Log, *, timeout: float
) -> bool:
    """One call to every load balancer at the same time; True if all of them accepted it."""
    outcomes: list[Outcome] = []

    def ask(caller: Caller) -> None:
        outcomes.append(caller.ask(request, state, timeout))  # append is atomic

    callers = [Caller(settings, endpoint, context, log) for endpoint in settings.endpoints]
    threads = [threading.Thread(target=ask, args=(caller,), daemon=True) for caller in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(outcomes) == len(callers) and all(isinstance(outcome, Accepted) for outcome in outcomes)


class Goal:
    """What every load balancer should know. `changed` guards all of it."""

    def __init__(self, *, app_up: bool) -> None:
        self.changed = threading.Condition()
        self.version = 0
        self.stopping = False
        self._app_up = app_up
        self._draining = False

    @property
    def state(self) -> str:
        return READY if self._app_up and not self._draining else DRAINING

    def set(self, *, app_up: bool | None = None, draining: bool = False, stopping: bool = False) -> None:
        """Draining and stopping are final."""
        with self.changed:
            self._app_up = self._app_up if app_up is None else app_up
            self._draining = self._draining or draining
            self.stopping = self.stopping or stopping
            self.version += 1
            self.changed.notify_all()


class Loop(threading.Thread):
    """Keeps one load balancer informed until the goal is to stop, then says goodbye."""

    def __init__(self, settings: Settings, goal: Goal, caller: Caller, schedule: Schedule, log: Log) -> None:
        super().__init__(name=caller.label, daemon=True)
        self.label = caller.label
        self.saying: str | None = None  # the state in the call under way
        self.acknowledged: str | None = None  # the state that the load balancer last accepted
        self.announced = False  # whether it may have a registration of ours; else there is nothing to undo
        self.cancel = Cancel()
        self._pause = threading.Event()  # never set: a pause between two tries of the goodbye
        self._settings, self._goal, self._caller, self._schedule, self._log = settings, goal, caller, schedule, log

    def run(self) -> None:
        seen, due = -1, self._schedule.first(time.monotonic())
        while (turn := self._wait(seen, due)) is not None:
            seen, state = turn
            due = self._beat(state)
        deadline = time.monotonic() + GOODBYE
        while self.announced and self.acknowledged != DRAINING and (left := deadline - time.monotonic()) > 0:
            if not isinstance(self._say(DRAINING, left, ask_dns=False), Accepted):
                self._pause.wait(min(GOODBYE_AGAIN, left))

    def _wait(self, seen: int, due: float) -> tuple[int, str] | None:
        """Wait until there is something to say: (version of the goal, state); None when the goal is to stop."""
        goal = self._goal
        with goal.changed:
            while not goal.stopping:
                left = due - time.monotonic()
                silent = goal.state == DRAINING and not self.announced
                changed = goal.version != seen and seen >= 0  # before the first call only its time matters
                if not silent and (changed or left <= 0):
                    return goal.version, goal.state
                goal.changed.wait(None if silent else max(left, 0.0))
        return None

    def _beat(self, state: str) -> float:
        """Call once; returns the time of the next call."""
        try:
            outcome = self._say(state, CALL_TIMEOUT)
        except Exception as exc:  # noqa: BLE001  the task boundary: a bug must not end the heartbeats
            self._log(f"{self.label}: internal error: {type(exc).__name__}: {exc}")
            return self._schedule.failed(time.monotonic())
        now = time.monotonic()
        if isinstance(outcome, Accepted):
            return self._schedule.succeeded(now, outcome.ttl)
        return self._schedule.failed(now, None if isinstance(outcome, CallError) else outcome.retry_after)

    def _say(self, state: str, timeout: float, *, ask_dns: bool = True) -> Outcome:
        with self._goal.changed:
            self.saying, self.cancel = state, Cancel()
        outcome: Outcome | None = None
        try:
            request = message.registration(self._settings, state)
            outcome = self._caller.ask(request, state, timeout, cancel=self.cancel, ask_dns=ask_dns)
        finally:
            with self._goal.changed:
                self.saying = None
                if isinstance(outcome, Accepted):
                    self.acknowledged = state
                # A refusal changed nothing there; without a connection nothing arrived; the rest is unknown.
                if isinstance(outcome, Accepted) or (isinstance(outcome, CallError) and not outcome.unsent):
                    self.announced = True
                self._goal.changed.notify_all()
        return outcome


class Runner:
    """A whole running phone-home. `uniform` is the randomness of the schedule."""

    def __init__(
        self,
        settings: Settings,
        context: ssl.SSLContext | None,
        log: Log,
        *,
        uniform: Uniform = random.uniform,
        probe_every: float = PROBE_EVERY,
    ) -> None:
        self._settings, self._log, self._probe_every = settings, log, probe_every
        self._goal = Goal(app_up=not settings.wait)
        self._drain_socket = DrainSocket(settings.name, settings.instance, lambda: tokens(settings), self.drain, log)
        self._loops: list[Loop] = []
        for endpoint in settings.endpoints:
            caller = Caller(settings, endpoint, context, log)
            self._loops.append(Loop(settings, self._goal, caller, Schedule(settings.ttl, uniform), log))
        self._helpers = [threading.Thread(target=self._drain_socket.serve, name="drain-socket", daemon=True)]
        if settings.wait:
            self._helpers.append(threading.Thread(target=self._probe, name="preflight", daemon=True))

    def start(self) -> None:
        self._drain_socket.open()
        for thread in (*self._loops, *self._helpers):
            thread.start()

    def drain(self) -> list[str]:
        """Report draining to everybody, from now on; a line per load balancer about the outcome."""
        self._log("draining on request")
        self._goal.set(draining=True)
        deadline = time.monotonic() + DRAIN_ANSWER
        self._let_finish()
        with self._goal.changed:
            self._goal.changed.wait_for(lambda: all(_drained(loop) for loop in self._loops), deadline - time.monotonic())
            return [
                f"{loop.label}: " + ("draining" if _drained(loop) else "not confirmed yet; it will be repeated")
                for loop in self._loops
            ]

    def stop(self) -> None:
        """Goodbye to everybody at the same time; returns within little more than GRACE + GOODBYE."""
        self._goal.set(stopping=True)
        deadline = time.monotonic() + GRACE + GOODBYE + 0.5
        self._let_finish()
        for loop in self._loops:
            loop.join(max(0.0, deadline - time.monotonic()))
        self._drain_socket.close()
        for helper in self._helpers:
            helper.join(max(0.0, deadline - time.monotonic()))

    def _let_finish(self) -> None:
        """A `ready` under way that arrives after the goodbye would undo it: let it finish, or end it."""
        with self._goal.changed:
            self._goal.changed.wait_for(lambda: all(loop.saying != READY for loop in self._loops), GRACE)
            late = [loop.cancel for loop in self._loops if loop.saying == READY]
        for cancel in late:
            cancel.abort()

    def _probe(self) -> None:
        up, misses = False, 0
        while not self._goal.stopping:
            silent = preflight.silent(self._settings.wait)
            misses = misses + 1 if silent else 0
            if silent and not up and misses == 1:
                self._log(f"waiting for {', '.join(silent)} to answer")
            elif silent and up and misses >= PROBE_FALL:
                up = False
                self._log(f"{', '.join(silent)} no longer answers: draining until it does")
                self._goal.set(app_up=False)
            elif not silent and not up:
                up = True
                self._log("everything in PYLB_WAIT answers")
                self._goal.set(app_up=True)
            with self._goal.changed:
                self._goal.changed.wait_for(lambda: self._goal.stopping, self._probe_every)


def _drained(loop: Loop) -> bool:
    return loop.acknowledged == DRAINING or (not loop.announced and loop.saying is None)
