"""What the control socket and the signals may ask of a running pylb (api.verbs.AppOperations), and when it may be asked."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from pylb.api.plan import Planned, Reloaded
from pylb.app.phases import Phase, PhaseMachine, Trigger
from pylb.app.reload import ConfigReload
from pylb.app.settings import Settings
from pylb.app.upgrade import OutgoingUpgrade
from pylb.config import ConfigErrors
from pylb.core.auth import Token
from pylb.core.errors import Code, Refused
from pylb.forward.counters import Counters
from pylb.upgrade.leaving import Transfer

log = logging.getLogger("pylb")


class Operations:
    """`on`: a trigger of the phases, and what follows from it."""

    def __init__(
        self,
        *,
        life: PhaseMachine,
        on: Callable[[Trigger], None],
        settings: Settings,
        config_reload: ConfigReload,
        outgoing_upgrade: OutgoingUpgrade,
        transfer: Transfer,
        peers_active: Callable[[], Awaitable[dict[str, str]]],
    ) -> None:
        self._phases = life
        self._on = on
        self._settings = settings
        self._config_reload = config_reload
        self._outgoing_upgrade = outgoing_upgrade
        self._transfer = transfer
        self.peers_active = peers_active
        self._started = asyncio.Event()

    def started(self) -> None:
        """Note that the start is over; callers that wait for it continue."""
        self._started.set()

    async def reload(self) -> Reloaded | None:
        """Read the config again: all or nothing. None: during an upgrade, where whoever is in charge afterwards does it.

        Raises ConfigErrors or Refused.
        """
        await self._started.wait()  # before, the one that started us may still have to take everything back
        if self._phases.phase is Phase.STOPPING:
            raise Refused(Code.UNAVAILABLE, "pylb is stopping")
        if self._phases.phase is not Phase.SERVING:  # the successor may have read the file before it changed
            self._on(Trigger.RELOAD)
            return None
        return await self._config_reload.read_config()

    async def reload_and_say(self) -> None:
        """Like `reload`, but the result goes to the log."""
        try:
            await self.reload()
        except (ConfigErrors, Refused) as error:
            log.error("reload refused, everything stays as it is:\n%s", error)

    async def upgrade(self) -> str:
        """Start the pylb that is installed now, and leave it everything but the live sessions. Raises Refused."""
        if self._phases.phase is not Phase.SERVING:
            raise Refused(Code.UNAVAILABLE, "pylb is starting, stopping or upgrading already", "call again")
        self._phases.on(Trigger.UPGRADE)  # its one action is what follows
        return await self._outgoing_upgrade.hand_over()

    async def upgrade_and_say(self) -> None:
        """Like `upgrade`, but the result goes to the log, and the phases know of it already."""
        try:
            log.info("upgrade: %s", await self._outgoing_upgrade.hand_over())
        except Refused as refused:
            log.error("%s", refused)

    async def counters(self) -> Counters:
        """The counters of this pylb and of previous ones that only end their sessions."""
        return await self._transfer.counters()

    async def read_keys(self) -> None:
        """Read a changed file with secrets and put its new content in force."""
        await self._config_reload.read_keys()

    async def plan(self, path: Path, text: str) -> Planned:
        """What a reload with this file would change. Raises ConfigErrors or Refused, as the reload would."""
        return await self._config_reload.plan(path, text)

    def token(self, name: str) -> Token | None:
        return self._settings.token(name)

    def token_names(self) -> list[str]:
        return [token.name for token in self._settings.keyring.tokens]

    @property
    def reloaded(self) -> bool:
        """Whether the config was read successfully the last time."""
        return self._settings.reloaded

    @property
    def file(self) -> Path | None:
        """The config's file, which a reload reads; None: the embedded defaults."""
        return self._config_reload.file
