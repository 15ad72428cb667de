"""Who is asked when, and what follows: a checker with a clock cranked by hand and servers that say what they are told."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from pylb.control.health.checker import Checker
from pylb.control.health.prober import ProbeRequest
from pylb.core.address import Address, Listen
from pylb.core.policy import AdminState, Check, CheckKind, HealthMode, HealthPolicy, Policy, ProxyProtocol, WhenAllDown
from pylb.core.table import Frontend, Server, make_table
from tests.control.harness import Clock

LISTEN, OTHER = Listen("tcp", "*", 443), Listen("tcp", "*", 444)
HTTP = Check(CheckKind.HTTP, path="/up")


def server(number: int = 1, **given: object) -> Server:
    return Server(f"pod-{number}", Address(f"192.0.{2 + number // 250}.{number % 250}", 30443), **given)  # type: ignore[arg-type]


class Checked:
    """A checker, what it asked, what it was told, and its news."""

    def __init__(self, uniform: Callable[[float, float], float] = lambda low, high: (low + high) / 2) -> None:
        self.clock = Clock()
        self.asked: list[ProbeRequest] = []
        self.says: dict[Address, str] = {}
        self.news: list[tuple[str, str]] = []
        self.generation = 0
        self.fields: list[Mapping[str, str | int]] = []
        self.checker = Checker(self._ask, self.clock, uniform, self._on_news)

    def _on_news(self, _listens: list[Listen], kind: str, text: str, fields: Mapping[str, str | int]) -> None:
        self.news.append((kind, text))
        self.fields.append(fields)

    async def _ask(self, question: ProbeRequest) -> str:
        self.asked.append(question)
        return self.says.get(question.server, "yes")

    def serve(self, health: HealthPolicy, *servers: Server, listens: tuple[Listen, ...] = (LISTEN,)) -> None:
        self.generation += 1
        frontends = {listen: Frontend(f"web-{listen.port}", listen, Policy(health=health), servers) for listen in listens}
        self.checker.sync(make_table(self.generation, frontends), None)

    async def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.1)):
            self.clock.now += 0.1
            await self.checker.probe()

    def checks(self) -> list[ProbeRequest]:
        """Without the dials that prove."""
        return [question for question in self.asked if question != ProbeRequest(question.server)]


ACTIVE = HealthPolicy(HealthMode.ACTIVE, HTTP)


async def test_a_wrong_answer_takes_a_server_out_and_says_what_it_was() -> None:
    checked = Checked()
    checked.serve(ACTIVE, server())
    await checked.pass_time(3)
    checked.says[server().address] = "wrong answer: HTTP status 503"
    await checked.pass_time(6)
    assert (LISTEN, server().address) in checked.checker.health_records.down
    assert checked.news[-1] == (
        "server_down",
        "web-443: server 192.0.2.1:30443 is out after 3 failures (wrong answer: HTTP status 503)",
    )
    del checked.says[server().address]
    await checked.pass_time(10)
    assert checked.checker.health_records.down == {}
    assert [kind for kind, _ in checked.news] == ["server_proven", "server_down", "server_up"]
    address = {"address": "192.0.2.1:30443"}
    assert checked.fields == [address, {"frontend": "web-443"} | address, {"frontend": "web-443"} | address]


async def test_the_last_check_of_a_server_is_known_with_its_time_until_the_server_is_gone() -> None:
    checked, place = Checked(), (LISTEN, server().address)
    assert checked.checker.health_records.last_check(*place) is None
    checked.serve(HealthPolicy(), server())
    await checked.pass_time(0.1)  # the dial that proves it
    proven_at = checked.clock.now
    assert checked.checker.health_records.last_check(*place) == (pytest.approx(proven_at, abs=0.2), "yes")
    await checked.pass_time(5)
    checked.checker.connect_ended(*place, "timeout")  # what a client's session met
    assert checked.checker.health_records.last_check(*place) == (checked.clock.now, "timeout")
    checked.serve(HealthPolicy())
    assert checked.checker.health_records.last_check(*place) is None
    assert not checked.checker.health_records.servers
    assert not checked.checker.health_records.addresses


async def test_a_server_that_fails_its_check_has_answered_all_the_same() -> None:
    """Proof is of the connect: what is behind the address is health's matter."""
    checked = Checked()
    checked.serve(ACTIVE, server())
    await checked.pass_time(0.1)
    checked.says[server().address] = "wrong answer: HTTP status 503"
    await checked.pass_time(10)
    assert server().address in checked.checker.health_records.proven


async def test_who_has_passed_a_check_has_not_passed_another_one() -> None:
    """Such as policy Local after Cluster: the node's kube-proxy is well, and has no pod."""
    checked, (one, other) = Checked(), (server(1), server(2))
    checked.serve(ACTIVE, one, other)
    await checked.pass_time(5)
    records = checked.checker.health_records
    assert set(records.passed) == {(LISTEN, one.address), (LISTEN, other.address)}

    checked.says[one.address] = "wrong answer: HTTP status 503"
    another = replace(ACTIVE, check=replace(HTTP, path="/ready"))
    checked.serve(another, one, other)
    assert (dict(records.passed), dict(records.down)) == ({}, {}), "nothing is known, and nobody is out for that"
    await checked.pass_time(another.interval)
    assert (set(records.passed), set(records.down)) == ({(LISTEN, other.address)}, {(LISTEN, one.address)})


async def test_who_must_pass_is_out_until_it_has_passed_the_new_check() -> None:
    checked, place = Checked(), (LISTEN, server().address)
    refusing = replace(ACTIVE, when_all_down=WhenAllDown.REFUSE)
    checked.serve(refusing, server())
    await checked.pass_time(5)
    records = checked.checker.health_records
    assert place in records.passed

    checked.serve(replace(refusing, check=replace(HTTP, path="/ready")), server())
    assert place in records.down
    await checked.pass_time(0.1)
    assert (place in records.passed, place in records.down) == (True, False), "it is asked at once"


async def test_in_passive_mode_only_servers_that_are_out_are_asked_and_by_the_check() -> None:
    checked = Checked()
    checked.serve(HealthPolicy(HealthMode.PASSIVE, HTTP), server())
    await checked.pass_time(10)
    assert checked.checks() == []
    for _ in range(3):
        checked.checker.connect_ended(LISTEN, server().address, "refused")
    await checked.pass_time(10)
    assert checked.checks() == [ProbeRequest(server().address, HTTP)] * 2
    assert checked.checker.health_records.down == {}


async def test_frontends_that_ask_the_same_share_the_answer_and_others_do_not() -> None:
    checked = Checked()
    checked.serve(ACTIVE, server(), listens=(LISTEN, OTHER))
    await checked.pass_time(2.1)
    assert len(checked.checks()) == 1
    policies = (Policy(health=ACTIVE), Policy(health=HealthPolicy(HealthMode.ACTIVE, HTTP, timeout=9.0)))
    frontends = {
        listen: Frontend("x", listen, policy, (server(),)) for listen, policy in zip((LISTEN, OTHER), policies, strict=True)
    }
    checked.asked.clear()
    checked.checker.sync(make_table(9, frontends), None)
    await checked.pass_time(2.0)
    assert {question.timeout for question in checked.checks()} == {1.0, 9.0}


async def test_a_servers_own_check_counts_more_than_its_frontends() -> None:
    checked = Checked()
    own = Check(CheckKind.HTTP, path="/own", port=30444)
    checked.serve(ACTIVE, server(1, health=replace(ACTIVE, check=own)), server(2))
    await checked.pass_time(2.1)
    assert {question.target: question.check for question in checked.checks()} == {
        Address(server(1).address.ip, 30444): own,
        server(2).address: HTTP,
    }


async def test_a_port_of_its_own_is_asked_once_for_all_servers_of_a_machine() -> None:
    checked = Checked()
    policy = Policy(health=HealthPolicy(HealthMode.ACTIVE, replace(HTTP, port=10256), fall=1))
    servers = [replace(server(), address=Address("192.0.2.1", port)) for port in (30443, 30080)]
    frontends = {listen: Frontend("x", listen, policy, (one,)) for listen, one in zip((LISTEN, OTHER), servers, strict=True)}
    checked.says = {Address("192.0.2.1", 10256): "wrong answer: 503"}
    checked.checker.sync(make_table(1, frontends), None)
    await checked.pass_time(2.1)
    assert [question.target for question in checked.checks()] == [Address("192.0.2.1", 10256)]
    down = checked.checker.health_records.down
    assert all((listen, one.address) in down for listen, one in zip((LISTEN, OTHER), servers, strict=True))


async def test_many_servers_learn_the_answer_of_their_machine_in_steps_and_one_that_has_left_meanwhile_does_not() -> None:
    checked, policy = Checked(), Policy(health=HealthPolicy(HealthMode.ACTIVE, replace(HTTP, port=10256), fall=1))
    servers = [replace(server(), address=Address("192.0.2.1", 30000 + number)) for number in range(250)]
    frontends = {
        listen: Frontend("x", listen, policy, (one,))
        for one in servers
        for listen in (Listen("tcp", "*", one.address.port - 20000),)
    }
    fewer = dict(list(frontends.items())[:-1])
    checked.says = {Address("192.0.2.1", 10256): "wrong answer: 503"}
    loop, down, turns = asyncio.get_running_loop(), Counter[int](), [0]

    def turn() -> None:
        turns[0] += 1
        if down.total() < len(fewer):
            loop.call_soon(turn)

    def on_news(_listens: list[Listen], kind: str, *_: object) -> None:
        if kind == "server_down":
            if not down:
                checked.checker.sync(make_table(2, fewer), None)
            down[turns[0]] += 1

    checked.checker._on_change = on_news
    checked.checker.sync(make_table(1, frontends), None)
    turn()
    await checked.pass_time(2.1)
    assert down.total() == len(fewer)
    assert max(down.values()) <= 100


async def test_a_server_that_gets_proxy_headers_is_asked_with_one() -> None:
    checked = Checked()
    checked.serve(ACTIVE, server(send_proxy=ProxyProtocol.V2))
    await checked.pass_time(2.1)
    assert {question.send_proxy for question in checked.checks()} == {ProxyProtocol.V2}


@pytest.mark.parametrize(("admin", "asked"), [(AdminState.DRAIN, True), (AdminState.MAINT, False)])
async def test_a_server_in_maintenance_is_left_in_peace(admin: AdminState, asked: bool) -> None:
    checked = Checked()
    checked.says[server().address] = "refused"
    checked.serve(ACTIVE, server())
    await checked.pass_time(10)
    assert checked.checker.health_records.down
    checked.serve(ACTIVE, server(admin=admin, weight=0))
    assert bool(checked.checker.health_records.down) == asked
    checked.asked.clear()
    checked.checker.connect_ended(LISTEN, server().address, "refused")
    await checked.pass_time(31)
    assert bool(checked.checks()) == asked


async def test_a_thousand_servers_are_not_asked_in_the_same_instant() -> None:
    checked = Checked(random.Random(1).uniform)
    servers = [server(number) for number in range(1000)]
    checked.serve(ACTIVE, *servers)
    slots: Counter[int] = Counter()
    for slot in range(60):  # three intervals
        before = len(checked.checks())
        await checked.pass_time(0.1)
        slots[slot] = len(checked.checks()) - before
    assert sum(slots.values()) >= 2500
    assert max(slots.values()) <= 3 * 1000 / 20  # a slot's share of an interval is a twentieth


async def test_no_step_of_probing_a_thousand_servers_holds_the_loop() -> None:
    """Work is cut into batches: between two of them the loop turns."""
    checked = Checked()
    checked.serve(ACTIVE, *(server(number) for number in range(1000)))
    begun = []
    while len(checked.asked) < 2000:  # the proofs and the checks
        checked.clock.now += 1.0
        probing = asyncio.get_running_loop().create_task(checked.checker.probe())
        while not probing.done():
            await asyncio.sleep(0)
            begun.append(len(checked.asked))
    assert max(after - before for before, after in zip([0, *begun], begun, strict=False)) <= 2 * 16


async def test_checks_downtimes_and_the_last_finding_are_on_record() -> None:
    checked = Checked()
    address = server().address
    checked.serve(ACTIVE, server())
    await checked.pass_time(3)
    known = checked.checker.health_records.checks(LISTEN, address)
    assert (known.failures, known.downs, known.found) == (0, 0, "yes")
    checked.says[address] = "wrong answer: HTTP status 503"
    await checked.pass_time(6)
    went_down = checked.clock.now
    found = checked.checker.health_records.checks(LISTEN, address)
    assert (found.failures, found.downs, found.found) == (3, 1, "wrong answer: HTTP status 503")
    assert found.changed_at == pytest.approx(went_down, abs=3)
    del checked.says[address]
    await checked.pass_time(10)
    back = checked.checker.health_records.checks(LISTEN, address)
    assert (back.downs, back.found) == (1, "yes")
    assert back.down_seconds == pytest.approx(back.changed_at - found.changed_at)
    checked.serve(ACTIVE, server(2))
    assert checked.checker.health_records.checks(LISTEN, address) == type(back)()


async def test_the_connects_that_are_to_prove_a_server_are_its_checks_until_there_are_others() -> None:
    checked = Checked()
    checked.says[server().address] = "refused"
    checked.serve(HealthPolicy(), server())
    await checked.pass_time(5)
    record = checked.checker.health_records.checks(LISTEN, server().address)
    assert (record.found, record.failures) == ("refused", len(checked.asked))


async def test_a_server_that_is_taken_into_maintenance_is_not_down_any_more() -> None:
    checked = Checked()
    checked.serve(HealthPolicy(), server())
    for _ in range(3):
        checked.checker.connect_ended(LISTEN, server().address, "refused")
    checked.clock.now += 5
    checked.serve(HealthPolicy(), server(admin=AdminState.MAINT))
    record = checked.checker.health_records.checks(LISTEN, server().address)
    assert (record.downs, record.down_seconds) == (1, pytest.approx(5))


@pytest.mark.parametrize("found", ["timeout", "yes"])
async def test_a_server_that_leaves_while_it_is_asked_is_asked_no_more_and_forgotten(found: str) -> None:
    """A black hole was dialled for ever, and one that answered stayed proven, in every snapshot from then on."""
    c, answers = Checked(), asyncio.Event()
    ask, one = c.checker._ask, server()

    async def slow(question: ProbeRequest) -> str:
        await answers.wait()
        return await ask(question)

    c.checker._ask, c.says = slow, {one.address: found}
    c.serve(HealthPolicy(), one)
    asking = asyncio.get_running_loop().create_task(c.checker.probe())
    await asyncio.sleep(0)
    c.serve(HealthPolicy())
    answers.set()
    await asking
    assert c.asked.pop() == ProbeRequest(one.address)
    await c.pass_time(60)
    assert not c.asked
    assert one.address not in c.checker.health_records.proven
    assert c.checker.health_records.answer(one.address) is None
