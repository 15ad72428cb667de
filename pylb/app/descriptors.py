"""Who may have how many of the process's file descriptors: one budget, from the config and RLIMIT_NOFILE.

Calls, pages, checks and files have theirs first, and each of them is bounded by it; sessions have the rest. So pylb can answer
and write its state while every session's place is taken, and the other way round.
"""

from typing import NamedTuple

from pylb.config import Config
from pylb.forward.engine import connection_limit
from pylb.web.unix import MOST_CLIENTS

FILES = 64  # standard ones, loops, logs, the state and its folder, name look-ups, and what is about to be closed
PAGES = 64  # connections of the admin port, and of the metrics port
PROBES = 512  # connects at a time, to check a server or to prove it
PER_PROBE = 2  # its socket, and an epoll of its own
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

    @property
    def sessions(self) -> int:
        """Of a process that does all by itself, before the listeners of its frontends."""
        return connection_limit(self.nofile, reserve=self.reserve)

    @property
    def most_sessions(self) -> int:
        """Of all processes: each worker has a limit of its own."""
        return connection_limit(self.nofile) * self.workers if self.workers else self.sessions


def budget(config: Config, nofile: int, workers: int = 0) -> Budget:
    """Where descriptors are few the webhooks share an eighth of them, whatever the config says, and the others take less."""
    share = max(16, nofile // (8 * max(1, len(config.webhook))))
    webhook = tuple(min(one.limits.connections, share) for one in config.webhook)
    pages, probes = min(PAGES, max(16, nofile // 32)), min(PROBES, max(8, nofile // 32))
    listeners = len(config.webhook) + 1 + (config.metrics.listen is not None)
    reserve = sum(webhook) + pages * (listeners - len(config.webhook)) + listeners + FILES
    reserve += PER_PROBE * probes + LOCAL_SOCKETS * (MOST_CLIENTS + 1) + PER_WORKER * workers
    return Budget(nofile, webhook, pages, probes, reserve, workers)
