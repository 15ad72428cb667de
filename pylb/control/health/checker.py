"""When each server is asked: the dial that proves a new target, the checks that take servers out and bring them back.

A probe never delays anything: it runs beside the single writer, and only passes its finding to `on_news`. However many
frontends ask the same of a server, it is asked once, and all of them get the answer. records.py stores the results.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf

from pylb.control.health.prober import Ask, ProbeRequest, probe_request
from pylb.control.health.records import HealthRecords, ServerRecord
from pylb.control.health.schedule import ProbeSchedule
from pylb.control.steps import in_turns
from pylb.core.address import Address, Listen
from pylb.core.health import (
    PASSED,
    UP,
    YES,
    Health,
    answered,
    checked,
    failed,
    prove,
    remembered,
    unasked,
    unproven,
    watched,
)
from pylb.core.operator_overrides import ServerKey
from pylb.core.policy import AdminState, CheckKind, HealthMode, HealthPolicy
from pylb.core.table import Frontend, Server, Table, differing

AGAIN = 20.0  # seconds between two connects to a server whose owner no longer calls
SHARED = 100  # servers that learn the same answer between two turns of the loop: 1 to 2 ms
TAKEN = 100  # servers that are due, looked at between two turns of the loop: 1 ms
BATCH = 16  # probes begun at once, a tenth of a millisecond each; then the loop gets its turn
ADDRESSES = 250  # added to those asked on, or removed, between two turns of the loop: 1 ms

# What to ask, for which servers, and whether silence is expected: an address for proof, a server for health
_Due = dict[ProbeRequest, tuple[list[ServerKey | Address], bool]]
News = Callable[[list[Listen], str, str, Mapping[str, str | int]], None]


class Checker:
    """Asks, and records what is found. `on_news(listens, kind, text, fields)` is called when a rank may have changed."""

    def __init__(self, ask: Ask, clock: Callable[[], float], uniform: Callable[[float, float], float], on_news: News) -> None:
        self._ask = ask
        self._clock = clock
        self._uniform = uniform
        self._on_change = on_news
        self.health_records = HealthRecords()
        self._asking: dict[ProbeRequest, asyncio.Task[tuple[str, bool]]] = {}
        self._probing: set[ServerKey | Address] = set()  # being asked
        self._taking = False  # a round is finding out who is due: another one would ask the same once more
        self._asked_on: set[Address] = set()  # asked regularly, whatever they have answered
        self.schedule: ProbeSchedule[ServerKey | Address] = ProbeSchedule(clock, self.health_records.due_at, self._probing)
        self.table = Table()
        self.defaults = HealthPolicy()  # how unproven targets are dialled
        self._synced = False

    # ------------------------------------------------------------ which servers are asked

    def sync(self, table: Table, touched: Iterable[Listen] | None) -> None:
        """After a new table: watch as active mode requires, ask unknown servers, forget removed ones. None: all frontends."""
        for _ in self.syncing(table, touched):
            pass

    def syncing(self, table: Table, touched: Iterable[Listen] | None) -> Iterator[None]:
        """`sync` in steps of one frontend. Until the last step new servers are not asked yet, and removed ones still are."""
        before = self.table
        for listen in (
            list({**dict.fromkeys(before.frontends), **dict.fromkeys(table.frontends)}) if touched is None else touched
        ):
            self._sync(listen, before.frontends.get(listen), table.frontends.get(listen))
            yield
        self.table = table
        if not self._synced:  # of what a snapshot remembered, the rest belongs to nobody
            self._synced = True
            self.health_records.forget_what_no_table_has()

    def _sync(self, listen: Listen, old: Frontend | None, new: Frontend | None) -> None:
        have: Sequence[Server] = old.servers if old else ()
        want: Sequence[Server] = new.servers if new else ()
        same_policy = old is not None and new is not None and old.policy is new.policy
        if same_policy:  # then there is nothing to do for those that stay as they are
            have, want = differing(have, want)
        known, now = ({server.address: server for server in servers} for servers in (have, want))
        for address in known.keys() - now.keys():
            self.health_records.remove((listen, address), self._clock())
        for address, server in now.items():
            if new is not None and not (same_policy and known.get(address) == server):
                self._watch(new, server)

    def _watch(self, frontend: Frontend, server: Server) -> None:
        now, key, policy = self._clock(), (frontend.listen, server.address), frontend.health(server)
        known = self.health_records.add(key, server, now)
        of_address = self.health_records.addresses[server.address]
        if of_address.proof is None and not server.address.last:  # a connect to one port of a range says nothing of the range
            of_address.proof = unproven(now)
            self._plan(server.address)
        if server.admin is AdminState.MAINT or policy.mode is HealthMode.NONE:
            self.health_records.unlearn(key, now)  # until it is asked again, nothing is known about it
            return
        before, question = known.question, probe_request(frontend, server)
        changed = before is not None and before.check != question.check
        if changed:  # what it has passed was another check
            self.health_records.set_passed(key, passed=False)
        self.health_records.group(key, question)
        after = self._expected(key, known, policy, now)
        if changed and not after.down and after.probe_at < inf:
            after = replace(after, failures=policy.fall - 1)  # its first answer decides
        if after != (known.health or UP):  # nothing is known of a server that was never asked
            known.health = after
            self._plan(key)
        if after.down:
            self.health_records.set_down(key)

    def _expected(self, key: ServerKey, known: ServerRecord, policy: HealthPolicy, now: float) -> Health:
        """A server's health under a new policy, or the first health of a new server."""
        # The first probes are spread over a whole interval: a thousand servers come with one reload.
        jitter, before, health_records = self._uniform(0.0, 1.0), known.health, self.health_records
        if policy.refuses and key not in health_records.passed and (before is None or not before.down):
            return remembered(policy, now, jitter) if key in health_records.down else unasked(policy, now)
        if before is None:
            fresh = remembered(policy, now, jitter) if key in health_records.down else watched(policy, now, jitter)
        else:
            asks = before.down or policy.mode is HealthMode.ACTIVE
            soon = min(before.probe_at, now + policy.interval * jitter) if asks else inf
            fresh = replace(before, wait=policy.interval, probe_at=soon)
        other = health_records.group_due_at(known)
        if now < other <= now + policy.interval and fresh.probe_at < inf:
            return replace(fresh, probe_at=other)  # at the same time as those that ask the same
        return fresh

    async def ask_on(self, addresses: Iterable[Address]) -> None:
        """Connect to exactly these every AGAIN seconds, whether they answer or not: otherwise nobody would find out.

        In steps, and each is complete: after whatever ends this early, the next call goes on from there.
        """
        now, known, wanted = self._clock(), self.health_records.addresses, set[Address]()
        async for address in in_turns(addresses, ADDRESSES):
            of_address = known.get(address)
            if of_address is None or not of_address.frontends:
                continue
            wanted.add(address)
            if of_address.again_at == inf:
                of_address.again_at = now
                self._plan(address)
            self._asked_on.add(address)
        async for address in in_turns(tuple(self._asked_on), ADDRESSES):
            if address in wanted:
                continue
            self._asked_on.remove(address)
            if (of_address := known.get(address)) is not None:
                of_address.again_at = inf
                self._plan(address)

    def called(self, listens: Iterable[Listen], addresses: Iterable[Address]) -> None:
        """A phone-home has called from there: servers there that are down or unproven are asked now, once per interval."""
        now, wanted = self._clock(), list(addresses)
        for listen in listens:
            frontend = self.table.frontends.get(listen)
            for address in wanted if frontend is not None else ():
                known = self.health_records.servers.get((listen, address))
                if frontend is None or known is None or known.health is None or not known.health.down:
                    continue
                if now - known.last_asked >= frontend.health(known.server).interval and known.health.probe_at > now:
                    known.health = replace(known.health, probe_at=now)
                    self._plan((listen, address), silent=False)
        for address in wanted:
            of_address = self.health_records.addresses.get(address)
            if of_address is None or of_address.proof is None:
                continue
            long_ago = now - of_address.last_asked >= self.defaults.interval
            if long_ago and now < of_address.proof.probe_at < inf:
                of_address.proof = replace(of_address.proof, probe_at=now)
                self._plan(address, silent=False)

    def _plan(self, who: ServerKey | Address, *, silent: bool | None = None) -> None:
        """The time of its next question has changed. `silent`: see ProbeSchedule; None: as last time."""
        known = self.health_records.of(who)
        if known is not None:
            self.schedule.plan(who, silent=known.is_silent if silent is None else silent)

    # ------------------------------------------------------------ asking

    async def dial(self, addresses: Iterable[Address]) -> None:
        """Dial these now, all at once (<= 1 s), whatever is known. Results are stored; ranks follow with the next table."""
        questions = [ProbeRequest(address) for address in {*addresses}]
        if len(questions) == 1:  # nearly always: saves the task and the future of a group
            await self._answer(questions[0])
        else:
            await asyncio.gather(*map(self._answer, questions))

    async def dial_until_one(self, addresses: Collection[Address]) -> None:
        """Dial these now and wait for the first that answers, or for all (<= 1 s). The other dials go on, and are stored."""
        loop = asyncio.get_running_loop()
        running = [loop.create_task(self._answer(ProbeRequest(address))) for address in addresses]
        try:
            for ended in asyncio.as_completed(running):
                found, _ = await ended
                if found == YES:
                    return
        finally:
            for one in running:
                one.cancel()  # only the waiting: see `_answer`
            await asyncio.gather(*running, return_exceptions=True)

    def is_due(self) -> bool:
        return not self._taking and self.schedule.is_due()

    async def probe(self) -> None:
        """All probes that are due and within the budget; returns when the last has its result. The loop gets its turn every few
        probes, and every few servers: thousands on one machine may be due together, and wait for one answer."""
        loop, due = asyncio.get_running_loop(), _Due()
        try:
            self._taking = True
            async for _ in in_turns(self._take(due), TAKEN):
                pass
            self._taking = False
            running = []
            async for question, (asked, silent) in in_turns(due.items(), BATCH):
                running.append(loop.create_task(self._probe(question, asked, silent=silent)))
            await asyncio.gather(*running)
        finally:
            self._taking, now = False, self._clock()
            async for who in in_turns((who for asked, _ in due.values() for who in asked), TAKEN):
                self._probing.discard(who)
                if self.health_records.due_at(who) <= now:  # there was no result
                    self._plan(who)

    def _take(self, due: _Due) -> Iterator[None]:
        """Fill `due` with what to ask."""
        while (taken := self.schedule.take()) is not None:
            who, silent = taken
            known = self.health_records.of(who)
            if known is None or known.question is None:
                continue
            if known.question in due:
                due[known.question][0].append(who)
            else:
                due[known.question] = ([who], silent)
                self.schedule.spend()
                self.schedule.silent_running += silent
            self._probing.add(who)
            known.last_asked = self._clock()
            yield

    async def _probe(self, question: ProbeRequest, asked: list[ServerKey | Address], *, silent: bool) -> None:
        address, began = question.server, self._clock()
        try:
            found, proves = await self._answer(question)
        finally:
            self._probing.difference_update(asked)  # the others of its round may take longer
            self.schedule.silent_running -= silent
        now, due = self._clock(), set(asked)
        async for key in in_turns(tuple(self.health_records.groups.get(question, ())), SHARED):
            known = self.health_records.servers.get(key)
            if known is None or known.question != question:
                continue  # it has left, or asks something else, since the loop had its turn
            if key in due or self._shares(known, now):
                known.checks = checked(known.checks, found, now - began)
                known.last_asked = began
                frontend = self.table.frontends.get(key[0])
                if frontend is not None:
                    self._learn(frontend, known, None if found in PASSED else found, probe=True)
        if proves and (of_address := self.health_records.addresses.get(address)) is not None and of_address.frontends:
            text = f"server {address} has answered for the first time"
            self._on_change(list(of_address.frontends), "server_proven", text, {"address": str(address)})

    def _shares(self, known: ServerRecord, now: float) -> bool:
        """Whether this one would soon ask the same. Then it gets the same answer, so that a server is asked only once."""
        health = known.health or UP
        return health.probe_at - now <= health.wait / 2

    async def _answer(self, question: ProbeRequest) -> tuple[str, bool]:
        """The result, and whether it proves the address.

        Two that ask the same share one connection, which goes on if one of them gives up.
        """
        running = self._asking.get(question)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._ask_and_learn(question))
            self._asking[question] = running
        return await asyncio.shield(running)

    async def stop(self) -> None:
        """Cancel the probes under way."""
        running = list(self._asking.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # ------------------------------------------------------------ what follows from an answer

    async def _ask_and_learn(self, question: ProbeRequest) -> tuple[str, bool]:
        began = self._clock()
        try:
            found = await self._ask(question)
        finally:
            del self._asking[question]
        known = self.health_records.addresses.get(question.server)
        if known is None or not known.in_use:
            return found, False  # it has left meanwhile: a record made now would be asked for ever
        now, dialled = self._clock(), question == known.question
        # What a check says of connects to the server: nothing from another port, nor when it takes too long to be passed.
        if not question.check.port and (found != "timeout" or question.check.kind is CheckKind.TCP):
            known.connected(YES if found.startswith("wrong answer") else found, now)
        if dialled:
            if known.again_at < inf:
                known.again_at = now + AGAIN * self._jitter()
            known.dials = checked(known.dials, found, now - began)
        if found not in PASSED and not dialled:
            return found, False  # whoever passes a check has answered; a wrong answer is not a refusal
        known.last_check = (now, found)
        proof = prove(known.proof, found, self.defaults, now, jitter=self._jitter())
        proves = self.health_records.set_proof(known, proof)
        self._plan(question.server)
        return found, proves

    def connect_ended(self, listen: Listen, address: Address, failure: str | None) -> None:
        """The outcome of a client's connect. Cheap; news is reported in the same call."""
        if address.last:
            return  # FTP and RTP ports refuse until they are used: no news of the server
        frontend, known = self.table.frontends.get(listen), self.health_records.servers.get((listen, address))
        if frontend is not None and known is not None and known.server.admin is not AdminState.MAINT:
            self.health_records.addresses[address].connected(failure or YES, self._clock())
            self._learn(frontend, known, failure, probe=False)

    def _learn(self, frontend: Frontend, known: ServerRecord, failure: str | None, *, probe: bool) -> None:
        address, now, policy = known.server.address, self._clock(), frontend.health(known.server)
        key = (frontend.listen, address)
        before = known.health or UP
        if failure is None:
            after = answered(before, policy, now, probe=probe, jitter=self._jitter())
        else:
            after = failed(before, policy, failure, now, probe=probe, jitter=self._jitter())
        known.health, known.last_check = after, (now, failure or YES)
        if after.probe_at != before.probe_at:
            self._plan(key)
        passed = (probe and failure is None) or key in self.health_records.passed
        self.health_records.set_passed(key, passed=passed and not after.down)
        if after.down is before.down:
            return
        self.health_records.turn(key, now, down=after.down)
        fields = {"frontend": frontend.name, "address": str(address)}
        if after.down:
            text = f"{frontend.name}: server {address} is out after {after.failures} failures ({failure})"
            self._on_change([frontend.listen], "server_down", text, fields)
        else:
            what = "has passed its check" if policy.refuses else "is back"
            self._on_change([frontend.listen], "server_up", f"{frontend.name}: server {address} {what}", fields)

    def _jitter(self) -> float:
        """A random shortening of the interval, so that an answer never comes later than documented."""
        return self._uniform(0.8, 0.9)
