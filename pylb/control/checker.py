"""Who is to be asked, and when: the dial that proves a new target, the probes that find out when a server is back.

A probe never delays anything: it runs beside the single writer, and only its finding is handed over, by `on_news`.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

from pylb.control.probe import Ask, Question
from pylb.core.address import Address, Listen
from pylb.core.compose import Sight
from pylb.core.health import (
    PROVEN,
    UNRECORDED,
    UP,
    YES,
    Health,
    Proof,
    Record,
    answered,
    checked,
    failed,
    prove,
    turned,
    unproven,
    watched,
)
from pylb.core.persistent import Frozen
from pylb.core.policy import AdminState, CheckKind, HealthMode
from pylb.core.table import Frontend, Server, Table

AGAIN = 20.0  # seconds between two connects to a server of somebody who no longer calls
BATCH = 16  # probes begun at once, a tenth of a millisecond each; then the loop gets its turn

Place = tuple[Listen, Address]


class Answer(NamedTuple):
    """The last that an address said to a connect of anybody: a dial, a check of its own port, a client's session."""

    found: str  # YES, or why not
    at: float
    accepted_at: float  # the last YES; -inf: never yet


News = Callable[[list[Listen], str, str, Mapping[str, str | int]], None]


class Checker:
    """What is known of all servers. `on_news(listens, kind, text, fields)` is called when a rank may differ."""

    def __init__(self, ask: Ask, clock: Callable[[], float], uniform: Callable[[float, float], float], on_news: News) -> None:
        self._ask = ask
        self._clock = clock
        self._uniform = uniform
        self._on_news = on_news
        self._health: dict[Place, Health] = {}
        self._proofs: dict[Address, Proof] = {}
        self._records: dict[Place, Record] = {}
        self._dials: dict[Address, Record] = {}  # of the connects that are to prove an address
        self._answers: dict[Address, Answer] = {}
        self._again: dict[Address, float] = {}  # when to ask those of `ask_on` next, whatever they have answered
        self._asking: dict[Question, asyncio.Task[str]] = {}
        self._probing: set[Place | Address] = set()  # due, and being asked
        self._checks: dict[Place | Address, tuple[float, str]] = {}  # the last finding of each, and when
        self._servers: dict[Place, Server] = {}
        self._users: dict[Address, dict[Listen, None]] = {}  # the frontends that have it
        self._down: Frozen[Place, bool] = Frozen()
        self.proven: Frozen[Address, bool] = Frozen()  # addresses that have answered once
        self._agenda: list[tuple[float, int, Place | Address]] = []  # a heap of when to ask; what is out of date is skipped
        self._planned = 0
        self.table = Table()
        self.interval = 2.0  # seconds between two dials of an unproven target, at first

    @property
    def sight(self) -> Sight:
        return Sight(self.proven, self._down)

    def proof(self, address: Address) -> Proof | None:
        return self._proofs.get(address)

    def answer(self, address: Address) -> Answer | None:
        """None: nobody has tried yet, since pylb started."""
        return self._answers.get(address)

    def reachable(self, address: Address) -> tuple[str, str, float | None]:
        """(the last answer: yes, refused, timeout or unknown; a hint; when, None: before this pylb started)."""
        answer, proof = self._answers.get(address), self._proofs.get(address)
        if answer is None:
            return (proof.reachable, proof.hint, None) if proof else ("unknown", "", None)
        last = Proof(answer.found)
        return last.reachable, last.hint, answer.at

    def in_maintenance(self, listen: Listen, address: Address) -> bool:
        server = self._servers.get((listen, address))
        return server is not None and server.admin is AdminState.MAINT

    def ask_on(self, addresses: Iterable[Address]) -> None:
        """These, and no others, are asked on whether they answer, every AGAIN seconds: nobody else would find out."""
        wanted = {address for address in addresses if address in self._users}
        now = self._clock()
        for address in wanted - self._again.keys():
            self._again[address] = now
            self._plan(address)
        for address in self._again.keys() - wanted:
            del self._again[address]
            self._plan(address)

    def health(self, listen: Listen, address: Address) -> Health | None:
        """None: never a failure, and never probed."""
        return self._health.get((listen, address))

    def record(self, listen: Listen, address: Address) -> Record:
        """Of its checks, and of the connects that were to prove it; the last finding is a check's, where there was one."""
        record, dials = self._records.get((listen, address), UNRECORDED), self._dials.get(address, UNRECORDED)
        failures = record.failures + dials.failures
        if record.found:
            return replace(record, failures=failures)
        return replace(record, failures=failures, found=dials.found, seconds=dials.seconds)

    def last_check(self, listen: Listen, address: Address) -> tuple[float, str] | None:
        """As Registry.last_check."""
        both = self._checks.get((listen, address)), self._checks.get(address)
        return max((check for check in both if check is not None), default=None)

    def restore(self, proven: Iterable[Address]) -> None:
        self._proofs.update(dict.fromkeys(proven, PROVEN))
        self.proven = Frozen(dict.fromkeys(self._proofs, True))

    def unknown(self, addresses: Iterable[Address]) -> bool:
        """Is there any that nobody has dialled yet?"""
        return any(address not in self._proofs for address in addresses)

    async def dial_new(self, addresses: Iterable[Address]) -> None:
        """Dials those nothing is known of, all at once (<= 1 s). What is found is kept; ranks follow with the next table."""
        unknown = {address for address in addresses if address not in self._proofs}
        await asyncio.gather(*(self._answer(Question(address)) for address in unknown))

    async def dial(self, addresses: Iterable[Address]) -> None:
        """Asks these now, all at once (<= 1 s), whatever is known of them."""
        await asyncio.gather(*(self._answer(Question(address)) for address in {*addresses}))

    async def _answer(self, question: Question) -> str:
        """Two that ask the same share one connection, and it goes on if one of them gives up."""
        running = self._asking.get(question)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._ask_and_learn(question))
            self._asking[question] = running
        return await asyncio.shield(running)

    async def _ask_and_learn(self, question: Question) -> str:
        address, began = question.server, self._clock()
        try:
            found = await self._ask(question)
        finally:
            del self._asking[question]
        self._learn(question, found)
        if question == Question(address):
            if address in self._again:
                self._again[address] = self._clock() + AGAIN * self._jitter()
            self._dials[address] = checked(self._dials.get(address, UNRECORDED), found, self._clock() - began)
        if found == YES or question == Question(address):  # whoever passes a check has answered; a wrong answer is no refusal
            known = self._proofs.get(address)
            self._checks[address] = (self._clock(), found)
            self._proofs[address] = prove(known, found, self.interval, self._clock(), jitter=self._jitter())
            self._plan(address)
            if found == YES and address not in self.proven:
                self.proven = self.proven.edited({address: True})
        return found

    def _learn(self, question: Question, found: str) -> None:
        """What a check says of connects to the server: nothing from another port, nor when it takes too long to be passed."""
        if question.check.port or (found == "timeout" and question.check.kind is not CheckKind.TCP):
            return
        self._heard(question.server, YES if found.startswith("wrong answer") else found)

    def _heard(self, address: Address, found: str) -> None:
        now, before = self._clock(), self._answers.get(address)
        accepted = now if found == YES else before.accepted_at if before else -inf
        self._answers[address] = Answer(found, now, accepted)

    def forget_unused(self, addresses: Iterable[Address]) -> None:
        """Of a call that was refused after its dial."""
        for address in addresses:
            if address not in self._users:
                self._proofs.pop(address, None)
                self._dials.pop(address, None)
                self._checks.pop(address, None)
                self._answers.pop(address, None)
                self.proven = self.proven.edited({address: None})

    def sync(self, table: Table, touched: Iterable[Listen] | None) -> None:
        """After a new table: watch what active mode wants, ask who is not known, forget what is gone. None: all frontends."""
        for _ in self.syncing(table, touched):
            pass

    def syncing(self, table: Table, touched: Iterable[Listen] | None) -> Iterator[None]:
        """`sync` in steps of one frontend. Until the last one what is new is not asked yet, and gone servers still are."""
        before = self.table
        for listen in (
            list({**dict.fromkeys(before.frontends), **dict.fromkeys(table.frontends)}) if touched is None else touched
        ):
            self._sync(listen, before.frontends.get(listen), table.frontends.get(listen))
            yield
        self.table = table

    def _sync(self, listen: Listen, old: Frontend | None, new: Frontend | None) -> None:
        known = {server.address: server for server in old.servers} if old else {}
        now = {server.address: server for server in new.servers} if new else {}
        same_policy = old is not None and new is not None and old.policy is new.policy
        for address in known.keys() - now.keys():
            self._forget(listen, address)
            self._records.pop((listen, address), None)
            users = self._users.get(address, {})
            users.pop(listen, None)
            if not users:
                self._users.pop(address, None)
                self.forget_unused([address])
        for address, server in now.items():
            if new is not None and not (same_policy and known.get(address) == server):
                self._users.setdefault(address, {})[listen] = None
                self._watch(new, server)

    def _forget(self, listen: Listen, address: Address) -> None:
        place = (listen, address)
        self._servers.pop(place, None)
        self._health.pop(place, None)
        self._checks.pop(place, None)
        if place in self._down:
            self._down = self._down.edited({place: None})
            self._turn(place, down=False)

    def _turn(self, place: Place, *, down: bool) -> None:
        now = self._clock()
        self._records[place] = turned(self._records.get(place, Record(now)), now, down=down)

    def _watch(self, frontend: Frontend, server: Server) -> None:
        now, address = self._clock(), server.address
        if address not in self._proofs:
            self._proofs[address] = unproven(now)
            self._plan(address)
        if server.admin is AdminState.MAINT:  # left in peace; once it is ready, nothing is known of it
            self._forget(frontend.listen, address)
        self._servers[frontend.listen, address] = server
        self._records.setdefault((frontend.listen, address), Record(now))
        policy = frontend.policy.health
        if policy.mode is HealthMode.ACTIVE and server.admin is not AdminState.MAINT:
            # The first probes are spread over a whole interval: a thousand servers come with one reload.
            place = (frontend.listen, address)
            if place not in self._health:
                self._health[place] = watched(policy, now, self._uniform(0.0, 1.0))
                self._plan(place)

    def connect_ended(self, listen: Listen, address: Address, failure: str | None) -> None:
        """What a client's session met. Cheap; news are given in the same call."""
        frontend = self.table.frontends.get(listen)
        server = self._servers.get((listen, address))
        if frontend is not None and server is not None and server.admin is not AdminState.MAINT:
            self._heard(address, failure or YES)
            self._heed(frontend, address, failure, probe=False)

    def _heed(self, frontend: Frontend, address: Address, failure: str | None, *, probe: bool) -> None:
        place, now, policy = (frontend.listen, address), self._clock(), frontend.policy.health
        before = self._health.get(place, UP)
        if failure is None:
            after = answered(before, policy, now, jitter=self._jitter())
        else:
            after = failed(before, policy, failure, now, probe=probe, jitter=self._jitter())
        self._health[place] = after
        if after.probe_at != before.probe_at:
            self._plan(place)
        self._checks[place] = (now, failure or YES)
        if after.down is before.down:
            return
        self._turn(place, down=after.down)
        fields = {"frontend": frontend.name, "address": str(address)}
        if after.down:
            self._down = self._down.edited({place: True})
            text = f"{frontend.name}: server {address} is out after {after.failures} failures ({failure})"
            self._on_news([frontend.listen], "server_down", text, fields)
        else:
            self._down = self._down.edited({place: None})
            self._on_news([frontend.listen], "server_up", f"{frontend.name}: server {address} is back", fields)

    def _asked_at(self, place: Place | Address) -> float:
        """When it is to be asked next; inf: it is not."""
        if isinstance(place, Address):
            proof = self._proofs.get(place)
            return min(self._again.get(place, inf), inf if proof is None else proof.probe_at)
        health = self._health.get(place)
        return inf if health is None else health.probe_at

    def _plan(self, place: Place | Address) -> None:
        at = self._asked_at(place)
        if at < inf:
            self._planned += 1  # among equals the first one; places themselves have no order
            heappush(self._agenda, (at, self._planned, place))

    def is_due(self) -> bool:
        now, agenda = self._clock(), self._agenda
        while agenda and agenda[0][0] <= now:
            at, _, place = agenda[0]
            if self._asked_at(place) == at and place not in self._probing:
                return True
            heappop(agenda)  # asked again since, or gone, or being asked: then `probe` plans it anew
        return False

    async def probe(self) -> None:
        """All probes that are due; returns when the last has its finding. The loop gets its turn after every few."""
        loop, due = asyncio.get_running_loop(), dict[Place | Address, None]()
        while self.is_due():
            due[heappop(self._agenda)[2]] = None
        self._probing.update(due)
        try:
            questions = await self._questions(due)
            running = []
            for number, (question, places) in enumerate(questions.items(), 1):
                running.append(loop.create_task(self._probe(question, places)))
                if number % BATCH == 0:
                    await asyncio.sleep(0)
            await asyncio.gather(*running)
        finally:
            self._probing.difference_update(due)
            now = self._clock()
            for place in due:
                if self._asked_at(place) <= now:  # nothing was found
                    self._plan(place)

    async def _questions(self, due: Iterable[Place | Address]) -> dict[Question, list[Place | Address]]:
        """What to ask, and for whom: an address by itself is its proof's, a place is health's."""
        questions: dict[Question, list[Place | Address]] = {}
        for number, place in enumerate(due, 1):
            if isinstance(place, Address):
                questions.setdefault(Question(place), []).append(place)
            elif place in self._servers and place[0] in self.table.frontends:
                questions.setdefault(self._question(place), []).append(place)
            if number % BATCH == 0:
                await asyncio.sleep(0)
        return questions

    def _question(self, place: Place) -> Question:
        policy, server = self.table.frontends[place[0]].policy.health, self._servers[place]
        return Question(server.address, server.check or policy.check, server.send_proxy, policy.timeout)

    async def _probe(self, question: Question, places: Iterable[Place | Address]) -> None:
        address = question.server
        proven_before, began = address in self.proven, self._clock()
        try:
            found = await self._answer(question)
        finally:
            self._probing.difference_update(places)  # the others of its round may take longer
        for place in places:
            if not isinstance(place, Address) and place in self._health:
                known = self._records.get(place, Record(began))
                self._records[place] = checked(known, found, self._clock() - began)
                self._heed(self.table.frontends[place[0]], address, None if found == YES else found, probe=True)
        if found == YES and not proven_before and address in self._users:
            at = list(self._users[address])
            text = f"server {address} has answered for the first time"
            self._on_news(at, "server_proven", text, {"address": str(address)})

    async def stop(self) -> None:
        """Ends the probes under way."""
        running = list(self._asking.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _jitter(self) -> float:
        return self._uniform(0.9, 1.1)
