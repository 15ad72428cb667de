"""The table of docs/pools.md, held against the checker: when a server goes out, and when it is back."""

import asyncio
import random
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from pylb.control.health.checker import Checker
from pylb.control.health.prober import ProbeRequest
from pylb.control.periodic import PROBE_PERIOD
from pylb.core.policy import CONNECT, Check, CheckKind, HealthMode, HealthPolicy, Policy, Step, WhenAllDown
from pylb.core.table import Frontend, make_table
from tests.control.harness import Clock
from tests.control.health.test_checker import LISTEN, server

DOCS = Path(__file__).parents[3] / "docs" / "pools.md"
CHECKS = {
    "connect": CONNECT,
    "http": Check(CheckKind.HTTP, path="/up"),
    "steps": Check(CheckKind.SEND, (Step(b"PING", b"PONG"), Step(b"info", b"role:master"))),
}
MODES = {
    "unset (passive)": None,
    "unset (active)": None,
    "passive": HealthMode.PASSIVE,
    "active": HealthMode.ACTIVE,
    "none": HealthMode.NONE,
}
SAYS = {"refuses": "refused", "is silent": "timeout", "answers 503": "wrong answer: HTTP status 503"}
FOR_EVER = 120.0  # seconds
CLIENTS = "failed connects of clients"


class Row(NamedTuple):
    check: str
    mode: str
    when_all_down: str
    server: str
    out: str
    back: str

    @property
    def policy(self) -> HealthPolicy:
        return HealthPolicy(MODES[self.mode], CHECKS[self.check], when_all_down=WhenAllDown(self.when_all_down))


def rows() -> Iterator[Row]:
    head, lines = "| check | mode | when_all_down | the server | out after | back after |", DOCS.read_text().splitlines()
    for line in lines[lines.index(head) + 2 :]:
        if not line.startswith("|"):
            return
        yield Row(*(cell.strip() for cell in line.strip("|").split("|")))


class Watched:
    """One server, asked by the checker as maintenance does it; a server that is silent costs a check its timeout."""

    def __init__(self, row: Row, seed: int) -> None:
        self.clock, self.says = Clock(), "yes"
        self.random = random.Random(seed)
        self.checker = Checker(self._ask, self.clock, self.random.uniform, lambda *_: None)
        self.row, self.one = row, server()
        policy = Policy(health=row.policy)
        self.checker.sync(make_table(1, {LISTEN: Frontend("web", LISTEN, policy, (self.one,))}), None)
        self._running: set[asyncio.Task[None]] = set()

    async def _ask(self, question: ProbeRequest) -> str:
        answer, end = self.says, self.clock.now + question.timeout
        while answer == "timeout" and self.clock.now < end:  # noqa: ASYNC110 - the clock is cranked by the test
            await asyncio.sleep(0)
        return answer

    @property
    def is_down(self) -> bool:
        return (LISTEN, self.one.address) in self.checker.health_records.down

    async def step(self) -> None:
        self.clock.now += PROBE_PERIOD
        if self.checker.is_due():
            task = asyncio.get_running_loop().create_task(self.checker.probe())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        for _ in range(6):
            await asyncio.sleep(0)

    async def seconds_until(self, *, down: bool) -> float:
        began = self.clock.now
        while self.is_down is not down:
            await self.step()
            if self.clock.now > began + FOR_EVER:
                return float("inf")
        return self.clock.now - began

    async def connects(self) -> int:
        """Clients that fail until it is out."""
        count = 0
        while not self.is_down:
            count += 1
            self.checker.connect_ended(LISTEN, self.one.address, SAYS[self.row.server])
        return count

    async def story(self) -> tuple[float, float]:
        """(seconds or clients until it was out, seconds until it was back)."""
        for _ in range(200 + self.random.randrange(40)):
            await self.step()
        assert not self.is_down
        self.says = SAYS[self.row.server]
        by_clients = self.row.out.endswith(CLIENTS)
        out = await self.connects() if by_clients else await self.seconds_until(down=True)
        if not self.is_down:
            return out, 0.0
        for _ in range(800 + self.random.randrange(40)):  # away for 40 s
            await self.step()
        self.says = "yes"
        return out, await self.seconds_until(down=False)


def number(text: str) -> float:
    if text == "never":
        return float("inf")
    found = re.match(r"\d+", text)
    return float(found[0]) if found else 0.0


def test_the_table_has_each_check_in_each_mode_and_each_silence_and_answer() -> None:
    found = list(rows())
    modes = {mode.partition(" ")[0] for mode in MODES}
    assert {(row.check, row.mode.partition(" ")[0]) for row in found} == set(product(CHECKS, modes))
    assert {row.mode for row in found} == set(MODES)
    assert {row.server for row in found} == set(SAYS)


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: f"{row.check}-{row.mode}-{row.when_all_down}-{row.server}")
async def test_a_server_is_out_and_back_as_the_table_says(row: Row) -> None:
    stories = [await Watched(row, seed).story() for seed in range(12)]
    out, back = (max(values) for values in zip(*stories, strict=True))
    assert out <= number(row.out)
    assert back <= number(row.back)
    # And it promises no more time than it takes: the slowest of a dozen is near.
    assert out >= 0.75 * number(row.out)
    assert back >= 0.6 * number(row.back)
    if row.mode.startswith("unset"):
        assert str(row.policy.mode) in row.mode
