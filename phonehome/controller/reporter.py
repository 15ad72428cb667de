"""Tells the API server: the status of each Service, and events. A thread of its own, so that an API server that hangs
delays nothing that pylb is asked for. Also asks about single Services that a list lacks.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import quote

from phonehome.client import CallError
from phonehome.controller import objects, status
from phonehome.controller.events import FAILED, REPEAT, Event, Events, document
from phonehome.controller.kube import Api, ApiError
from phonehome.controller.objects import Ingress, Service
from phonehome.controller.pace import Pace
from phonehome.controller.watch import Log
from phonehome.schedule import Uniform

ABOUT_ONE = (400, 404, 409, 422)  # answers that concern one object: the others go on
EVERY = 60.0  # seconds between two looks at what is due, if nothing changes


class Report(NamedTuple):
    """What one Service should show. `ingress` None: its status is not ours to write."""

    service: Service
    ingress: tuple[Ingress, ...] | None
    events: tuple[Event, ...]


class Reporter(threading.Thread):
    def __init__(self, api: Api, log: Log, uniform: Uniform, answered: Callable[[str, bool | None], None]) -> None:
        """`answered(key, exists)` is called with the answer to a question; None: there was none."""
        super().__init__(name="reporter", daemon=True)
        self._api, self._log, self._answered = api, log, answered
        self._changed = threading.Condition()
        self._reports: Mapping[str, Report] = {}
        self._questions: tuple[str, ...] = ()
        self._version = 0
        self._stopping = False
        self._pace = Pace(uniform)
        self._said = ""
        self._server = status.Server()
        self._rewrites = status.Rewrites()
        self._events = Events()
        self._refused: dict[str, tuple[tuple[Ingress, ...], float]] = {}  # uid -> a status the API server refuses, until when
        self._stored: dict[str, tuple[str, tuple[Ingress, ...]]] = {}  # uid -> version and content of our last PATCH

    def update(self, reports: Mapping[str, Report], questions: tuple[str, ...]) -> None:
        with self._changed:
            self._reports, self._questions = reports, questions
            self._version += 1
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def run(self) -> None:
        seen, wait = 0, EVERY
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._version != seen, wait)  # noqa: B023  used at once
                if self._stopping:
                    return
                seen, reports, questions = self._version, self._reports, self._questions
                self._questions = ()
            retry = self._turn(reports, questions)
            wait = EVERY
            if retry is not None:
                with self._changed:  # a change does not shorten the wait after a failure
                    if self._changed.wait_for(lambda: self._stopping, retry):
                        return
                wait = 0.0

    def _turn(self, reports: Mapping[str, Report], questions: tuple[str, ...]) -> float | None:
        """Everything that is due now. Returns how long to wait before the next try, if one failed."""
        try:
            for key in questions:
                self._ask(key)
            for work in (self._status, self._tell):  # events are of use to people, who have more time than clients
                for report in reports.values():
                    if self._stopping:
                        return None
                    work(report)
        except (ApiError, CallError) as exc:
            hint = exc.hint
            self._say(f"Kubernetes API, status and events: {exc}" + (f" ({hint})" if hint else ""))
            return self._pace.next_wait(exc.wait if isinstance(exc, ApiError) else None)
        except Exception as exc:  # noqa: BLE001  the task boundary
            self._say(f"status and events: internal error: {type(exc).__name__}: {exc}")
            return self._pace.next_wait()
        self._pace.progressed()
        self._said = ""
        uids = {report.service.uid for report in reports.values()}
        self._events.forget_all_but(uids)
        self._rewrites.forget_all_but(uids)
        for table in (self._stored, self._refused):
            for uid in [uid for uid in table if uid not in uids]:
                del table[uid]
        return None

    def _ask(self, key: str) -> None:
        namespace, _, name = key.partition(".")
        exists: bool | None = None
        try:
            self._api.get(_path(namespace, name))
            exists = True
        except ApiError as exc:
            if exc.status != 404:
                raise
            exists = False
        finally:
            self._answered(key, exists)

    def _status(self, report: Report) -> None:
        service = self._as_known(report.service)
        self._rewrites.shown(service)
        if report.ingress is None or self._rewrites.has_given_up(service.uid):
            return
        refused, until = self._refused.get(service.uid, ((), 0.0))
        if refused == report.ingress and time.monotonic() < until:
            return
        if self._server.same(service.ingress, report.ingress, time.monotonic()):
            self._events.known(service.uid)
        else:
            self._write(service, report.ingress)

    def _tell(self, report: Report) -> None:
        service, events = report.service, report.events
        if self._rewrites.has_given_up(service.uid):
            text = "another controller has replaced the status three times: it is left to that one. Set loadBalancerClass"
            events = (*events, Event(FAILED, text))
        for event in self._events.due(service.uid, events, time.monotonic()):
            try:
                self._post(service, event)
            except (ApiError, CallError):
                self._events.not_sent(service.uid, event)
                raise

    def _as_known(self, service: Service) -> Service:
        """The watch may show our own PATCH later: until then the answer to it counts."""
        version, ingress = self._stored.get(service.uid, ("", ()))
        if version.isdigit() and service.version.isdigit() and int(service.version) < int(version):
            return service._replace(ingress=ingress)
        self._stored.pop(service.uid, None)
        return service

    def _write(self, service: Service, ingress: tuple[Ingress, ...]) -> None:
        try:
            answer = self._api.patch(_path(service.namespace, service.name) + "/status", status.patch(ingress))
        except ApiError as exc:
            if not _is_about_one(exc):
                raise
            # 404: it was deleted meanwhile. 409: somebody else changed it so often that the API server gave up. Both show in
            # the watch, and the second is tried again with the next look in any case.
            if exc.status not in (404, 409):
                self._log(f"Kubernetes API, status of {service.key}: {exc}")
                self._refused[service.uid] = ingress, time.monotonic() + REPEAT
            return
        stored = objects.service(answer)
        self._server.stored(ingress, stored.ingress, time.monotonic())
        self._rewrites.written(service.uid, stored.ingress)
        self._stored[service.uid] = stored.version, stored.ingress

    def _post(self, service: Service, event: Event) -> None:
        stamp = dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: UP017  Python 3.9
        path = f"/api/v1/namespaces/{quote(service.namespace, safe='')}/events"
        try:
            self._api.post(path, document(service, event, stamp, uuid.uuid4().hex[:16]))
        except ApiError as exc:
            if not _is_about_one(exc):
                raise

    def _say(self, text: str) -> None:
        if text != self._said:
            self._log(text)
            self._said = text


def _is_about_one(exc: ApiError) -> bool:
    """A missing right concerns all objects. Other 403s are of one: a namespace that ends takes no events, an admission
    webhook or policy denies one change."""
    if exc.status == 403:
        return bool(exc.text) and '" cannot ' not in exc.text  # 'User "NAME" cannot patch resource …', as RBAC writes it
    return exc.status in ABOUT_ONE


def _path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/services/{quote(name, safe='')}"
