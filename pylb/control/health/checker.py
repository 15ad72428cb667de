"""Who is to be asked: the dial that proves a new target, the checks that find out who goes out and who is back.

A probe never delays anything: it runs beside the single writer, and only its finding is handed over, by `on_news`. However
many frontends ask the same of a server, it is asked once, and all of them learn the answer.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from typing import NamedTuple

from pylb.control.health.agenda import Agenda
from pylb.control.health.prober import Ask, Question
from pylb.control.steps import in_turns
from pylb.core.address import Address, Listen
from pylb.core.compose import Sight
from pylb.core.health import (
    PROVEN,
    SILENT,
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
    remembered,
    turned,
    unasked,
    unproven,
    watched,
)
from pylb.core.persistent import Frozen
from pylb.core.policy import AdminState, CheckKind, HealthMode, HealthPolicy
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


def question_of(frontend: Frontend, server: Server) -> Question:
    """Its check."""
    policy = frontend.health(server)
    return Question(server.address, policy.check, server.send_proxy, policy.timeout)


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
        self._asking: dict[Question, asyncio.Task[tuple[str, bool]]] = {}
        self._probing: set[Place | Address] = set()  # due, and being asked
        self._checks: dict[Place | Address, tuple[float, str]] = {}  # the last finding of each, and when
        self._servers: dict[Place, Server] = {}
        self._users: dict[Address, dict[Listen, None]] = {}  # the frontends that have it
        self._considered: Counter[Address] = Counter()  # by calls that are not in force yet
        self._groups: dict[Question, dict[Place, None]] = {}  # of places that ask the same
        self._questions: dict[Place, Question] = {}
        self._last_asked: dict[Place | Address, float] = {}
        self.down: Frozen[Place, bool] = Frozen()
        self.passed: Frozen[Place, bool] = Frozen()  # up, and the last check said so
        self.proven: Frozen[Address, bool] = Frozen()  # addresses that have answered once
        self.agenda: Agenda[Place | Address] = Agenda(clock, self._asked_at, self._probing)
        self.table = Table()
        self.defaults = HealthPolicy()  # how unproven targets are dialled
        self._synced = False

    @property
    def sight(self) -> Sight:
        return Sight(self.proven, self.down, self.passed)

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

    def restore(self, proven: Iterable[Address], down: Frozen[Place, bool], passed: Frozen[Place, bool]) -> None:
        """What a snapshot remembers, before the first `sync`: a start neither opens a closed door nor closes an open one."""
        self._proofs.update(dict.fromkeys(proven, PROVEN))
        self.proven = Frozen(dict.fromkeys(self._proofs, True))
        self.down, self.passed = down, passed

    def unknown(self, addresses: Iterable[Address]) -> bool:
        """Is there any that nobody has dialled yet?"""
        return any(address not in self._proofs for address in addresses)

    async def dial_new(self, addresses: Iterable[Address]) -> None:
        """Dials those nothing is known of, all at once (<= 1 s). What is found is kept; ranks follow with the next table."""
        await self.dial(address for address in addresses if address not in self._proofs)

    async def dial(self, addresses: Iterable[Address]) -> None:
        """Asks these now, all at once (<= 1 s), whatever is known of them."""
        questions = [Question(address) for address in {*addresses}]
        if len(questions) == 1:  # as nearly always: no task and no future of a group for it
            await self._answer(questions[0])
        else:
            await asyncio.gather(*map(self._answer, questions))

    async def _answer(self, question: Question) -> tuple[str, bool]:
        """What was found, and whether it proves the address.

        Two that ask the same share one connection, and it goes on if one of them gives up.
        """
        running = self._asking.get(question)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._ask_and_learn(question))
            self._asking[question] = running
        return await asyncio.shield(running)

    async def _ask_and_learn(self, question: Question) -> tuple[str, bool]:
        address, began, proves = question.server, self._clock(), False
        try:
            found = await self._ask(question)
        finally:
            del self._asking[question]
        if address not in self._users and address not in self._considered:
            return found, False  # it has left while it was asked: to learn of it now would be to ask it for ever
        self._learn(question, found)
        if question == Question(address):
            if address in self._again:
                self._again[address] = self._clock() + AGAIN * self._jitter()
            self._dials[address] = checked(self._dials.get(address, UNRECORDED), found, self._clock() - began)
        if found == YES or question == Question(address):  # whoever passes a check has answered; a wrong answer is no refusal
            known = self._proofs.get(address)
            self._checks[address] = (self._clock(), found)
            self._proofs[address] = prove(known, found, self.defaults, self._clock(), jitter=self._jitter())
            self._plan(address)
            proves = found == YES and address not in self.proven
            if proves:
                self.proven = self.proven.edited({address: True})
        return found, proves

    def _learn(self, question: Question, found: str) -> None:
        """What a check says of connects to the server: nothing from another port, nor when it takes too long to be passed."""
        if question.check.port or (found == "timeout" and question.check.kind is not CheckKind.TCP):
            return
        self._heard(question.server, YES if found.startswith("wrong answer") else found)

    def _heard(self, address: Address, found: str) -> None:
        now, before = self._clock(), self._answers.get(address)
        accepted = now if found == YES else before.accepted_at if before else -inf
        self._answers[address] = Answer(found, now, accepted)

    @contextmanager
    def considering(self, addresses: Collection[Address]) -> Iterator[None]:
        """While a call is judged that names these. What was found of them is forgotten then, unless it is in force."""
        self._considered.update(addresses)
        try:
            yield
        finally:
            self._considered -= Counter(addresses)
            self._forget_unused(addresses)

    def _forget_unused(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            if address not in self._users and address not in self._considered:
                self._proofs.pop(address, None)
                self._dials.pop(address, None)
                self._checks.pop(address, None)
                self._answers.pop(address, None)
                self._last_asked.pop(address, None)
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
        if not self._synced:  # of what a snapshot remembered, the rest belongs to nobody
            self._synced = True
            self._forget_unused(list(self._proofs))
            self.down, self.passed = (
                known.edited({place: None for place in known if place not in self._servers})
                for known in (self.down, self.passed)
            )

    def _sync(self, listen: Listen, old: Frontend | None, new: Frontend | None) -> None:
        known = {server.address: server for server in old.servers} if old else {}
        now = {server.address: server for server in new.servers} if new else {}
        same_policy = old is not None and new is not None and old.policy is new.policy
        for address in known.keys() - now.keys():
            self._forget((listen, address))
            self._records.pop((listen, address), None)
            users = self._users.get(address, {})
            users.pop(listen, None)
            if not users:
                self._users.pop(address, None)
                self._forget_unused([address])
        for address, server in now.items():
            old_one = known.get(address)
            if new is not None and not (same_policy and (old_one is server or old_one == server)):
                self._users.setdefault(address, {})[listen] = None
                self._watch(new, server)

    def _forget(self, place: Place) -> None:
        """As if it had never been asked."""
        self._servers.pop(place, None)
        self._health.pop(place, None)
        self._checks.pop(place, None)
        self._last_asked.pop(place, None)
        self._leave_group(place)
        if place in self.passed:
            self.passed = self.passed.edited({place: None})
        if place in self.down:
            self.down = self.down.edited({place: None})
            self._turn(place, down=False)

    def _turn(self, place: Place, *, down: bool) -> None:
        now = self._clock()
        self._records[place] = turned(self._records.get(place, Record(now)), now, down=down)

    def _watch(self, frontend: Frontend, server: Server) -> None:
        now, address = self._clock(), server.address
        place, policy = (frontend.listen, address), frontend.health(server)
        if address not in self._proofs:
            self._proofs[address] = unproven(now)
            self._plan(address)
        in_peace = server.admin is AdminState.MAINT or policy.mode is HealthMode.NONE
        if in_peace:  # once it is asked again, nothing is known of it
            self._forget(place)
        self._servers[place] = server
        self._records.setdefault(place, Record(now))
        if in_peace:
            return
        question = question_of(frontend, server)
        if self._questions.get(place) != question:
            self._leave_group(place)
            self._questions[place] = question
            self._groups.setdefault(question, {})[place] = None
        before = self._health.get(place)
        after = self._expected(place, policy, before, now)
        if after != (before or UP):  # of a server that nobody asked there is nothing to know
            self._health[place] = after
            self._plan(place)
        if after.down and place not in self.down:
            self.down = self.down.edited({place: True})

    def _leave_group(self, place: Place) -> None:
        question = self._questions.pop(place, None)
        if question is not None:
            group = self._groups[question]
            del group[place]
            if not group:
                del self._groups[question]

    def _expected(self, place: Place, policy: HealthPolicy, before: Health | None, now: float) -> Health:
        """Its health under a new policy, or of a server that has just come."""
        # The first probes are spread over a whole interval: a thousand servers come with one reload.
        jitter = self._uniform(0.0, 1.0)
        if policy.refuses and place not in self.passed and (before is None or not before.down):
            return remembered(policy, now, jitter) if place in self.down else unasked(policy, now)
        if before is None:
            fresh = remembered(policy, now, jitter) if place in self.down else watched(policy, now, jitter)
        else:
            asks = before.down or policy.mode is HealthMode.ACTIVE
            soon = min(before.probe_at, now + policy.interval * jitter) if asks else inf
            fresh = replace(before, wait=policy.interval, probe_at=soon)
        group = self._groups[self._questions[place]]
        other = self._health.get(next(iter(group)))
        if other is not None and now < other.probe_at <= now + policy.interval and fresh.probe_at < inf:
            return replace(fresh, probe_at=other.probe_at)  # together with those that ask the same
        return fresh

    def called(self, listens: Iterable[Listen], addresses: Iterable[Address]) -> None:
        """A phone-home has called from there: what is down there, or never answered, is asked at once, once per interval."""
        now, wanted = self._clock(), list(addresses)
        for listen in listens:
            frontend = self.table.frontends.get(listen)
            for address in wanted if frontend is not None else ():
                place = (listen, address)
                health, server = self._health.get(place), self._servers.get(place)
                if frontend is None or health is None or server is None or not health.down:
                    continue
                if now - self._last_asked.get(place, -inf) >= frontend.health(server).interval and health.probe_at > now:
                    self._health[place] = replace(health, probe_at=now)
                    self._plan(place, silent=False)
        for address in wanted:
            proof = self._proofs.get(address)
            long_ago = now - self._last_asked.get(address, -inf) >= self.defaults.interval
            if proof is not None and long_ago and now < proof.probe_at < inf:
                self._proofs[address] = replace(proof, probe_at=now)
                self._plan(address, silent=False)

    def connect_ended(self, listen: Listen, address: Address, failure: str | None) -> None:
        """What a client's session met. Cheap; news are given in the same call."""
        frontend = self.table.frontends.get(listen)
        server = self._servers.get((listen, address))
        if frontend is not None and server is not None and server.admin is not AdminState.MAINT:
            self._heard(address, failure or YES)
            self._heed(frontend, server, failure, probe=False)

    def _heed(self, frontend: Frontend, server: Server, failure: str | None, *, probe: bool) -> None:
        address, now, policy = server.address, self._clock(), frontend.health(server)
        place = (frontend.listen, address)
        before = self._health.get(place, UP)
        if failure is None:
            after = answered(before, policy, now, probe=probe, jitter=self._jitter())
        else:
            after = failed(before, policy, failure, now, probe=probe, jitter=self._jitter())
        self._health[place] = after
        if after.probe_at != before.probe_at:
            self._plan(place)
        self._checks[place] = (now, failure or YES)
        passes = not after.down and ((probe and failure is None) or place in self.passed)
        if passes is not (place in self.passed):
            self.passed = self.passed.edited({place: True if passes else None})
        if after.down is before.down:
            return
        self._turn(place, down=after.down)
        fields = {"frontend": frontend.name, "address": str(address)}
        if after.down:
            self.down = self.down.edited({place: True})
            text = f"{frontend.name}: server {address} is out after {after.failures} failures ({failure})"
            self._on_news([frontend.listen], "server_down", text, fields)
        else:
            self.down = self.down.edited({place: None})
            what = "has passed its check" if policy.refuses else "is back"
            self._on_news([frontend.listen], "server_up", f"{frontend.name}: server {address} {what}", fields)

    def _asked_at(self, place: Place | Address) -> float:
        """When it is to be asked next; inf: it is not."""
        if isinstance(place, Address):
            proof = self._proofs.get(place)
            return min(self._again.get(place, inf), inf if proof is None else proof.probe_at)
        health = self._health.get(place)
        return inf if health is None else health.probe_at

    def _plan(self, place: Place | Address, *, silent: bool | None = None) -> None:
        if silent is None:
            known = self._proofs.get(place) if isinstance(place, Address) else self._health.get(place)
            found = known.found if isinstance(known, Proof) else known.reason if known and known.down else ""
            silent = found == SILENT
        self.agenda.plan(place, silent=silent)

    def is_due(self) -> bool:
        return self.agenda.is_due()

    async def probe(self) -> None:
        """All probes that are due and within the budget; returns when the last has its finding. The loop gets its turn
        after every few."""
        loop, due = asyncio.get_running_loop(), self._take()
        try:
            running = []
            async for question, (places, silent) in in_turns(due.items(), BATCH):
                running.append(loop.create_task(self._probe(question, places, silent=silent)))
            await asyncio.gather(*running)
        finally:
            now = self._clock()
            for places, _ in due.values():
                self._probing.difference_update(places)
                for place in places:
                    if self._asked_at(place) <= now:  # nothing was found
                        self._plan(place)

    def _take(self) -> dict[Question, tuple[list[Place | Address], bool]]:
        """What to ask, for whom, and whether silence is expected: an address by itself is its proof's, a place is health's."""
        due: dict[Question, tuple[list[Place | Address], bool]] = {}
        now = self._clock()
        while (taken := self.agenda.take()) is not None:
            place, silent = taken
            question = Question(place) if isinstance(place, Address) else self._questions.get(place)
            if question is None:
                continue
            if question in due:
                due[question][0].append(place)
            else:
                due[question] = ([place], silent)
                self.agenda.spend()
                self.agenda.silent_running += silent
            self._probing.add(place)
            self._last_asked[place] = now
        return due

    async def _probe(self, question: Question, places: Iterable[Place | Address], *, silent: bool) -> None:
        address, began = question.server, self._clock()
        try:
            found, proves = await self._answer(question)
        finally:
            self._probing.difference_update(places)  # the others of its round may take longer
            self.agenda.silent_running -= silent
        now = self._clock()
        asked = {place for place in places if not isinstance(place, Address)}
        for place in list(self._groups.get(question, ())):
            if place in asked or self._shares(place, now):
                self._records[place] = checked(self._records.get(place, Record(began)), found, now - began)
                self._last_asked[place] = began
                frontend = self.table.frontends.get(place[0])
                if frontend is not None:
                    self._heed(frontend, self._servers[place], None if found == YES else found, probe=True)
        if proves and address in self._users:
            at = list(self._users[address])
            text = f"server {address} has answered for the first time"
            self._on_news(at, "server_proven", text, {"address": str(address)})

    def _shares(self, place: Place, now: float) -> bool:
        """Would it ask the same soon? Then this answer is its own: a server is asked once, however many ask."""
        health = self._health.get(place, UP)
        return health.probe_at - now <= health.wait / 2

    async def stop(self) -> None:
        """Ends the probes under way."""
        running = list(self._asking.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _jitter(self) -> float:
        """Never later than people were told."""
        return self._uniform(0.8, 0.9)
