"""The whole controller: watchers fill caches, a plan is made of them, every pylb gets it, and the API server hears about it.

    watch services ┐                       ┌ balancer (one for each pylb)
    watch nodes    ┘→ caches → plan() → aim┤
                                           └ reporter: status, events, questions about missing Services

Each arrow is a whole value that replaces the last one, so nothing queues up, and whatever happens twice while somebody is
busy happens once for him.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Iterable, Mapping

from phonehome.controller import objects
from phonehome.controller.balancer import Balancer, View, explained
from phonehome.controller.belief import HOLD, Missing, Nodes
from phonehome.controller.desired import Frontend, Plan, PortKey, Wanted, is_usable, plan
from phonehome.controller.events import ENSURED, FAILED, Event
from phonehome.controller.kube import Api
from phonehome.controller.objects import Node, Service
from phonehome.controller.options import Options
from phonehome.controller.reporter import Report, Reporter
from phonehome.controller.status import desired, is_to_clear
from phonehome.controller.watch import SILENCE, Cache, Changes, Kind, Log, Watcher
from phonehome.schedule import Uniform
from phonehome.settings import ReadFile

# A page must fit into memory as text and as objects at the same time. A Service is 2 KB; a node lists up to 50 images: 30 KB.
SERVICES: Kind[Service] = Kind("/api/v1/services", objects.service, 500)
NODES: Kind[Node] = Kind("/api/v1/nodes", objects.node, 50)

EVERY = 10.0  # seconds between two turns if nothing changes: what only time changes
GATHER = 0.05  # seconds in which changes are gathered into one turn: a cold start brings hundreds at once


class Controller:
    def __init__(
        self,
        options: Options,
        context: ssl.SSLContext | None,
        read_file: ReadFile,
        log: Log,
        *,
        uniform: Uniform = random.uniform,
        silence: float = SILENCE,
    ) -> None:
        self._options, self._log = options, log
        self._changes = Changes()
        self._stopping = threading.Event()
        self._services: Cache[Service] = Cache(self._changes)
        self._nodes: Cache[Node] = Cache(self._changes)
        self._missing = Missing()
        self._believed: Nodes[Node] = Nodes()
        self._wanted: Mapping[str, Wanted] = {}  # of the last turn
        self._problem = ""  # of the whole cluster, as the log has it

        def api() -> Api:
            return Api(options.access, read_file)

        self.balancers = [
            Balancer(options.settings, endpoint, context, self._changes, log=log, uniform=uniform)
            for endpoint in options.settings.endpoints
        ]
        self._reporter = Reporter(api(), log, uniform, self._answered)
        self._watchers: list[Watcher[Service] | Watcher[Node]] = [
            Watcher(SERVICES, self._services, api(), log, uniform=uniform, silence=silence),
            Watcher(NODES, self._nodes, api(), log, uniform=uniform, silence=silence),
        ]
        self._thread = threading.Thread(target=self._run, name="plan", daemon=True)

    def start(self) -> None:
        for thread in (*self._watchers, *self.balancers, self._reporter, self._thread):
            thread.start()

    def stop(self, within: float = 5.0) -> None:
        """Registrations and statuses stay as they are: another controller continues."""
        self._stopping.set()
        for one in (*self._watchers, *self.balancers, self._reporter):
            one.stop()
        self._changes.note()
        deadline = time.monotonic() + within
        for thread in (*self._watchers, *self.balancers, self._reporter, self._thread):
            thread.join(max(0.0, deadline - time.monotonic()))

    # ------------------------------------------------------------ the turn

    def _run(self) -> None:
        while not self._stopping.is_set():
            seen = self._changes.count
            try:
                self._turn(time.monotonic())
            except Exception as exc:  # noqa: BLE001  the task boundary: the last plan stays in force
                self._log(f"internal error: {type(exc).__name__}: {exc}")
            self._changes.wait(seen, EVERY)
            self._stopping.wait(GATHER)

    def _turn(self, now: float) -> None:
        with self._changes.lock:
            if not (self._services.listed and self._nodes.listed):
                return  # a part of the cluster would look like one from which the rest was removed
            services, deleted = dict(self._services.objects), frozenset(self._services.deleted)
            nodes = list(self._nodes.objects.values())
        names = frozenset().union(*(one.names for one in self.balancers))
        rules = self._options.rules
        nodes_used, doubted = self._believed.judge(((one.name, one) for one in nodes if is_usable(one, rules)), now)
        made = plan(services.values(), nodes_used, rules)
        wanted, release = self._decided(services, deleted, made, names, now)
        for one in self.balancers:
            one.aim(wanted, release)
        with self._changes.lock:
            # The others have been released everywhere. A call of the last plan may have begun since `names` was read.
            self._services.deleted -= deleted - names - self._wanted.keys()
        self._wanted = wanted
        views = {key: [(one.label, one.view(key)) for one in self.balancers] for key in made.ours}
        held = self._held(doubted, len(names))
        with self._changes.lock:
            questions = tuple(self._missing.questions(now))
        self._reporter.update(self._reports(services, made, views, held), questions)

    def _decided(
        self, services: Mapping[str, Service], deleted: frozenset[str], made: Plan, names: frozenset[str], now: float
    ) -> tuple[dict[str, Wanted], list[str]]:
        """What every pylb should have, and what it should release. The rest of what it has stays as it is."""
        ours = {name for name in names | self._wanted.keys() if _is_name_of_service(name)}
        absent = {name for name in ours if name not in services and name not in deleted}
        with self._changes.lock:
            self._missing.update(absent, now)
            gone = set(self._missing.released(len(ours), now))
        stay = {name: self._wanted[name] for name in absent - gone if name in self._wanted}
        release = {name for name in ours if name in deleted or (name in services and name not in made.wanted)} | gone
        return {**stay, **made.wanted}, sorted(release)

    def _answered(self, key: str, exists: bool | None) -> None:
        with self._changes.lock:
            self._missing.answered(key, time.monotonic(), exists=exists)
            self._changes.note()

    def _held(self, nodes: int, names: int) -> str:
        """What is not believed at present, for the log and as an event on each Service."""
        text = ""
        if nodes:
            text = f"{nodes} nodes are suddenly missing or unusable: they stay servers for up to {HOLD / 60:.0f} min"
        elif self._missing.is_holding(names):
            text = f"{len(self._missing)} Services are suddenly missing: their ports stay open for {HOLD / 60:.0f} min"
        if text != self._problem:
            self._log(text or "nothing is missing any more")
            self._problem = text
        return text

    def _reports(
        self, services: Mapping[str, Service], made: Plan, views: Mapping[str, list[tuple[str, View]]], held: str
    ) -> dict[str, Report]:
        found: dict[str, Report] = {}
        addresses = self._options.addresses
        for key, service in made.ours.items():
            opened = {label: view.open if view.known else None for label, view in views[key]}
            errors = {one.port: one.reason for one in made.problems[key] if one.port is not None}
            ports = [((one.protocol, one.port), _error((one.protocol, one.port), errors, views[key])) for one in service.ports]
            ingress = desired(addresses, opened, ports, service.ingress)
            events = [*_events(key, made, views[key], ports, [one.address for one in ingress])]
            found[key] = Report(service, ingress, (*events, Event(FAILED, held)) if held else tuple(events))
        for key, service in services.items():
            if key not in found and is_to_clear(service, addresses):
                found[key] = Report(service, (), ())
        return found


def _is_name_of_service(name: str) -> bool:
    """Other names of the same token were registered by somebody else, and are left alone."""
    return name.count(".") == 1


def _error(key: PortKey, errors: Mapping[PortKey, str], views: Iterable[tuple[str, View]]) -> str:
    """The code that a port's status shows where it is not open."""
    if key in errors:
        return errors[key]
    for _, view in views:
        if key in view.refused:
            return view.refused[key].error
        if key not in view.open:
            return view.error
    return ""


def _events(
    key: str, made: Plan, views: Iterable[tuple[str, View]], ports: Iterable[tuple[PortKey, str]], shown: list[str]
) -> Iterable[Event]:
    problems = made.problems[key]
    for problem in problems:
        yield Event(FAILED, problem.text)
    wanted = made.wanted.get(key)
    everywhere = wanted is not None
    for label, view in views:
        refused = {explained(why): None for port, why in view.refused.items() if wanted and port in wanted.ports}
        for text in refused:
            yield Event(FAILED, f"{label}: {text}")
        if wanted and (view.refused_whole or not wanted.ports <= view.open):
            everywhere = False
            if view.trouble:
                yield Event(FAILED, f"{label}: {view.trouble}")
        for one in wanted.frontends if wanted else ():
            if one.key in view.silent:
                everywhere = False
                yield Event(FAILED, f"{label}: {_silent(one, view.silent[one.key])}")
    if everywhere and wanted:
        numbers = ", ".join(f"{port}/{protocol}" for (protocol, port), _ in ports if (protocol, port) in wanted.ports)
        yield Event(ENSURED, f"open on {', '.join(shown)}: {numbers}")


def _silent(frontend: Frontend, hint: str) -> str:
    text = f"port {frontend.port} is open, and no node accepts a connection at its nodePort {frontend.target_port}"
    return f"{text}: {hint}" if hint else text
