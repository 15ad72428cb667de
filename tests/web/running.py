"""A real registry and a real engine on the test's own loop, as the app joins them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from pylb.control.registry import Registry
from pylb.control.storage.store import Store
from pylb.core.address import Listen, Ports
from pylb.core.auth import Keyring, Token
from pylb.core.policy import Policy, Rules
from pylb.core.session import SessionRecord
from pylb.core.table import Server
from pylb.forward.engine import Engine
from pylb.workers.in_process import InProcessEngine

SECRET = "a-secret-of-more-than-22-characters"
WEAK = "shared"
LOOPBACK = (ip_network("127.0.0.0/8"),)
PORTS = Ports(((20000, 29999),))


@dataclass
class Control:
    registry: Registry
    engine: Engine
    keyring: Keyring
    records: list[SessionRecord]
    driver: InProcessEngine


def keyring() -> Keyring:
    targets = Ports(((20000, 32767),))
    return Keyring(
        [
            Token("mosquitto", (SECRET,), PORTS, targets=LOOPBACK, target_ports=targets),
            Token("old", (WEAK,), PORTS, targets=LOOPBACK, target_ports=targets),
        ]
    )


class _Watcher:
    wants_records = True

    def __init__(self) -> None:
        self.records: list[SessionRecord] = []
        self.registry: Registry | None = None

    def session_ended(self, record: SessionRecord) -> None:
        self.records.append(record)

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:
        if self.registry is not None:
            self.registry.connect_ended(listen, server, failure)


def _fail(what: str, error: Exception) -> None:
    pytest.fail(f"{what}: {error!r}")


@asynccontextmanager
async def running(state_dir: Path, rules: Rules | None = None, recorded: int = 100) -> AsyncIterator[Control]:
    watcher = _Watcher()
    engine = Engine(observer=watcher, max_connections=1000, on_fault=_fail, recorded=recorded)
    keys = keyring()
    driver = InProcessEngine(engine)
    registry = Registry(
        rules=rules or Rules(defaults=Policy(bind="127.0.0.1")), keyring=keys, sink=driver, store=Store(state_dir)
    )
    watcher.registry = registry
    await registry.start()
    try:
        yield Control(registry, engine, keys, watcher.records, driver)
    finally:
        await registry.stop()
        driver.close()
