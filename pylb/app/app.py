"""The composition root: builds the parts, starts them in order, stops them in reverse.

Start: messages → the HTTP sockets (bound, so that a taken port ends the start before anything is touched) → engine and
registry (the snapshot's ports serve from here on) → control socket, webhook, admin, metrics → leases run.
Stop: no new sessions → endpoints closed → live sessions get timeouts.shutdown, then a reset → last snapshot → logs flushed.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack

from pylb.api.verbs import verbs
from pylb.app.background import Background
from pylb.app.cluster import make_cluster
from pylb.app.descriptors import budget
from pylb.app.endpoints import Endpoints
from pylb.app.engine_observer import EngineObserver, open_session_log
from pylb.app.errors import CannotStart, InternalError
from pylb.app.forwarding import make_forwarding
from pylb.app.heartbeat import Heartbeat
from pylb.app.operations import Operations
from pylb.app.phases import Action, Phase, PhaseMachine, Trigger
from pylb.app.reload import ConfigReload, rules_of
from pylb.app.reporting import Reporting
from pylb.app.settings import Settings, make_keys, make_state_dir
from pylb.app.shutdown import Shutdown
from pylb.app.upgrade import IncomingUpgrade, OutgoingUpgrade
from pylb.app.welcome import greet, program
from pylb.config import Config
from pylb.config.source import ConfigSource
from pylb.control.health.prober import at_most
from pylb.control.registry import Registry
from pylb.control.storage.store import StateLocked, Store
from pylb.control.tasks import Part, Tasks
from pylb.host.loop_lag import collect_rarely, freeze_the_start
from pylb.host.machine import ControllingTerminal, raise_descriptor_limit, resolve, worker_count
from pylb.host.systemd import SystemdService
from pylb.logs.messages import install
from pylb.logs.session_log import ConnectionLog
from pylb.logs.targets import LogFile
from pylb.upgrade.arriving import Predecessors
from pylb.upgrade.leaving import Transfer
from pylb.upgrade.processes import ProcessList
from pylb.upgrade.sockets import ListeningSockets

log = logging.getLogger("pylb")

LOG_FLUSH = 2.0  # seconds for the last lines at the end
SIGNALS = {
    signal.SIGHUP: Trigger.RELOAD,
    signal.SIGUSR1: Trigger.REOPEN,
    signal.SIGUSR2: Trigger.UPGRADE,
    signal.SIGTERM: Trigger.STOP,
    signal.SIGINT: Trigger.STOP,
}


class App:
    """One running pylb. `complaint`: why `config` is the last good one instead of the file's."""

    def __init__(self, source: ConfigSource, config: Config, complaint: str, environ: Mapping[str, str]) -> None:
        self._source = source
        self._called = program(source.path)
        self._environ = environ
        self._started_at = time.time()
        self._settings = Settings(config, complaint)
        self._terminal = ControllingTerminal()
        self._hung_up = False  # was it closed?
        self._phases = PhaseMachine()
        self._stop = asyncio.Event()  # or the end of this process alone
        self._background = Background(Tasks())
        self._systemd = SystemdService(environ)
        self._listeners = ListeningSockets(self._systemd)
        self._predecessors = Predecessors(self._background.boundary.failed_before)
        self._connlog: ConnectionLog | None = None

    async def serve(self) -> None:
        """Everything from the first socket to the last log line. Raises CannotStart, ConfigErrors or InternalError."""
        async with AsyncExitStack() as stack:
            stack.callback(self._systemd.close)
            # The very last thing: a signal with its default effect, after the loop has ended, would look like a failure.
            stack.callback(signal.pthread_sigmask, signal.SIG_BLOCK, SIGNALS.keys())
            await self._start(stack)
            await self._stop.wait()
            if self._phases.phase is Phase.STOPPING:
                await self._shutdown.stop_accepting((await self._transfer.counters()).open_sessions)
            else:
                self._observer.registry = None
                await self._outgoing_upgrade.leave(self._registry, hastened=self._phases.phase is Phase.HASTENED)
        if self._phases.failed:
            raise InternalError

    # ------------------------------------------------------------ start

    async def _start(self, stack: AsyncExitStack) -> None:
        config = self._settings.config
        self._messages = install(config.log.format, config.log.level)
        stack.callback(self._messages.lines.close, LOG_FLUSH)
        self._handle_signals()
        incoming = IncomingUpgrade(self._environ, self._systemd, self._listeners, self._predecessors, self._background)
        await incoming.inherit()
        self._endpoints = Endpoints(self._settings, self._listeners)
        self._endpoints.bind(stack)
        make_state_dir(config)
        self._process_list = await asyncio.to_thread(ProcessList, config.state_dir)
        keys = await asyncio.to_thread(make_keys, config)
        self._settings.use(config, keys, keys.keyring())
        await self._make_forwarding(stack)
        incoming.pass_flows(self._forwarding)
        collect_rarely()  # the next step opens the ports, and from then on no step may take long
        await self._make_registry(stack)
        incoming.count_on(self._registry)
        stack.push_async_callback(self._end_sessions)
        await self._open_endpoints(stack)
        await self._registry.webhook_is_up()
        stack.callback(self._registry.webhook_is_down)
        self._background.start(self._registry.run(), self._control_ended)
        self._config_reload.watch(self._background)
        if self._cluster is not None:
            self._cluster.begin(self._background)
        self._heartbeat.begin(self._background)
        self._reporting.begin(self._background)
        greet(self._settings, self._room, self._called, self._source.path, restored=self._registry.open_ports())
        if not self._settings.complaint:
            await self._config_reload.keep_config()
        self._forwarding.flows_taken()
        await incoming.take_over()
        self._listeners.close_unclaimed()
        self._systemd.ready(self._heartbeat.state())
        self._on(Trigger.STARTED)
        self._operations.started()
        freeze_the_start()

    async def _make_forwarding(self, stack: AsyncExitStack) -> None:
        """Raises CannotStart."""
        config = self._settings.config
        connlog, self._log_out = open_session_log(config.log)
        self._connlog = connlog
        stack.callback(connlog.close, LOG_FLUSH)
        self._room = budget(config, raise_descriptor_limit(), worker_count(config.workers))
        self._observer = hooks = EngineObserver(connlog, self._background.boundary)
        self._forwarding = await make_forwarding(
            stack,
            settings=self._settings,
            room=self._room,
            listeners=self._listeners,
            hooks=hooks,
            note_process=self._note_process,
        )
        self._shutdown = Shutdown(self._settings, self._systemd, self._forwarding, self._predecessors, self._process_list)

    async def _make_registry(self, stack: AsyncExitStack) -> None:
        """The registry, and what watches it. Raises CannotStart."""
        settings, forwarding, tasks, endpoints = self._settings, self._forwarding, self._background.boundary, self._endpoints
        self._store = Store(settings.config.state_dir)
        self._cluster = await make_cluster(settings.config, self._on_cluster)
        self._registry = registry = Registry(
            rules=await rules_of(settings.config),
            keyring=settings.keyring,
            sink=forwarding,
            store=self._store,
            resolve=resolve,
            ask=at_most(self._room.probes),
            on_event=lambda event: self._reporting.note(event),  # noqa: PLW0108 - it is made below
            tasks=tasks,
            sharing=None if self._cluster is None else self._cluster.shared,
        )
        asyncio.get_running_loop().set_exception_handler(tasks.on_loop_error)
        self._transfer = Transfer(
            self._listeners, forwarding, registry, self._predecessors, servers=endpoints.servers, local=endpoints.local
        )
        self._heartbeat = Heartbeat(self._systemd, forwarding, registry)
        self._reporting = Reporting(
            settings,
            registry,
            forwarding,
            self._transfer,
            called=self._called,
            started_at=self._started_at,
            most_sessions=self._room.most_sessions,
            lag=lambda: self._heartbeat.lag,
            lines_dropped=self._lines_dropped,
            reopen_failures=lambda: self._log_out.reopen_failures if isinstance(self._log_out, LogFile) else 0,
            stopping=self._stop.is_set,
        )
        try:
            await registry.start()
        except StateLocked as locked:
            raise CannotStart(str(locked)) from None
        stack.push_async_callback(self._stop_registry)
        self._observer.registry = registry

    async def _open_endpoints(self, stack: AsyncExitStack) -> None:
        """From here on calls are answered. Raises CannotStart."""
        self._config_reload = ConfigReload(
            self._source,
            settings=self._settings,
            registry=self._registry,
            forwarding=self._forwarding,
            store=self._store,
            follow=self._endpoints.follow,
        )
        self._outgoing_upgrade = OutgoingUpgrade(
            environ=self._environ,
            settings=self._settings,
            systemd=self._systemd,
            forwarding=self._forwarding,
            before=self._predecessors,
            transfer=self._transfer,
            background=self._background,
            on=self._on,
        )
        self._operations = Operations(
            life=self._phases,
            on=self._on,
            settings=self._settings,
            config_reload=self._config_reload,
            outgoing_upgrade=self._outgoing_upgrade,
            transfer=self._transfer,
            peers_active=self._reporting.peers_active,
        )
        await self._reporting.prepare()
        offered = verbs(self._registry, self._operations, self._forwarding)
        await self._endpoints.open(
            stack,
            room=self._room,
            registry=self._registry,
            forwarding=self._forwarding,
            reporting=self._reporting,
            offered=offered,
        )

    async def _stop_registry(self) -> None:
        await self._registry.stop()
        if self._cluster is not None and self._phases.phase is Phase.STOPPING:  # else a successor goes on with it
            await self._cluster.shared.leave()

    def _on_cluster(self, kind: str, text: str, alarm: bool) -> None:
        self._registry.note(kind, text, alarm=alarm)

    def _control_ended(self, task: "asyncio.Task[None]") -> None:
        """Without the writer nothing true can be answered, so if it fails pylb ends and is restarted."""
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("pylb ends: a part of it failed", exc_info=error)
            self._on(Trigger.FAILED)

    def _note_process(self, pid: int) -> None:
        self._background.once(Part.PROCESSES, asyncio.to_thread(self._process_list.note, pid))

    def _lines_dropped(self) -> int:
        own = self._connlog.lines.dropped if self._connlog is not None else 0
        return own + self._messages.lines.dropped + self._forwarding.lines_dropped

    # ------------------------------------------------------------ signals

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number, trigger in SIGNALS.items():
            loop.add_signal_handler(number, self._on, trigger)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS.keys())  # blocked by run.py

    def _on_hangup(self) -> None:
        """The shell and the kernel may both send one when the terminal is closed: a second stop would mean "now"."""
        if not self._terminal.is_closed():
            self._on(Trigger.RELOAD)
        elif not self._hung_up:
            self._hung_up = True
            self._on(Trigger.STOP)

    def _on(self, trigger: Trigger) -> None:
        for action, about in self._phases.on(trigger):
            self._do(action, about)

    def _do(self, action: Action, about: Trigger) -> None:
        match action:
            case Action.RELOAD:
                self._background.once(Part.RELOAD, self._operations.reload_and_say())
            case Action.REOPEN:
                self._reopen_log()
            case Action.UPGRADE:
                self._background.once(Part.UPGRADE, self._operations.upgrade_and_say())
            case Action.STOP | Action.LEAVE:
                self._stop.set()
            case Action.HASTEN:
                self._outgoing_upgrade.hasten()
            case Action.END_NOW:
                self._shutdown.now()
            case Action.FORWARD:
                self._outgoing_upgrade.forward(about)
            case Action.REFUSE:
                log.warning("%s has no effect: this pylb is %s", about, self._phases.phase)
            case _:
                raise RuntimeError(f"{action} is done by the table itself")

    def _reopen_log(self) -> None:
        if self._connlog is not None:  # else it is about to be opened
            self._connlog.flush()  # to the old file
            self._connlog.lines.reopen()

    # ------------------------------------------------------------ the end

    async def _end_sessions(self) -> None:
        """The endpoints are closed. Live sessions get the rest of their time; a second signal cuts that short."""
        if self._phases.phase is Phase.STARTING:
            self._shutdown.fail()
        await self._shutdown.last_session()
        if self._phases.phase is Phase.STOPPING:
            await self._shutdown.last_process()
        elif self._phases.phase is not Phase.STARTING:
            await self._outgoing_upgrade.may_end()
        await self._background.end()
        if self._phases.phase in (Phase.LEAVING, Phase.HASTENED):
            await self._outgoing_upgrade.send_last_counts()
