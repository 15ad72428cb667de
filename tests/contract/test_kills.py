"""Case 23: kill -9 at random moments of 1,000 registrations; what was answered is there after the restart, whole."""

import http.client
import random
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.contract.instance import Pylb
from tests.support.ports import free_ports
from tests.support.processes import Processes
from tests.support.waiting import eventually

CALLERS, NAMES, VERSIONS = 4, 250, 4  # 1,000 calls
MANY = 1_000_000


class Caller(threading.Thread):
    """Registers its names one after the other, each again and again: another address, one port more, one less."""

    def __init__(self, pylb: Pylb, ports: list[int], seed: int) -> None:
        super().__init__(name=f"caller {seed}")
        self.pylb, self.ports = pylb, ports
        self.random = random.Random(seed)
        self.answered: dict[str, dict[str, Any]] = {}  # what was confirmed last, by name
        self.asked: dict[str, dict[str, Any]] = {}  # what was asked last
        self.count = 0

    def run(self) -> None:
        calls = [number for number in range(len(self.ports) // 2) for _ in range(VERSIONS)]
        self.random.shuffle(calls)
        for number in calls:
            ports = self.ports[2 * number : 2 * number + self.random.choice([1, 2])]
            frontends = [{"port": port, "target_port": 30000 + port % 1000} for port in ports]
            body = {"frontends": frontends, "address": f"127.0.0.{self.random.randrange(2, 7)}", "ttl": None}
            name = f"app-{self.ports[2 * number]}"
            self.asked[name] = body
            try:
                answer = self.pylb.put(f"{name}/one", body)
            except (OSError, http.client.HTTPException):
                return  # killed in the middle of this one
            assert answer.status in (200, 201), answer.body
            assert answer.json["durable"] is True
            self.answered[name] = body
            self.count += 1


def have(callers: list[Caller], enough: int) -> bool:
    return sum(caller.count for caller in callers) >= enough


def wanted(body: dict[str, Any]) -> tuple[str, frozenset[tuple[int, int]]]:
    return body["address"], frozenset((one["port"], one["target_port"]) for one in body["frontends"])


@pytest.mark.timeout(1800)
def test_what_was_answered_survives_a_kill_at_any_moment(
    processes: Processes, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rounds = 200 if request.config.getoption("--long") else 5
    limits = {"burst": MANY, "rate": MANY, "lockout": MANY}
    ports = free_ports(2 * NAMES)
    share = len(ports) // CALLERS // 2 * 2
    confirmed = 0
    for number in range(rounds):
        pylb = Pylb(processes, tmp_path)
        pylb.state_dir = tmp_path / f"state-{number}"
        pylb.configure(webhook={"listen": f"127.0.0.1:{pylb.webhook}", "limits": limits}, log={"level": "warning"})
        pylb.start()
        callers = [Caller(pylb, ports[share * n : share * (n + 1)], number * CALLERS + n) for n in range(CALLERS)]
        for caller in callers:
            caller.start()
        enough = random.Random(number).randrange(1, CALLERS * share // 2 * VERSIONS)
        eventually(partial(have, callers, enough), within=60, what=f"{enough} answers")
        pylb.running.kill()
        for caller in callers:
            caller.join(15)
        pylb.start()
        held = pylb.registrations()
        found = {name.partition("/")[0]: wanted(one) for name, one in held.items()}
        served = {one["port"] for one in pylb.get("/v1/table").json["frontends"] if one["unbound"] is None}
        for caller in callers:
            confirmed += caller.count
            for name, body in caller.asked.items():
                before = caller.answered.get(name)
                allowed = {wanted(body)} | ({wanted(before)} if before else set())
                assert found.get(name) in (allowed if before else allowed | {None}), (number, name)
        assert served == {port for _, pairs in found.values() for port, _ in pairs}
        pylb.running.kill()
    assert confirmed > rounds  # calls were answered before the kills
