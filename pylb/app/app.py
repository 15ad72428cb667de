"""The composition root: builds the parts, starts them in order, stops them in reverse.

Start: messages → the HTTP sockets (bound, so that a taken port ends the start before anything is touched) → engine and
registry (the snapshot's ports serve from here on) → control socket, webhook, admin, metrics → leases run.
Stop: no new sessions → doors closed → live sessions get timeouts.shutdown, then a reset → last snapshot → logs flushed.

One class over 300 lines because start, reload and stop hold the same dozen parts; what stands alone is in driver, reloading
and startup.
"""

import asyncio
import errno
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from pylb import __version__
from pylb.api.plan import in_words, steps
from pylb.api.verbs import verbs
from pylb.app.descriptors import budget
from pylb.app.keys import TLS_FOLDER, TOKEN_FILE, Keys, names_of_machine
from pylb.app.phases import Action, Life, Phase, Trigger
from pylb.app.reload import check_fixed, own_ips_of, reload_certificate, rules_of
from pylb.app.startup import ConfigSource, banner, first_steps, program
from pylb.config import Config, ConfigErrors
from pylb.config.models import WebhookListener
from pylb.control.event_log import Event
from pylb.control.health.prober import at_most
from pylb.control.health_sentence import troubles
from pylb.control.registry import Registry
from pylb.control.steps import collect_young
from pylb.control.storage.store import StateLocked, Store
from pylb.control.tasks import Part, Tasks
from pylb.core.address import Listen
from pylb.core.auth import Keyring, Token
from pylb.core.errors import Code, Refused
from pylb.core.session import SessionRecord
from pylb.core.table import Diff, Server
from pylb.core.table_diff import Line
from pylb.core.text import counted, span
from pylb.forward.counters import Counters
from pylb.forward.engine import MAX_BUFFERED, Engine, connection_limit, pipe_limit
from pylb.forward.timers import TICK
from pylb.haproxy.commands import Commands
from pylb.haproxy.exporter import Exporter
from pylb.haproxy.info import Facts
from pylb.haproxy.rates import Rates
from pylb.haproxy.runtime_socket import RuntimeSocket
from pylb.haproxy.view import View
from pylb.host.addresses import Addresses
from pylb.host.files import Watch
from pylb.host.loop_lag import Pulse, collect_rarely
from pylb.host.machine import hold_standard_descriptors, raise_descriptor_limit, reap_strangers, resolve, worker_count
from pylb.host.systemd import Service
from pylb.logs.async_writer import Out
from pylb.logs.messages import install
from pylb.logs.session_log import ConnectionLog
from pylb.logs.targets import LogFile, open_target
from pylb.metrics.collector import Metrics
from pylb.statuspage.page import Page
from pylb.statuspage.stream import Feed
from pylb.statuspage.timeseries import History
from pylb.upgrade.handover import (
    ANSWER,
    Left,
    Predecessors,
    Refusal,
    Successor,
    Talk,
    hand_over,
    inherit,
    report_to,
    tell_the_last,
)
from pylb.upgrade.handover import VARIABLE as HAND_OVER
from pylb.upgrade.leaving import Estate, Lost
from pylb.upgrade.processes import Generations
from pylb.upgrade.sockets import Listeners, passed
from pylb.web import openapi
from pylb.web.admin import Admin, stats_routes
from pylb.web.control_socket import ControlSocket
from pylb.web.listener import Limits, bind
from pylb.web.server import HttpServer
from pylb.web.tls import Certificate, repaired
from pylb.web.webhook import Webhook
from pylb.workers.archive import Program
from pylb.workers.fleet import Fleet, Told
from pylb.workers.in_process import Driver
from pylb.workers.messages import VERSION, Hello
from pylb.workers.sampler import Sampler

log = logging.getLogger("pylb")

LOG_FLUSH = 2.0  # seconds for the last lines at the end
# Seconds that a pylb with a successor stays at least: whoever looked up the pid of the service just before may
# send it a signal just after, and systemd hears of the new one a moment later.
LINGER = 1.0
# Turns of the loop after which a signal that had arrived before them has been handled: one to read it, one to call for it.
SIGNAL_TURNS = 3
WORKERS_WINDOW = 3  # looks that a rate of the history is taken over: workers report once a second, each when it likes
_LEVELS = {True: logging.WARNING, False: logging.INFO}  # of an event, by its alarm
_SIGNALS = {
    signal.SIGHUP: Trigger.RELOAD,
    signal.SIGUSR1: Trigger.REOPEN,
    signal.SIGUSR2: Trigger.UPGRADE,
    signal.SIGTERM: Trigger.STOP,
    signal.SIGINT: Trigger.STOP,
}


class CannotStart(Exception):  # noqa: N818 - a condition, told to the operator in one line
    """The text says what, where, and what to do."""


class Broken(Exception):  # noqa: N818 - as above
    """A part of pylb failed by a bug and took the rest with it; the log has the traceback."""


def run(path: Path | None, environ: Mapping[str, str]) -> None:
    """`pylb run`: serves until SIGTERM or SIGINT. Raises CannotStart, ConfigErrors or Broken.

    A broken file is no reason to be down: what was in force when pylb last ran with it is used, loudly.
    """
    hold_standard_descriptors()
    faulthandler.enable()  # where all threads were, on a crash and on the SIGABRT of systemd's watchdog
    # Until the loop has handlers for them: by default they kill. The kernel keeps one of each for us, even of those that
    # whoever started us ignores, so that a change of the file after it was read here is not missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS.keys())
    source, complaint = ConfigSource(path, environ), ""
    try:
        config = source.load()
    except ConfigErrors as errors:
        kept = source.last_good()
        if kept is None or HAND_OVER in environ:  # the pylb before goes on with what it has
            raise
        config, complaint = kept, str(errors)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(App(source, config, complaint, environ).serve())


class Hooks:
    """The engine's observer: never raises into a session, and works before the registry exists."""

    def __init__(self, connlog: ConnectionLog, tasks: Tasks) -> None:
        self._connlog = connlog
        self._tasks = tasks
        self.registry: Registry | None = None

    def session_ended(self, record: SessionRecord) -> None:
        try:  # both by hand: a context manager costs a microsecond for each session
            self._connlog.session_ended(record)
        except Exception as error:  # noqa: BLE001 - the boundary between the engine and who listens to it
            self._tasks.failed(Part.SESSIONS, error)

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:
        if self.registry is None:
            return
        try:
            self.registry.connect_ended(listen, server, failure)
        except Exception as error:  # noqa: BLE001 - as above
            self._tasks.failed(Part.SESSIONS, error)


class App:
    """One running pylb. `complaint`: why `config` is the last good one and not the file's."""

    def __init__(self, source: ConfigSource, config: Config, complaint: str, environ: Mapping[str, str]) -> None:
        self._source = source
        self._environ = environ
        self._service = Service(environ)
        self._listeners = Listeners(self._service)
        self._helpers = Tasks()  # what they do may fail
        self._before = Predecessors(self._helpers.failed_before)
        self._life = Life()
        self._successor: Successor | None = None  # from the moment on that it is in charge
        self._config = config
        self._complaint = complaint
        self.reloaded = not complaint  # did the last reading of the config succeed?
        self._keyring = Keyring(())
        self._certificates: list[Certificate] = []
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()  # the last sessions are reset now
        self._may_end = asyncio.Event()  # LINGER is over, or need not be waited for
        self._started_at = time.time()
        self._called = program(source.path)
        self._connlog: ConnectionLog | None = None
        self._log_out: Out | None = None
        self._reloading = asyncio.Lock()  # one after the other, in their order
        self._started = asyncio.Event()
        self._pulse = Pulse(TICK, time.monotonic())  # a scrape asks for it before its first beat
        self._ends_at = 0.0  # when the live sessions of a service that stops are over
        self._broken = False
        self._told_about: tuple[tuple[Config, bool, int], dict[str, Any]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._lasting: set[asyncio.Task[None]] = set()  # that go on when a successor has the rest

    async def serve(self) -> None:
        """Everything from the first socket to the last line. Raises CannotStart, ConfigErrors or Broken."""
        async with AsyncExitStack() as stack:
            stack.callback(self._service.close)
            # As the last thing: by default a signal would make a failure of the moment between the loop's end and ours.
            stack.callback(signal.pthread_sigmask, signal.SIG_BLOCK, _SIGNALS.keys())
            try:
                await self._start(stack)
            except BaseException:
                self._at_once.set()  # it may have accepted clients already: they must not keep it alive
                raise
            await self._stop.wait()
            if self._successor is None:
                await self._stop_accepting()
            else:
                await self._leave(self._successor.talk)
        if self._broken:
            raise Broken

    # ------------------------------------------------------------ start

    async def _start(self, stack: AsyncExitStack) -> None:
        config = self._config
        messages = install(config.log.format, config.log.level)
        stack.callback(messages.lines.close, LOG_FLUSH)
        self._handle_signals()
        left, number = await self._inherit(), 0
        sockets = self._bind_all(stack)
        self._make_state_dir()
        self._generations = await asyncio.to_thread(Generations, config.state_dir)
        self._keys = await asyncio.to_thread(self._make_keys, config)
        self._keyring = self._keys.keyring()
        self._connlog = connlog = self._make_connlog()
        stack.callback(connlog.close, LOG_FLUSH)
        self._limit = limit = await self._make_forwarding(stack, connlog)
        await self._make_registry(stack)
        if left is not None:
            self._registry.go_on_from(left.totals)
            number = self._before.meet(left.talk, left.counts)
        stack.push_async_callback(self._drain)
        await self._open_doors(
            stack, sockets, lambda: connlog.lines.dropped + messages.lines.dropped + self._forwarding.lines_dropped
        )
        await self._registry.webhook_is_up()
        stack.callback(self._registry.webhook_is_down)
        self._keep(self._registry.run(), self._tasks, self._control_ended)
        for part, files, read in (
            (Part.KEYS, self._key_files, self.read_keys),
            (Part.CERTIFICATES, self._certificate_files, self._read_certificates),
        ):
            self._serve_for_ever(part, (await asyncio.to_thread(Watch, files, read)).run)
        self._serve_for_ever(Part.ADDRESSES, Addresses(self._read_addresses).run)
        self._serve_for_ever(Part.BEAT, self._beat)
        self._serve_for_ever(Part.RATES, self._sampler.run)
        self._serve_for_ever(Part.PAGE, self._feed.run)
        self._greet(limit)
        if not self._complaint:
            await self._keep_config()
        if self._service.watchdog:
            self._serve_for_ever(Part.WATCHDOG, self._show_life)
        if left is not None:
            await self._take_over(left.talk, number)
        self._listeners.forget_left()
        self._service.ready(self._state())
        self._on(Trigger.STARTED)
        self._started.set()
        collect_rarely()

    def _bind_all(self, stack: AsyncExitStack) -> list[socket.socket]:
        """The webhook's, the admin's and the metrics' sockets. Only these end the start when they cannot be bound."""
        config = self._config
        places = [*(("webhook", one.listen) for one in config.webhook), ("admin", config.admin.listen)]
        if config.metrics.listen is not None:
            places.append(("metrics", config.metrics.listen))
        found = []
        for what, listen in places:
            try:
                sock = self._listeners.adopt(listen) or self._bind(listen)
            except OSError as error:
                raise CannotStart(
                    f"the {what} address {listen} cannot be bound: {error.strerror}. "
                    f"{_who(error, listen, what)}set {what}.listen in the config (pylb run -c FILE)."
                ) from None
            stack.callback(sock.close)
            found.append(sock)
        return found

    def _bind(self, listen: Listen) -> socket.socket:
        """Raises OSError."""
        sock = bind(listen)
        self._listeners.note(listen, sock)
        return sock

    def _make_state_dir(self) -> None:
        try:
            self._config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            text = "the state directory %s cannot be made (%s): new names and ports will be refused"
            log.error(text, self._config.state_dir, error.strerror)

    def _make_keys(self, config: Config) -> Keys:
        """Raises CannotStart."""
        try:
            return Keys(config)
        except OSError as error:
            raise CannotStart(
                f"no token is configured and none can be kept in {config.state_dir}: {error.strerror}. "
                "Make the directory writable, set state_dir, or configure tokens."
            ) from None

    def _make_connlog(self) -> ConnectionLog:
        """Raises CannotStart."""
        config = self._config.log
        try:
            self._log_out = out = open_target(config.target, config.facility, config.tag)
        except OSError as error:
            who = f"by user {os.getuid()}" if error.errno == errno.EACCES else "here"
            raise CannotStart(
                f"log.target: {config.target.place} cannot be opened {who}: {error.strerror}. "
                "Make its directory and let pylb's user write there, or remove log.target: lines go to stdout then."
            ) from None
        return ConnectionLog(out, config.format, config.selection)

    async def _make_forwarding(self, stack: AsyncExitStack, connlog: ConnectionLog) -> int:
        """An engine here, or workers that have one each. Returns the connection limit."""
        nofile, count = raise_descriptor_limit(), worker_count(self._config.workers)
        self._budget = budget(self._config, nofile, count)
        limit, pipes = connection_limit(nofile) if count else self._budget.sessions, pipe_limit(nofile)
        self._hooks = hooks = Hooks(connlog, self._helpers)
        self._forwarding: Driver | Fleet
        if count == 0:
            engine = Engine(
                observer=hooks,
                max_connections=limit,
                max_pipes=pipes,
                on_fault=_log_fault,
                opener=self._listeners.open,
                twin=self._listeners.twin,
                nofile=nofile,
                reserve=self._budget.reserve,
                recorded=self._config.recorder.sessions,
            )
            self._forwarding = Driver(engine, self._listeners.closed, connlog.flush)
            stack.callback(self._forwarding.close)
            return limit

        def hello(index: int) -> Hello:
            config = self._config
            shared = MAX_BUFFERED // count
            recorded = -(-config.recorder.sessions // count)
            log_ = config.log
            return Hello(VERSION, index, count, limit, pipes, shared, log_.format, recorded, log_.selection)

        told = Told(hooks.connect_ended, connlog.lines.put, self._note_process)
        self._forwarding = fleet = Fleet(count, hello, told, self._listeners, Program())
        stack.callback(fleet.close)
        try:
            await fleet.start()
        except OSError as error:
            hint = "Is there memory, and room for processes (ulimit -u)?"
            raise CannotStart(f"no worker can be started: {error}. {hint}") from None
        return limit * count

    async def _make_registry(self, stack: AsyncExitStack) -> None:
        config = self._config
        self._store = Store(config.state_dir)
        self._registry = Registry(
            rules=await rules_of(config),
            keyring=self._keyring,
            sink=self._forwarding,
            store=self._store,
            resolve=resolve,
            ask=at_most(self._budget.probes),
            on_event=self._heed_event,
            tasks=self._helpers,
        )
        asyncio.get_running_loop().set_exception_handler(self._helpers.on_loop_error)
        self._estate = estate = Estate(self._listeners, self._forwarding, self._registry, self._before)
        window = WORKERS_WINDOW if self._forwarding.workers() else 1
        history, self._rates = History(window), Rates()
        self._feed = Feed(self._registry, history, self._about, also=self._troubles)
        self._sampler = Sampler(
            lambda: self._registry.table,
            estate.parts,
            (history, self._rates),
            pids=self._forwarding_pids,
            sampled=self._feed.sampled,
        )
        try:
            await self._registry.start()
        except StateLocked as locked:
            raise CannotStart(str(locked)) from None
        stack.push_async_callback(self._registry.stop)
        self._hooks.registry = self._registry

    async def _open_doors(self, stack: AsyncExitStack, sockets: list[socket.socket], dropped: Callable[[], int]) -> None:
        config, registry = self._config, self._registry
        metrics = Metrics(
            counters=self._estate.counters,
            registry=registry,
            lines_dropped=dropped,
            reopen_failures=lambda: self._log_out.reopen_failures if isinstance(self._log_out, LogFile) else 0,
            processes=lambda: {"main": (os.getpid(), self._pulse.lag)} | self._forwarding.workers(),
            worker_restarts=lambda: self._forwarding.restarts,
            reloaded=lambda: self.reloaded,
            insecure=lambda: self._config.insecure,
            certificate_expires_at=lambda: min((one.expires_at for one in self._certificates), default=None),
        )
        haproxy = View(registry, self._estate.counters, partial(self._facts, dropped), self._rates)
        self._page = page = Page(self._feed.stream)
        await asyncio.to_thread(self._about)  # what it shows is read from the installation now, and never again
        self._admin = admin = Admin(
            registry,
            self._estate.counters,
            metrics.scrape,
            config.own_names,
            page.routes() | stats_routes(haproxy.csv),
            live=self._forwarding,
            haproxy=Exporter(haproxy).scrape,
            compat=config.metrics.compat == "haproxy",
        )
        self._webhooks = [self._webhook(one) for one in config.webhook]
        certificates = [await asyncio.to_thread(self._tls, one) for one in config.webhook]
        self._certificates = [one for one in certificates if one is not None]
        self._estate.servers = servers = [
            HttpServer(sock, webhook.handler(), limits=self._limits(one), tls=certificate)
            for sock, one, webhook, certificate in zip(sockets, config.webhook, self._webhooks, certificates, strict=False)
        ]
        pages = Limits(connections=self._budget.pages)
        servers.append(HttpServer(sockets[len(config.webhook)], admin.handler(), limits=pages))
        if config.metrics.listen is not None:
            servers.append(HttpServer(sockets[-1], admin.metrics_handler(config.metrics.allow), limits=pages))
        offered = verbs(registry, self, self._forwarding)
        control = ControlSocket(config.state_dir / "control.sock", offered)
        runtime = RuntimeSocket(
            config.runtime_socket or config.state_dir / "haproxy.sock",
            Commands(haproxy, offered, self._forwarding.sessions),
        )
        for local, without in (
            (control, "pylb routes, release and import"),
            (runtime, "hatop and what else speaks to HAProxy"),
        ):
            try:
                await local.start()
                stack.push_async_callback(local.stop)
                self._estate.local.append(local)
            except OSError as error:
                log.error("a local socket cannot be made (%s will not work): %s", without, error)
        openapi.rendered()  # made once, before anybody waits for the loop
        for server in servers:
            server.start()
            stack.push_async_callback(server.stop)

    def _facts(self, dropped: Callable[[], int]) -> Facts:
        """For HAProxy's `show info`."""
        workers, descriptors = len(self._forwarding.workers()), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return Facts(
            started_at=self._started_at,
            workers=workers,
            descriptors=descriptors,
            pipes=pipe_limit(descriptors) * max(1, workers),
            listeners=len(self._registry.table.frontends) - len(self._registry.unbound()),
            tasks=len(asyncio.all_tasks()),
            lines_dropped=dropped(),
            stopping=self._stop.is_set(),
            node=socket.gethostname(),
        )

    def _forwarding_pids(self) -> list[int]:
        return [pid for pid, _ in self._forwarding.workers().values()] or [os.getpid()]

    def _webhook(self, listener: WebhookListener) -> Webhook:
        return Webhook(
            self._registry.calls,
            lambda: self._keyring,
            trusted_proxies=self._config.trusted_proxies,
            legacy=listener.legacy,
            limits=listener.limits.limits(),
            log_beats=self._config.log.calls == "all",
        )

    def _limits(self, listener: WebhookListener) -> Limits:
        connections = self._budget.webhook[self._config.webhook.index(listener)]
        if connections < (wanted := listener.limits.connections):
            text = "webhook %s: at most %d connections instead of %d, for want of open files (LimitNOFILE=)"
            log.warning(text, listener.listen, connections, wanted)
        return Limits(connections=connections, per_address=listener.limits.per_address)

    def _tls(self, listener: WebhookListener) -> Certificate | None:
        """The listener's, or None for plain HTTP. For a thread. Raises CannotStart."""
        tls = listener.tls
        if tls is None:
            return None
        config = self._config
        try:
            if tls.self_signed:
                certificate, complaint = repaired(config.state_dir / TLS_FOLDER, names_of_machine(config))
                if complaint:
                    log.error("%s", complaint)
                return certificate
            if tls.certificate is not None and tls.key is not None:
                return Certificate(tls.certificate, tls.key)
        except (OSError, ValueError) as error:
            raise CannotStart(f"the webhook's certificate cannot be used: {error}") from None
        return None

    def _greet(self, limit: int) -> None:
        config = self._config
        for warning in config.warnings:
            log.warning("%s", warning)
        if self._complaint:
            log.error("the config is broken, the last good one is in force:\n%s", self._complaint)
        restored = len(self._registry.table.frontends)
        terminal = sys.stdout.isatty()
        secret, called = self._keys.secret, self._called
        text = banner(
            config, room=(limit, self._budget.reserve), restored=restored, secret=secret, terminal=terminal, called=called
        )
        try:
            print(text, file=sys.stdout if terminal else sys.stderr, flush=True)
        except OSError:
            pass  # whoever started us has closed the pipe: no reason not to serve

    # ------------------------------------------------------------ while it runs

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number, trigger in _SIGNALS.items():
            loop.add_signal_handler(number, self._on, trigger)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS.keys())  # blocked by `run`

    def _on(self, trigger: Trigger) -> None:
        for action, about in self._life.on(trigger):
            self._do(action, about)

    def _do(self, action: Action, about: Trigger) -> None:
        match action:
            case Action.RELOAD:
                self._follow(Part.RELOAD, self._reload_and_say())
            case Action.REOPEN:
                self._reopen_log()
            case Action.UPGRADE:
                self._follow(Part.UPGRADE, self._upgrade_and_say())
            case Action.STOP | Action.LEAVE:
                self._stop.set()
            case Action.HASTEN:
                self._may_end.set()
                self._forwarding.drain(time.monotonic() + self._config.defaults.timeouts.shutdown)
            case Action.END_NOW:
                if not self._at_once.is_set():
                    log.warning("stopping at once")
                    self._at_once.set()
            case Action.FORWARD:
                self._forward(about)
            case Action.REFUSE:
                log.warning("%s has no effect: this pylb is %s", about, self._life.phase)
            case _:
                raise RuntimeError(f"{action} is done by the table itself")

    def _forward(self, about: Trigger) -> None:
        """A signal that was meant for the service."""
        if self._successor is None or not self._successor.signal(signal.Signals[about.value]):
            log.warning("%s has no effect: process %d only ends its sessions, and its successor has ended", about, os.getpid())

    def _reopen_log(self) -> None:
        if self._connlog is not None:  # else it is about to be opened
            self._connlog.flush()  # to the old file
            self._connlog.lines.reopen()

    def _follow(self, part: Part, coroutine: Coroutine[object, object, None]) -> None:
        """A task of our own. Its failure harms nothing else."""
        self._keep(self._helpers.once(part, coroutine), self._tasks)

    def _serve_for_ever(self, part: Part, body: Callable[[], Coroutine[object, object, None]]) -> None:
        """As `_follow`; it begins again after a failure."""
        self._keep(self._helpers.forever(part, body), self._tasks)

    def _keep(
        self,
        coroutine: Coroutine[object, object, None],
        among: "set[asyncio.Task[None]]",
        ended: "Callable[[asyncio.Task[None]], None]" = lambda _task: None,
    ) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        among.add(task)
        task.add_done_callback(among.discard)
        task.add_done_callback(ended)

    def _control_ended(self, task: "asyncio.Task[None]") -> None:
        """The writer is the one part without which nothing true can be answered: with it pylb ends, and is started anew."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("pylb ends: a part of it failed", exc_info=error)
            self._broken = True
            self._on(Trigger.FAILED)

    async def _reload_and_say(self) -> None:
        try:
            await self.reload()
        except (ConfigErrors, Refused) as error:
            log.error("reload refused, everything stays as it is:\n%s", error)

    async def counters(self) -> Counters:
        """Of this pylb and of those before it that only end their sessions still."""
        return await self._estate.counters()

    async def plan(self, path: Path, text: str) -> list[Line]:
        """What a reload with this file would change. Raises ConfigErrors or Refused, as the reload would."""
        config = await asyncio.to_thread(self._source.read, path, text)
        check_fixed(self._config, config)
        rules = await rules_of(config)
        table, planned = await self._registry.rules.plan(rules, self._keyring)
        return [*planned, *await self._registry.rules.plan_checks(table)]

    def token(self, name: str) -> Token | None:
        return next((token for token in self._keyring.tokens if token.name == name), None)

    async def reload(self) -> Diff | None:
        """Read the config again: all or nothing. None: during an upgrade, where whoever is in charge afterwards does it.

        Raises ConfigErrors or Refused.
        """
        await self._started.wait()  # before, the one that started us may still have to take everything back
        if self._life.phase is Phase.STOPPING:
            raise Refused(Code.UNAVAILABLE, "pylb is stopping")
        if self._life.phase is not Phase.SERVING:  # the successor may have read the file before it changed
            self._on(Trigger.RELOAD)
            return None
        async with self._reloading:
            return await self._reload_now()

    async def _reload_now(self) -> Diff:
        self.reloaded = False
        config = await asyncio.to_thread(self._source.load)  # ten thousand lines take a second
        check_fixed(self._config, config)
        had_tokens = bool(self._config.tokens)
        try:
            keys = await asyncio.to_thread(self._make_keys, config)
        except CannotStart as reason:
            raise Refused(Code.INVALID, str(reason)) from None
        keyring = keys.keyring()
        rules = await rules_of(config)
        _, lines = await self._registry.rules.plan(rules, keyring)
        planned = steps(lines, await self._forwarding.sessions())
        change = await self._registry.rules.reload(rules, keyring)
        self._config, self._keys, self._keyring = config, keys, keyring
        for webhook in self._webhooks:
            webhook.trusted_proxies = config.trusted_proxies
        self._admin.set_hosts(config.own_names)
        await self._read_certificates()
        self.reloaded = True
        await self._keep_config()
        log.info("reloaded: %s", in_words(change))
        for step in planned:
            log.info("reloaded: %s", step["text"])
        if keys.secret is not None and had_tokens:
            log.warning("no token is configured any more: the generated one in %s counts", config.state_dir / TOKEN_FILE)
        return change

    async def read_keys(self) -> None:
        """A file with secrets has changed: what it says now counts."""
        async with self._reloading:
            await asyncio.to_thread(self._keys.read_again)
            keyring = self._keys.keyring()
            if keyring.tokens != self._keyring.tokens:
                await self._registry.rules.set_keyring(keyring)
                self._keyring = keyring
                log.info("tokens read again: %d are in force", len(keyring.tokens))

    def _heed_event(self, event: Event) -> None:
        log.log(_LEVELS[event.alarm], "%s", event.text)
        self._feed.note(event)

    def _about(self) -> dict[str, Any]:
        """For the status page: what does not change by itself. Made anew after a reload, or with other tokens."""
        state = self._config, self._keys.secret is not None, len(self._forwarding.workers())
        if self._told_about is None or self._told_about[0] != state:
            self._told_about = state, self._make_about(*state)
        return self._told_about[1]

    def _make_about(self, config: Config, generated: bool, workers: int) -> dict[str, Any]:
        command, option = self._called
        return {
            "version": __version__,
            "page": self._page.version,
            "host": config.advertise or socket.gethostname(),
            "pid": os.getpid(),
            "workers": workers,
            "started": self._started_at,
            "most_sessions": self._limit,
            "command": command,
            "option": option,
            "first_steps": first_steps(config, generated=generated),
        }

    def _troubles(self) -> list[str]:
        registry = self._registry
        return troubles(
            durable=registry.durable,
            preserving=registry.preserving,
            reloaded=self.reloaded,
            unserved=[one.name for one in registry.unserved()],
        )

    async def _beat(self) -> None:
        """How late the loop is; a stall of five seconds leaves its stacks on stderr. And what a process 1 has to do."""
        loop = asyncio.get_running_loop()
        self._pulse = Pulse(TICK, loop.time())
        try:
            while True:
                self._pulse.beat(loop.time())
                self._service.flush()
                collect_young()  # sessions that came in the places of others, too
                if os.getpid() == 1:
                    reap_strangers([pid for pid, _ in self._forwarding.workers().values()])
                await asyncio.sleep(TICK)
        finally:
            self._pulse.stop()

    async def _show_life(self) -> None:
        """From the loop that everything runs in: when it stands still, systemd ends pylb and starts another."""
        while True:
            self._service.alive()
            with self._helpers.surviving(Part.WATCHDOG):  # no pause follows: systemd would take it for the end of us
                self._service.status(self._state())
            await asyncio.sleep(self._service.watchdog / 3)

    def _state(self) -> str:
        """For `systemctl status`."""
        ports, unbound = len(self._registry.table.frontends), len(self._registry.unbound())
        text = f"{counted(ports, 'port')}, {counted(self._forwarding.open_sessions, 'session')}"
        return f"{text}, {counted(unbound, 'port')} cannot be opened" if unbound else text

    def _key_files(self) -> Iterator[Path]:
        yield from self._keys.files()  # of the config in force

    def _certificate_files(self) -> Iterator[Path]:
        for certificate in self._certificates:
            yield certificate.path
            yield certificate.key

    async def _read_certificates(self) -> None:
        for certificate in self._certificates:
            await asyncio.to_thread(reload_certificate, certificate)

    def _note_process(self, pid: int) -> None:
        self._follow(Part.PROCESSES, asyncio.to_thread(self._generations.note, pid))

    async def _read_addresses(self) -> None:
        """This machine may have other addresses: servers at them may be pylb itself now, or no longer."""
        async with self._reloading:
            with suppress(Refused):  # pylb is stopping
                await self._registry.rules.readdress(await own_ips_of(self._config))

    async def _keep_config(self) -> None:
        """By the disk's thread, which may hang and is not waited for at the end."""
        try:
            await self._store.run(partial(self._source.keep, self._config))
        except OSError as error:
            log.warning("the config could not be remembered for a start with a broken one: %s", error)

    # ------------------------------------------------------------ a successor

    async def upgrade(self) -> str:
        """Start the pylb that is installed now, and leave it everything but the live sessions. Raises Refused."""
        if self._life.phase is not Phase.SERVING:
            raise Refused(Code.UNAVAILABLE, "pylb is starting, stopping or upgrading already", "call again")
        self._life.on(Trigger.UPGRADE)  # its one action is what follows
        return await self._hand_over()

    async def _hand_over(self) -> str:
        """Raises Refused: this pylb stays in charge, or ends if it cannot be."""
        try:
            successor = await hand_over(self._estate, self._environ, self._service.successor)
        except Refusal as refusal:
            self._on(Trigger.UPGRADE_FAILED)
            text = f"the upgrade failed, process {os.getpid()} stays in charge: {refusal}"
            raise Refused(Code.UNAVAILABLE, text, "its log says what the new one had to say") from None
        except Lost as lost:
            log.critical("%s", lost, exc_info=lost.__cause__)
            self._broken = True
            self._on(Trigger.FAILED)
            self._on(Trigger.UPGRADE_FAILED)
            raise Refused(Code.UNAVAILABLE, str(lost)) from None
        except BaseException:
            self._on(Trigger.UPGRADE_FAILED)
            raise
        self._successor = successor
        try:
            self._on(Trigger.TAKEN_OVER)
            for _ in range(SIGNAL_TURNS):
                await asyncio.sleep(0)
        finally:
            self._on(Trigger.PARTED)
        live, seconds = self._forwarding.open_sessions, self._config.defaults.timeouts.upgrade
        ends = f"process {os.getpid()} ends with its {counted(live, 'session')}, in {span(seconds)} at the latest"
        return f"process {successor.pid} serves; {ends}"

    async def _upgrade_and_say(self) -> None:
        try:
            log.info("upgrade: %s", await self._hand_over())
        except Refused as refused:
            log.error("%s", refused)

    async def _inherit(self) -> Left | None:
        """Raises CannotStart."""
        self._listeners.inherit(passed(self._environ))
        try:
            left = await inherit(self._environ)
        except Refusal as refusal:
            raise CannotStart(f"the pylb that started this one keeps its ports: {refusal}") from None
        if left is not None:
            self._service.muted = True
            self._listeners.inherit(left.descriptors)
        return left

    async def _take_over(self, before: Talk, number: int) -> None:
        """Everything serves: from its word on, or its end, we are the service."""
        before.say("serving")
        try:
            await before.expect("go", ANSWER)
        except Refusal as refusal:
            if self._service.listens:  # for systemd the service is dead, and the next one on its way to these sockets
                raise CannotStart(f"the pylb before is gone before its time: {refusal}") from None
            log.warning("the pylb before is gone before its time: %s", refusal)
            self._before.part(number)
        else:
            follow = partial(self._before.follow, number)
            self._keep(self._helpers.forever(Part.PREDECESSOR, follow), self._lasting)
        self._service.muted = False
        with self._helpers.surviving(Part.PREDECESSOR):  # nobody else is in charge any more
            self._listeners.store()

    async def _leave(self, successor: Talk) -> None:
        """Only the live sessions are left to us."""
        timeouts = self._config.defaults.timeouts
        seconds = timeouts.shutdown if self._life.phase is Phase.HASTENED else timeouts.upgrade
        self._service.muted = True
        self._hooks.registry = None
        with self._helpers.surviving(Part.SUCCESSOR):  # the sessions live, whatever becomes of the rest
            self._forwarding.drain(time.monotonic() + seconds)
        self._end_tasks()
        with self._helpers.surviving(Part.SUCCESSOR):
            await self._registry.stop()
        with self._helpers.surviving(Part.SUCCESSOR):
            if live := (await self._estate.counters()).open_sessions:
                log.info(
                    "process %d ends with its %s, in %s at the latest", os.getpid(), counted(live, "session"), span(seconds)
                )
        self._serve_for_ever(Part.BEAT, self._beat)
        self._serve_for_ever(Part.SUCCESSOR, partial(report_to, successor, self._estate))
        self._follow(Part.SUCCESSOR, self._heed_successor(successor))
        asyncio.get_running_loop().call_later(LINGER, self._may_end.set)

    async def _heed_successor(self, successor: Talk) -> None:
        try:
            said, _ = await successor.expect("stop", None)
        except Refusal:
            return  # it ended by a fault: no reason to end our sessions
        finally:
            self._may_end.set()  # the service ends, or has ended
        self._forwarding.drain(float(said["deadline"]))
        self._before.stop(float(said["deadline"]))

    # ------------------------------------------------------------ stop

    async def _stop_accepting(self) -> None:
        live, seconds = (await self._estate.counters()).open_sessions, self._config.defaults.timeouts.shutdown
        self._ends_at = time.monotonic() + seconds
        text = f"stopping: {counted(live, 'live session')} {'has' if live == 1 else 'have'} {span(seconds)}"
        self._service.stopping(text)
        if live:
            log.info("%s; a second signal ends them now", text)
        else:
            log.info("stopping")
        # Where systemd holds the sockets, who waits in them is for the next pylb: it would be reset here in a moment.
        self._forwarding.drain(time.monotonic() + seconds, accept=not self._service.listens)
        self._before.stop(time.monotonic() + seconds)
        await asyncio.to_thread(self._generations.stop_those_before)

    async def _drain(self) -> None:
        """The doors are closed. Live sessions have the rest of timeouts.shutdown; a second signal cuts that short.

        After a start that failed they have no time at all.
        """
        if self._life.phase is Phase.STARTING:
            self._forwarding.drain(time.monotonic(), accept=False)
        await self._forwarding.drained(at_once=self._at_once)
        await self._before.ended(at_once=self._at_once)
        if self._successor is not None:
            await self._may_end.wait()
        elif self._life.phase is Phase.STOPPING:
            await self._outlive_those_before()
        self._end_tasks()
        for task in self._lasting:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._lasting, return_exceptions=True)
        if self._successor is not None:
            with self._helpers.surviving(Part.SUCCESSOR):
                await tell_the_last(self._successor.talk, self._estate)

    async def _outlive_those_before(self) -> None:
        """For systemd the end of main is the end of the service. They have had their signal, and the same time as we."""
        while time.monotonic() < self._ends_at + LINGER and not self._at_once.is_set():
            if not await asyncio.to_thread(self._generations.those_before):
                return
            await asyncio.sleep(0.05)
        if left := await asyncio.to_thread(self._generations.those_before):
            log.warning("%s of before have not ended yet", ", ".join(f"process {pid}" for pid in left))

    def _end_tasks(self) -> None:
        for task in list(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()


def _who(error: OSError, listen: Listen, what: str) -> str:
    """The way out of a failed bind, up to "or set …"."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"Is another pylb or HAProxy running? Free the port (ss -ltnp 'sport = :{listen.port}' says who has it), or "
        case errno.EADDRNOTAVAIL:
            return "This machine has no such address (ip address): "
        case errno.EACCES:
            return "Ports below 1024 need CAP_NET_BIND_SERVICE or sysctl net.ipv4.ip_unprivileged_port_start: allow it, or "
    return f"The {what} cannot be served without it: "


def _log_fault(what: str, error: Exception) -> None:
    log.error("%s", what, exc_info=error)
