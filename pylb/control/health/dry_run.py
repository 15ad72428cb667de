"""Which servers would go out: some frontends' checks, each asked once, without effect. For `pylb plan` and `pylb doctor`."""

import asyncio
from collections.abc import Iterable

from pylb.control.health.prober import Ask, ProbeRequest, probe_request
from pylb.control.publisher import FRONTENDS
from pylb.control.steps import in_turns
from pylb.core.health import OURS, PASSED
from pylb.core.policy import CONNECT, AdminState, HealthMode
from pylb.core.table import DOWN, Frontend, Server
from pylb.core.table_diff import ChangeKind, ChangeLine

MOST = 1000  # questions: so many a second all checks may ask


def has_check(frontend: Frontend, server: Server) -> bool:
    """Is its check more than a connect?"""
    health = frontend.health(server)
    return health.mode is not HealthMode.NONE and health.check != CONNECT and server.admin is not AdminState.MAINT


async def failing(frontends: Iterable[Frontend], ask: Ask) -> list[ChangeLine]:
    """A line for each server in service that does not pass its check now, among the first MOST that have one."""
    questions: dict[ProbeRequest, list[tuple[Frontend, Server]]] = {}
    async for frontend in in_turns(frontends, FRONTENDS):
        for server in frontend.servers:
            health = frontend.health(server)
            question = probe_request(frontend, server)
            asked = len(questions) < MOST or question in questions
            if asked and has_check(frontend, server) and (server.rank < DOWN or health.refuses):
                questions.setdefault(question, []).append((frontend, server))
    answers = await asyncio.gather(*map(ask, questions))
    both = zip(questions.values(), answers, strict=True)
    return [
        _line(frontend, server, found)
        for places, found in both
        for frontend, server in places
        if found not in PASSED and found not in OURS
    ]


def _line(frontend: Frontend, server: Server, found: str) -> ChangeLine:
    head = f"port {frontend.listen.route_text} ({frontend.name}): {server}"
    what = "gets no connection" if frontend.health(server).refuses else "goes out of service"
    text = f"{head} does not pass its check ({found}): it {what} while that is so"
    return ChangeLine(ChangeKind.FAILS, frontend.listen, frontend.name, text, server.address)
