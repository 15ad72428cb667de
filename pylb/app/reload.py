"""What is read again while pylb runs: the config (SIGHUP, `pylb reload`), secrets, certificates, this machine's addresses."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from operator import attrgetter
from pathlib import Path

from pylb.api.plan import LINES, Planned, Reloaded, in_words, steps
from pylb.app.background import Background
from pylb.app.errors import CannotStart
from pylb.app.forwarding import Forwarding
from pylb.app.settings import Settings, make_keys
from pylb.app.tokens import TOKEN_FILE
from pylb.config import Config
from pylb.config.source import ConfigSource
from pylb.control.registry import Registry
from pylb.control.steps import in_turns
from pylb.control.storage.store import Store
from pylb.control.tasks import Part
from pylb.core.errors import Code, Refused
from pylb.core.policy import Rules
from pylb.host.addresses import Addresses
from pylb.host.files import Watch
from pylb.host.machine import RESOLVE_SECONDS, local_addresses, resolve

log = logging.getLogger("pylb")


class ConfigReload:
    """Reads settings again and puts them in force, one reading at a time. `follow` is called with each new config."""

    def __init__(
        self,
        source: ConfigSource,
        *,
        settings: Settings,
        registry: Registry,
        forwarding: Forwarding,
        store: Store,
        follow: Callable[[Config], None],
    ) -> None:
        self._source = source
        self._settings = settings
        self._registry = registry
        self._forwarding = forwarding
        self._store = store
        self._follow = follow
        self._one = asyncio.Lock()  # one at a time, in order

    @property
    def file(self) -> Path | None:
        """None: the embedded defaults."""
        return None if self._source.path is None else self._source.path.absolute()

    def watch(self, background: Background) -> None:
        """From here on, secrets, certificates and this machine's addresses are read again whenever they change."""
        settings = self._settings
        background.forever(Part.KEYS, Watch(settings.key_files, self.read_keys).run)
        background.forever(Part.CERTIFICATES, Watch(settings.certificate_files, settings.read_certificates).run)
        background.forever(Part.ADDRESSES, Addresses(self.read_addresses).run)

    async def plan(self, path: Path, text: str) -> Planned:
        """What a reload with this file would change. Raises ConfigErrors or Refused, as the reload would."""
        config = await asyncio.to_thread(self._source.read, path, text)
        check_fixed(self._settings.config, config)
        rules = await rules_of(config)
        table, planned = await self._registry.rules.plan(rules, self._settings.keyring)
        lines = [*planned, *await self._registry.rules.plan_checks(table)]
        return Planned(lines, self._registry.rules.plan_for_others(rules))

    async def read_config(self) -> Reloaded:
        """All or nothing. Raises ConfigErrors or Refused."""
        async with self._one:
            return await self._read_config()

    async def _read_config(self) -> Reloaded:
        settings = self._settings
        settings.reloaded = False
        config = await asyncio.to_thread(self._source.load)  # ten thousand lines take a second
        check_fixed(settings.config, config)
        had_tokens = bool(settings.config.tokens)
        try:
            keys = await asyncio.to_thread(make_keys, config)
        except CannotStart as reason:
            raise Refused(Code.INVALID, str(reason)) from None
        keyring = keys.keyring()
        rules = await rules_of(config)
        _, changes = await self._registry.rules.plan(rules, keyring)
        planned = await steps(changes, await self._forwarding.sessions())
        change = await self._registry.rules.reload(rules, keyring)
        other = await asyncio.to_thread(_other_settings, settings.config, config)  # there may be thousands of tokens
        lines = [in_words(change), *other, *(step["text"] for step in planned)]
        settings.use(config, keys, keyring)
        self._follow(config)
        await settings.read_certificates()
        settings.reloaded = True
        await self.keep_config()
        async for line in in_turns(lines, LINES):
            log.info("reloaded: %s", line)
        if keys.secret is not None and had_tokens:
            log.warning("no token is configured any more: the generated one in %s counts", config.state_dir / TOKEN_FILE)
        return Reloaded(change, [f"reloaded {self.file or 'the embedded defaults'}: {lines[0]}", *lines[1:]])

    async def read_keys(self) -> None:
        """A file with secrets has changed: its new content takes effect."""
        async with self._one:
            settings = self._settings
            await asyncio.to_thread(settings.keys.read_again)
            keyring = settings.keys.keyring()
            if keyring.tokens != settings.keyring.tokens:
                await self._registry.rules.set_keyring(keyring)
                settings.keyring = keyring
                log.info("tokens read again: %d are in force", len(keyring.tokens))

    async def read_addresses(self) -> None:
        """Look which addresses this machine has now: a server at a new one is pylb itself, at a former one it no longer is."""
        async with self._one:
            with suppress(Refused):  # pylb is stopping
                await self._registry.rules.readdress(await own_ips_of(self._settings.config))

    async def keep_config(self) -> None:
        """In the disk's thread, which may hang, and which the end does not wait for."""
        try:
            await self._store.run(partial(self._source.keep, self._settings.config))
        except OSError as error:
            log.warning("the config could not be remembered for a start with a broken one: %s", error)


def _other_settings(old: Config, new: Config) -> list[str]:
    """Keys whose effect is not in the table. Of secrets in files nothing is said: they are read whenever they change."""
    changed = [key for key in Config.model_fields if key != "frontends" and getattr(old, key) != getattr(new, key)]
    return [f"other settings changed: {', '.join(changed)}"] if changed else []


async def own_ips_of(config: Config) -> frozenset[str]:
    """The addresses of this machine, and those by which others reach it. A name that does not resolve adds none."""
    own = await asyncio.to_thread(local_addresses)  # /proc/net/fib_trie is long on a router
    if config.advertise is not None:
        try:
            own |= await resolve(config.advertise)
        except TimeoutError:
            log.warning("advertise: %s did not resolve within %.0f s", config.advertise, RESOLVE_SECONDS)
    return own | config.own_ips


async def rules_of(config: Config) -> Rules:
    """With this machine's addresses, for the scope of tokens and against loops."""
    own = await own_ips_of(config)
    return await asyncio.to_thread(config.rules, own)  # ten thousand lines of access take a while


def check_fixed(old: Config, new: Config) -> None:
    """A change that a reload cannot make is refused, not ignored. Raises Refused."""
    fixed = ["webhook", "admin.listen", "metrics", "cluster.name", "cluster.etcd"]
    fixed += ["state_dir", "runtime_socket", "workers", "log", "recorder"]
    changed = [key for key in fixed if attrgetter(key)(old) != attrgetter(key)(new)]
    if changed:
        how = "pylb upgrade: the same version with the new config, and no connection is lost"
        if "state_dir" in changed:  # a successor finds the previous process by it
            how = "restart it: the ports come back by themselves"
        raise Refused(Code.INVALID, f"{', '.join(changed)} cannot change while pylb runs", how)
