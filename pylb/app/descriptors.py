"""How the process's file descriptors are divided: one budget, from the config and RLIMIT_NOFILE.

Calls, pages, checks and files get a bounded share first; sessions get the rest. So pylb can answer and write its state while
every session's descriptors are in use, and the other way round.
"""

from typing import NamedTuple

from pylb.config import Config
from pylb.forward.listener import connection_limit
from pylb.web.unix import MOST_CLIENTS

FILES = 64  # standard ones, loops, logs, the state and its folder, name look-ups, and what is about to be closed
PAGES = 64  # connections of the admin port, and of the metrics port
PROBES = 512  # connects at a time, to check a server or to prove it
PER_PROBE = 2  # its socket and its epoll
PER_WORKER = 8
LOCAL_SOCKETS = 2


class Budget(NamedTuple):
    """Connections of each webhook, of the admin and the metrics port, probes at a time; and all that as descriptors."""

    nofile: int
    webhook: tuple[int, ...]
    pages: int
    probes: int
    reserve: int
    workers: int
    ports: int  # of the config's frontends; registrations may add more

    @property
    def sessions(self) -> int:
        """For a process that does everything itself, before the listeners of its frontends."""
        return connection_limit(self.nofile, reserve=self.reserve)

    @property
    def most_sessions(self) -> int:
        """For all processes, beside these ports: each worker has its own limit, and each port is a socket in each of them."""
        if not self.workers:
            return connection_limit(self.nofile, self.ports, self.reserve)
        return connection_limit(self.nofile, self.ports) * self.workers


def budget(config: Config, nofile: int, workers: int = 0) -> Budget:
    """If descriptors are few, the webhooks share an eighth of them, whatever the config says, and the others take less."""
    share = max(16, nofile // (8 * max(1, len(config.webhook))))
    webhook = tuple(min(one.limits.connections, share) for one in config.webhook)
    pages, probes = min(PAGES, max(16, nofile // 32)), min(PROBES, max(8, nofile // 32))
    listeners = len(config.webhook) + 1 + (config.metrics.listen is not None)
    reserve = sum(webhook) + pages * (listeners - len(config.webhook)) + listeners + FILES
    reserve += PER_PROBE * probes + LOCAL_SOCKETS * (MOST_CLIENTS + 1) + PER_WORKER * workers
    ports = sum(len(frontend.listen.ports) for frontend in config.frontends)
    return Budget(nofile, webhook, pages, probes, reserve, workers, ports)
