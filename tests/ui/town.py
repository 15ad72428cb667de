"""Any number of apps as a town's operator might have them: most are well, a few are not, and each has its own load."""

import asyncio
import math
import random
import time
from collections.abc import Mapping
from typing import Any

from pylb.control.health.prober import ProbeRequest
from pylb.core.address import Address, Listen
from pylb.core.policy import AdminState, Policy, Rules, StaticFrontend, StaticServer
from pylb.forward.counters import FrontendCounters
from pylb.statuspage.timeseries import POINTS
from tests.support.ports import PORTS
from tests.ui.showcase import Showcase

IP = "127.0.8.1"  # nobody else's
NODES = ("203.0.113.7", "203.0.113.8", "203.0.113.9")
APPS = ("shop", "wiki", "mail", "chat", "library", "museum", "tram", "pool", "school", "archive", "forum", "maps", "water")
KINDS = ("https", "http", "api", "mqtt", "ssh", "smtp", "imap", "ldap", "git", "metrics")
LOST = {2: 1, 17: 2, 44: 1}  # by the place of a frontend: how many of its servers are lost
DRAINED = 9
AGO = 2.0 + POINTS  # seconds: when its pylb starts


PEERS = [
    {
        "name": "lb-2", "page": "https://lb-2.example.net", "health": "healthy", "sentence": "all 48 frontends healthy",
        "host": "lb-2.example.net", "version": "0.2.0", "sessions": 1873, "error": "",
    },
    {
        "name": "lb-3", "page": "http://localhost:8405", "health": "degraded", "sentence": "46 of 48 frontends healthy; "
        "mail-https lost 203.0.113.7:30002 4 min ago (it accepts no connections: timeout)",
        "host": "lb-3.example.net", "version": "0.2.0", "sessions": 1901, "error": "",
    },
    {"name": "lb-4", "page": "http://localhost:8406", "error": "no answer within 3 s"},
]  # fmt: skip


def peers() -> list[dict[str, Any]]:
    """Three other pylbs as `admin.peers` shows them."""
    now = time.monotonic()
    return [one | ({"at": round(now, 1)} if "health" in one else {}) for one in PEERS]


def rules(count: int) -> Rules:
    names = [f"{app}-{kind}" for kind in KINDS for app in APPS]
    frontends = []
    for place in range(count):
        number = place // len(names)
        name = names[place % len(names)] + (f"-{number + 1}" if number else "")
        nodes = NODES[: 1 + place % 3] if place not in LOST else NODES[:2]
        servers = tuple(StaticServer(Address(node, 30000 + place), name=f"node-{node[-1]}") for node in nodes)
        frontends.append(StaticFrontend(name, Listen("tcp", IP, PORTS[0] + place), servers))
    return Rules(tuple(frontends), Policy(bind=IP))


class Town:
    """Its traffic since a quarter of an hour, and what its servers answer to checks."""

    def __init__(self) -> None:
        self.draw = random.Random(3)
        self.at = 0
        self.seconds = 1  # between two looks at the counters
        self.lost: set[Address] = set()

    def traffic(self, counters: Mapping[Listen, FrontendCounters]) -> None:
        self.at += self.seconds
        wave = 1 + 0.4 * math.sin(self.at / 90)
        for place, one in enumerate(counters.values()):
            level = 40 / (1 + place * 7 % 23)
            new = self.seconds * int(level * wave * self.draw.uniform(0.9, 1.1) + self.draw.random())
            one.sessions_total += new
            one.sessions = int(level * wave * 5)
            one.bytes_in += new * 2_300
            one.bytes_out += new * (9_000 + 400 * (place % 50))
            one.connect_seconds.add(0.0004 + 0.0001 * (place % 7))
            for server in one.servers.values():
                server.sessions = one.sessions // len(one.servers)
                server.sessions_total += new // len(one.servers)

    async def answers(self, question: ProbeRequest) -> str:
        return "timeout" if question.server in self.lost else "yes"

    async def quarter(self, show: Showcase) -> None:
        """Fifteen minutes pass in a moment."""
        registry = show.registry
        show.ago(seconds=AGO, clock=AGO)
        await registry.probe()
        for place, (listen, frontend) in enumerate(list(registry.table.frontends.items())):
            show.ago(seconds=max(60, 240 - 3 * place), clock=max(60, 240 - 3 * place))
            for server in frontend.servers[: LOST.get(place, 0)]:
                self.lost.add(server.address)
                for _ in range(3):
                    registry.connect_ended(listen, server, "timeout")
            if place == DRAINED:
                await registry.operator.set_admin(f"{frontend.name}/{frontend.servers[0].name}", AdminState.DRAIN)
        await asyncio.sleep(0.05)  # the table follows in a later turn of the loop
        self.seconds = 5 if len(registry.table.frontends) <= 50 else 15
        for ago in range(POINTS + 1, 0, -self.seconds):
            show.ago(seconds=ago, clock=ago)
            await show.sampler.sample()
        self.seconds = 1
        show.ago(seconds=0, clock=0.0)
