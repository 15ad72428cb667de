"""Where everything of a run of the soak listens, and pylb's config for it."""

import contextlib
import random
import secrets
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.processes import Address, free_ports
from bench.targets import OWN_PORTS

LOOPBACK = "127.0.0.1"
FRONTENDS = 4  # under load; two more come and go


@dataclass(frozen=True)
class Setup:
    """Where everything of a run listens, its folder and its token."""

    webhook: Address
    admin: Address
    frontends: list[Address]
    extra: list[Address]
    servers: list[Address]
    refused: Address
    folder: Path
    token: str
    workers: int

    def config(self) -> str:
        """pylb's own file, rewritten with another number of retries for every reload."""
        return self.with_retries(3)

    def with_retries(self, retries: int) -> str:
        ports = [address.port for address in (*self.frontends, *self.extra)]
        targets = [address.port for address in (*self.servers, self.refused)]
        everything: dict[str, Any] = {
            "webhook": [{"listen": str(self.webhook)}],
            "admin": {"listen": str(self.admin)},
            "state_dir": str(self.folder / "state"),
            "workers": self.workers,
            "log": {"format": "tcplog", "level": "warning"},
            "tokens": [
                {
                    "name": "soak",
                    "secret": self.token,
                    "names": ["*"],
                    "ports": ports,
                    "targets": ["127.0.0.0/8"],
                    "target_ports": targets,
                }
            ],
            "defaults": {"bind": LOOPBACK, "retries": retries, "timeouts": {"flush": "10s", "drain": "30s"}},
        }
        return yaml.safe_dump(everything, sort_keys=False)


@contextlib.contextmanager
def prepared(workers: int) -> Iterator[Setup]:
    """Free ports on loopback and a folder for the run. The refusing address is bound and never listens."""
    start = random.randrange(len(OWN_PORTS))
    names = iter(free_ports(LOOPBACK, 2 + FRONTENDS + 2 + 3, iter([*OWN_PORTS[start:], *OWN_PORTS[:start]])))

    def take(count: int) -> list[Address]:
        return [Address(LOOPBACK, next(names)) for _ in range(count)]

    webhook, admin = take(2)
    with tempfile.TemporaryDirectory(prefix="pylb-soak-") as folder, socket.socket() as refused:
        frontends, extra, servers, [nobody] = take(FRONTENDS), take(2), take(2), take(1)
        refused.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of what was there before only TIME_WAIT is left
        refused.bind(nobody)
        yield Setup(webhook, admin, frontends, extra, servers, nobody, Path(folder), secrets.token_urlsafe(32), workers)
