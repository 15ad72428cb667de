"""What control's work costs, counted and not timed: an announce, a beat, a move, a goodbye and a release cost with 10,000
registrations what they cost with 200; what looks at all of them costs so much for each.
"""

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest

from pylb.api.explain import ports_of
from pylb.api.routes import rows
from pylb.control.desired_state import DesiredState
from pylb.control.leases import LeaseRecord
from pylb.control.registry import Registry
from pylb.control.storage import snapshot as snapshots
from pylb.control.storage import store as stores
from pylb.control.storage.snapshot import Encoder, Snapshot, decode
from pylb.control.storage.store import Store, _encode
from pylb.control.writer import CALLS as PER_TURN
from pylb.core.address import Address, Listen
from pylb.core.auth import Caller, Keyring
from pylb.core.checks import parse_health
from pylb.core.claims import Claims
from pylb.core.errors import Refused
from pylb.core.ownership import announce, become
from pylb.core.persistent_map import PersistentMap, frozen_set
from pylb.core.policy import AdminState, Rules
from pylb.core.registration import Announcement, FrontendRequest, Key, Registration, State, legacy_key
from pylb.core.table import Table
from tests.control.harness import token
from tests.core.claiming import FREE
from tests.support.counting import counting

TOKENS = [token(f"t{number}", names=("*",)) for number in range(8)]
INSTANCES = 5  # of each frontend
SLACK = 1.3  # a dict that grows, a hash that collides


class Nowhere:
    """A sink that keeps the table: no port is opened."""

    def open(self, listen: Listen, *, freebind: bool) -> None:
        pass

    def discard(self, listen: Listen) -> None:
        pass

    def apply(self, table: Table) -> dict[Listen, OSError]:
        self.table = table
        return {}

    async def applied(self) -> None:
        pass


async def _yes(_question: object) -> str:
    return "yes"


class Full:
    """A registry with so many frontends, five instances each."""

    def __init__(self, folder: Path, frontends: int) -> None:
        self.frontends = frontends
        self.now = 1000.0
        self.registry = Registry(
            rules=Rules(),
            keyring=Keyring(TOKENS),
            sink=Nowhere(),
            store=Store(folder),
            ask=_yes,
            clock=lambda: self.now,
            uniform=lambda _low, _high: 1.0,
        )

    async def fill(self) -> None:
        """Without a write for each: the claims are what announces make, and a start restores them."""
        claims = Claims()
        for frontend in range(self.frontends):
            for instance in range(INSTANCES):
                owner, ip = TOKENS[frontend % 8].name, f"127.0.{frontend % 250}.{10 + instance}"
                key = Key(owner, f"app-{frontend}", f"pod-{instance}")
                one = Registration(key, key.name, ip, (FrontendRequest(1024 + frontend, 30000),), 3600.0)
                claims = announce(claims, FREE, one, takeover=False, proven=frozenset()).claims
        await self.registry.start()
        publisher = self.registry._state.publisher
        publisher.desired = type(publisher.desired)(claims, publisher.desired.static_rules, publisher.desired.keyring)
        for one in claims.registrations.values():
            self.registry._state.leases.restore(one, LeaseRecord())
        await publisher.publish(publisher.desired, None, ["test"])
        await self.registry.webhook_is_up()

    async def put(self, ip: str, *, instance: str = "pod-1", draining: bool = False) -> None:
        announcement = Announcement((FrontendRequest(1024 + 3, 30000),), None, 3600.0, draining)
        await self.registry.calls.announce("app-3", instance, announcement, Caller(ip, TOKENS[3]))

    async def cost(self, work: Callable[[], Awaitable[object]]) -> int:
        with counting() as calls:
            await work()
            return calls()

    async def longest(self, work: Callable[[], Awaitable[object]]) -> int:
        """What it costs between two turns of the loop, at most."""

        async def watch() -> None:
            while True:
                turns.append(calls())
                await asyncio.sleep(0)

        with counting() as calls:
            turns = [calls()]
            watching = asyncio.get_running_loop().create_task(watch())
            await work()
            turns.append(calls())
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        return max(after - before for before, after in pairwise(turns))


CALLS: dict[str, Callable[[Full], Awaitable[object]]] = {
    "a beat": lambda full: full.put("127.0.3.11"),
    "a move": lambda full: full.put("127.0.3.99"),
    "one more instance": lambda full: full.put("127.0.3.98", instance="pod-new"),
    "a goodbye": lambda full: full.put("127.0.3.99", draining=True),
    "a release": lambda full: full.registry.calls.release("app-3", "pod-1", Caller("127.0.3.99", TOKENS[3])),
    "a round of leases": lambda full: full.registry._periodic._leases(),
}


async def _costs(folder: Path, frontends: int) -> dict[str, int]:
    full = Full(folder, frontends)
    await full.fill()
    try:
        await full.put("127.0.3.97", instance="pod-first")  # whatever is made only once
        return {what: await full.cost(lambda call=call: call(full)) for what, call in CALLS.items()}  # type: ignore[misc]
    finally:
        await full.registry.stop()


async def test_a_call_costs_what_it_touches_however_many_registrations_there_are(tmp_path: Path) -> None:
    few = await _costs(tmp_path / "few", 40)
    many = await _costs(tmp_path / "many", 2000)
    assert {what: (few[what], many[what]) for what in CALLS if many[what] > SLACK * few[what] + 50} == {}


async def _views(registry: Registry) -> None:
    for _ in registry.each_server():
        pass


async def test_a_call_costs_what_it_touches_however_many_ttls_were_learned_of_legacy_clients(tmp_path: Path) -> None:
    """Each snapshot had them put together anew, on the loop: with 10,000 of them, for 10 ms at each move."""
    costs = {}
    for number in (100, 4000):
        full = Full(tmp_path / str(number), 40)
        await full.fill()
        try:
            learned = {legacy_key("t0", 10_000 + port): 60.0 for port in range(number)}
            full.registry._state.leases.learned = PersistentMap(learned)
            await full.put("127.0.3.97", instance="pod-first")
            costs[number] = await full.cost(lambda: full.put("127.0.3.98", instance="pod-first"))  # noqa: B023 - run at once
        finally:
            await full.registry.stop()
        snapshot, wrong = decode(Store(tmp_path / str(number)).load()[0] or {})
        assert (snapshot.leases, wrong) == ({key: LeaseRecord(ttl) for key, ttl in learned.items()}, [])
    assert costs[4000] <= SLACK * costs[100] + 50


async def test_a_call_costs_what_it_touches_however_many_registrations_are_stale(tmp_path: Path) -> None:
    """The snapshot says for how long each has been silent: that was put together on the loop, at each move."""
    costs = {}
    for number in (100, 2000):
        full = Full(tmp_path / str(number), number // INSTANCES)
        await full.fill()
        try:
            publisher = full.registry._state.publisher
            keys = [key for key in publisher.desired.claims.registrations if key.name != "app-3"]
            claims = become(publisher.desired.claims, keys, State.STALE).claims
            publisher.desired = replace(publisher.desired, claims=claims)
            for key in keys:
                full.registry._state.leases.restore(claims.registrations[key], LeaseRecord(stale_for=5.0))
            await full.put("127.0.3.97", instance="pod-first")
            costs[number] = await full.cost(lambda: full.put("127.0.3.98", instance="pod-first"))  # noqa: B023 - run at once
        finally:
            await full.registry.stop()
        snapshot, wrong = decode(Store(tmp_path / str(number)).load()[0] or {})
        assert (snapshot.leases, wrong) == (dict.fromkeys(keys, LeaseRecord(stale_for=5.0)), [])
    assert costs[2000] <= SLACK * costs[100] + 50


async def test_moves_one_by_one_do_not_each_look_at_all_young_objects(tmp_path: Path) -> None:
    """To count them takes longer than any other part of a move. After a batch of many calls it is worth it."""
    full = Full(tmp_path, 40)
    await full.fill()
    looked = 0

    def note(_frame: object, event: str, what: object) -> None:
        nonlocal looked
        looked += event == "c_call" and what is gc.get_objects

    try:
        for count, most in ((1, 1), (3 * PER_TURN, 4)):
            looked = 0
            sys.setprofile(note)
            for number in range(count):
                await full.put(f"127.0.3.{number % 2 + 98}")
            sys.setprofile(None)
            assert looked <= most
        assert looked >= 2
    finally:
        sys.setprofile(None)
        await full.registry.stop()


def test_what_else_is_known_of_a_lease_counts_beside_its_learned_ttl() -> None:
    stale, other = legacy_key("t0", 1), legacy_key("t0", 2)
    record = LeaseRecord(60.0, stale_for=5.0, goodbye=True)
    snapshot = Snapshot(leases={stale: record}, learned=PersistentMap({stale: 60.0, other: 70.0}))
    pieces = Encoder().encode(snapshot)["leases"].pieces
    read, wrong = decode({"leases": json.loads(b"[" + b",".join(pieces) + b"]")})
    assert (read.leases, wrong) == ({stale: record, other: LeaseRecord(70.0)}, [])


async def test_what_looks_at_all_of_them_costs_the_same_for_each(tmp_path: Path) -> None:
    """Also where many hold one frontend: to ask for each server who holds it would look at all holders for each."""
    costs: dict[str, dict[int, float]] = {}
    for instances in (50, 400):
        full = Full(tmp_path / str(instances), 1)
        await full.registry.start()
        try:
            claims = Claims()
            for number in range(instances):
                key = Key("t0", "app", f"pod-{number}")
                ip = f"10.0.{number // 250}.{number % 250 + 1}"
                one = Registration(key, "app", ip, (FrontendRequest(1024, 30000),), 3600.0)
                claims = announce(claims, FREE, one, takeover=False, proven=frozenset()).claims
            publisher = full.registry._state.publisher
            await publisher.publish(type(publisher.desired)(claims, FREE, Keyring(TOKENS)), None, ["test"])
            assert len(list(full.registry.each_server())) == instances
            for what, work in {
                "views": lambda: _views(full.registry),  # noqa: B023 - run at once
                "routes": lambda: rows(full.registry),  # noqa: B023 - run at once
                "a drain": lambda: full.registry.operator.set_admin("10.0.0.7", AdminState.DRAIN),  # noqa: B023
            }.items():
                costs.setdefault(what, {})[instances] = await full.cost(work) / instances
        finally:
            await full.registry.stop()
    assert {what: found for what, found in costs.items() if found[400] > SLACK * found[50]} == {}


async def _refused(call: Awaitable[object]) -> None:
    with pytest.raises(Refused):
        await call


async def test_what_looks_at_all_of_them_holds_the_loop_no_longer_the_more_there_are(tmp_path: Path) -> None:
    """A plan did for as long as it took: at each SIGHUP, too, as what a reload does is logged. So did the grant of all leases
    at the start, and after a stall."""
    longest: dict[str, dict[int, int]] = {}
    for frontends in (100, 400):
        full = Full(tmp_path / str(frontends), frontends)
        await full.fill()
        try:
            table, _ = await full.registry.rules.plan(Rules(), Keyring(TOKENS))
            for node in range(2, 22):
                await full.registry.operator.set_admin(f"127.0.{node}.10", AdminState.DRAIN)
            for what, work in {
                "a plan": lambda: full.registry.rules.plan(Rules(), Keyring(TOKENS)),  # noqa: B023 - run at once
                "a plan of checks": lambda: full.registry.rules.plan_checks(table),  # noqa: B023
                "all leases": full.registry.webhook_is_up,
                "routes": lambda: rows(full.registry),  # noqa: B023
                "the ports of a name": lambda: ports_of(full.registry, "app-3"),  # noqa: B023
                "a drain of one server": lambda: full.registry.operator.set_admin("1027/pod-1", AdminState.DRAIN),  # noqa: B023
                "a drain of nobody": lambda: _refused(full.registry.operator.set_admin("192.0.2.1", AdminState.DRAIN)),  # noqa: B023
                "what the operator said": full.registry.operator.words,
            }.items():
                longest.setdefault(what, {})[frontends] = await full.longest(work)
        finally:
            await full.registry.stop()
    assert {what: found for what, found in longest.items() if found[400] > SLACK * found[100]} == {}


async def test_however_many_servers_of_a_machine_are_due_together_the_loop_runs_every_few_of_them(tmp_path: Path) -> None:
    """With 500 Services on 50 nodes 25,000 were: to find out which held the loop for a quarter of a second."""
    longest = {}
    check = parse_health({"http": "/healthz", "port": 10256})
    for frontends in (250, 1500):
        full = Full(tmp_path / str(frontends), 0)
        await full.fill()
        try:
            claims = Claims()
            for number in range(frontends):
                key, wanted = Key("t0", f"app-{number}", "pod"), FrontendRequest(1024 + number, 30000, health=check)
                one = Registration(key, key.name, "10.0.0.1", (wanted,), 3600.0)
                claims = announce(claims, FREE, one, takeover=False, proven=frozenset()).claims
            publisher = full.registry._state.publisher
            await publisher.publish(type(publisher.desired)(claims, FREE, Keyring(TOKENS)), None, ["test"])
            await full.registry.probe()
            full.now += 10.0
            longest[frontends] = await full.longest(full.registry.probe)
            assert len(full.registry._state.checker.health_records.passed) == frontends
        finally:
            await full.registry.stop()
    assert longest[1500] <= SLACK * longest[250]


async def test_a_batch_of_calls_holds_no_picture_for_each(tmp_path: Path) -> None:
    """Each has thousands of parts: 500 of them at once were a pause of the garbage collector."""
    full = Full(tmp_path, 40)
    await full.fill()
    most = 0
    save = full.registry._state.writer._save

    async def counted(desired: DesiredState) -> None:
        nonlocal most
        most = max(most, sum(isinstance(one, Claims) for one in gc.get_objects()))
        await save(desired)

    full.registry._state.writer._save = counted
    try:
        await full.put("127.0.3.96", instance="pod-first")
        alone, most = most, 0
        await asyncio.gather(*(full.put("127.0.3.98", instance=f"pod-{number}") for number in range(50)))
        assert most <= alone + 2
    finally:
        await full.registry.stop()


def test_no_piece_of_a_snapshot_is_a_copy_of_all_of_it() -> None:
    ones = {}
    for number in range(4000):
        key = Key("t0", f"app-{number}", "pod")
        ones[key] = Registration(key, key.name, "10.0.0.1", (FrontendRequest(1024 + number, 30000),), 3600.0)
    encoded = _encode(Encoder().encode(Snapshot(registrations=PersistentMap(ones))))
    assert max(map(len, encoded)) < sum(map(len, encoded)) / 50


def test_a_snapshot_pauses_by_what_it_has_encoded_and_not_by_the_number_of_its_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause the thread waits for the GIL, on a busy machine for milliseconds. 25,000 servers at once were 1,900
    pauses, most of them after a tenth of the work that is done between two of them for registrations."""
    pauses = list[float]()
    monkeypatch.setattr(snapshots.time, "sleep", pauses.append)
    answered = [Address(f"10.0.{number // 250}.{number % 250 + 1}", 30000) for number in range(4000)]
    listen = Listen("tcp", "*", 1024)
    snapshot = Snapshot(proven=frozen_set(answered), passed=frozen_set((listen, address) for address in answered))
    payload = Encoder().encode(snapshot)
    texts = [*payload["proven"].pieces, *payload["passed"].pieces]
    assert sum(map(len, texts)) // (snapshots.PIECE + max(map(len, texts))) <= len(pauses)
    assert len(pauses) <= sum(map(len, texts)) // snapshots.PIECE


def test_a_snapshot_is_hashed_in_few_parts_however_many_pieces_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """hashlib lets go of the GIL for each of more than 2 KiB: the thread would wait for it again after every piece."""
    parts = list[int]()

    class Counted:
        def __init__(self) -> None:
            self._real = sha256()

        def update(self, part: bytes) -> None:
            parts.append(len(part))
            self._real.update(part)

        def hexdigest(self) -> str:
            return self._real.hexdigest()

    monkeypatch.setattr(stores, "sha256", Counted)
    pieces = [bytes([number % 256]) * 3000 for number in range(1000)]
    assert stores._checksum(pieces) == sha256(b"".join(pieces)).hexdigest()
    assert len(parts) <= 3_000_000 / 60_000
    assert max(parts) < 70_000
