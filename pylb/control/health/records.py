"""What is known about each server and each address: results of checks, dials and clients' connects. Nothing is asked here.

A server is an address in a frontend: its record has the health that decides. An address has one record for all its
frontends: whether it has ever answered, and its last answer. Which servers are down, which have passed the check and which
addresses are proven is also published as immutable mappings, for the next table and the snapshot.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple

from pylb.control.health.prober import ProbeRequest
from pylb.core.address import Address, Listen
from pylb.core.compose import ServerStates
from pylb.core.health import PASSED, PROVEN, SILENT, UNRECORDED, Health, HealthStats, Reachability, turned
from pylb.core.operator_overrides import Overrides, ServerKey
from pylb.core.persistent_map import PersistentMap
from pylb.core.policy import AdminState
from pylb.core.table import Server


class ProbeResult(NamedTuple):
    """An address's last answer to any connect: a dial, a check of its own port, a client's session."""

    found: str  # of PASSED, or why not
    at: float
    accepted_at: float  # time of the last that passed; -inf: never


@dataclass(slots=True)
class ServerRecord:
    """What is known about a frontend's server."""

    server: Server
    checks: HealthStats  # and how long it was down
    health: Health | None = None  # None: never a failure, and never probed
    question: ProbeRequest | None = None  # its check; None: it is not asked
    last_check: tuple[float, str] | None = None  # when, and the result
    last_asked: float = -inf

    @property
    def due_at(self) -> float:
        """When it is asked next; inf: never."""
        return inf if self.health is None else self.health.probe_at

    @property
    def is_silent(self) -> bool:
        return self.health is not None and self.health.down and self.health.reason == SILENT


@dataclass(slots=True)
class AddressRecord:
    """What is known about an address, whichever frontends have it."""

    address: Address
    frontends: dict[Listen, None] = field(default_factory=dict)  # the frontends that have it
    considered: int = 0  # number of calls that name it and are not in force yet
    proof: Reachability | None = None  # None: nobody has dialled it yet
    dials: HealthStats = UNRECORDED  # of the connects that are to prove it
    answer: ProbeResult | None = None
    again_at: float = inf  # when to ask it next, whatever it has answered: see Checker.ask_on
    last_check: tuple[float, str] | None = None  # when, and the result
    last_asked: float = -inf

    @property
    def in_use(self) -> bool:
        """Does a frontend have it, or a call that is being checked?"""
        return bool(self.frontends) or self.considered > 0

    @property
    def question(self) -> ProbeRequest:
        """A mere connect, which proves it."""
        return ProbeRequest(self.address)

    @property
    def due_at(self) -> float:
        """When it is asked next; inf: never."""
        return min(self.again_at, inf if self.proof is None else self.proof.probe_at)

    @property
    def is_silent(self) -> bool:
        return self.proof is not None and self.proof.found == SILENT

    def connected(self, found: str, now: float) -> None:
        """Note the outcome of any connect."""
        accepted = now if found in PASSED else self.answer.accepted_at if self.answer else -inf
        self.answer = ProbeResult(found, now, accepted)


class HealthRecords:
    """All records. Only the checker writes them; all others read."""

    def __init__(self) -> None:
        self.servers: dict[ServerKey, ServerRecord] = {}
        self.addresses: dict[Address, AddressRecord] = {}
        self.groups: dict[ProbeRequest, dict[ServerKey, None]] = {}  # the servers that ask the same
        self.down: PersistentMap[ServerKey, bool] = PersistentMap()
        self.passed: PersistentMap[ServerKey, bool] = PersistentMap()  # up, and the last check said so
        self.proven: PersistentMap[Address, bool] = PersistentMap()  # addresses that have answered once

    # ------------------------------------------------------------ reading

    def server_states(self, overrides: Overrides) -> ServerStates:
        return ServerStates(self.proven, self.down, self.passed, overrides)

    def of(self, asked: ServerKey | Address) -> ServerRecord | AddressRecord | None:
        return self.addresses.get(asked) if isinstance(asked, Address) else self.servers.get(asked)

    def due_at(self, asked: ServerKey | Address) -> float:
        """When it is asked next; inf: never."""
        known = self.of(asked)
        return inf if known is None else known.due_at

    def proof(self, address: Address) -> Reachability | None:
        known = self.addresses.get(address)
        return None if known is None else known.proof

    def may_have_come(self, address: Address) -> bool:
        """Was it never dialled, or did it refuse the last time?

        A refusal comes at once and may be over by now, so to ask again costs a call little. A black hole would cost a second.
        """
        answer = self.answer(address)
        return self.proof(address) is None or (answer is not None and Reachability(answer.found).reachable == "refused")

    def answer(self, address: Address) -> ProbeResult | None:
        """None: not tried since pylb started."""
        known = self.addresses.get(address)
        return None if known is None else known.answer

    def reachable(self, address: Address) -> tuple[str, str, float | None]:
        """The last answer (yes, refused, timeout or unknown), a hint, and its time (None: before this pylb started)."""
        answer, proof = self.answer(address), self.proof(address)
        if answer is None:
            return (proof.reachable, proof.hint, None) if proof else ("unknown", "", None)
        last = Reachability(answer.found)
        return last.reachable, last.hint, answer.at

    def in_maintenance(self, listen: Listen, address: Address) -> bool:
        known = self.servers.get((listen, address))
        return known is not None and known.server.admin is AdminState.MAINT

    def health(self, listen: Listen, address: Address) -> Health | None:
        """None: never a failure, and never probed."""
        known = self.servers.get((listen, address))
        return None if known is None else known.health

    def checks(self, listen: Listen, address: Address) -> HealthStats:
        """The counts of its checks and of the connects that test it; the last result is a check's, if there was one."""
        known, of_address = self.servers.get((listen, address)), self.addresses.get(address)
        checks, dials = known.checks if known else UNRECORDED, of_address.dials if of_address else UNRECORDED
        failures = checks.failures + dials.failures
        if checks.found:
            return replace(checks, failures=failures)
        return replace(checks, failures=failures, found=dials.found, seconds=dials.seconds)

    def last_check(self, listen: Listen, address: Address) -> tuple[float, str] | None:
        """Like Registry.last_check."""
        both = self.servers.get((listen, address)), self.addresses.get(address)
        return max((one.last_check for one in both if one is not None and one.last_check is not None), default=None)

    def group_due_at(self, known: ServerRecord) -> float:
        """When the first of those that ask the same is due."""
        return inf if known.question is None else self.due_at(next(iter(self.groups[known.question])))

    # ------------------------------------------------------------ writing: which servers and addresses there are

    def restore(
        self, proven: Iterable[Address], down: PersistentMap[ServerKey, bool], passed: PersistentMap[ServerKey, bool]
    ) -> None:
        """What a snapshot remembers, before the first table: a start neither opens a closed server nor closes an open one."""
        for address in proven:
            self._address(address).proof = PROVEN
        self.proven = PersistentMap(dict.fromkeys(self.addresses, True))
        self.down, self.passed = down, passed

    def forget_what_no_table_has(self) -> None:
        """Forget what only the snapshot knew, once the first table is in force."""
        self._forget_unused(list(self.addresses))
        self.down, self.passed = (
            known.edited({key: None for key in known if key not in self.servers}) for known in (self.down, self.passed)
        )

    def add(self, key: ServerKey, server: Server, now: float) -> ServerRecord:
        """A frontend has this server, or has changed it."""
        listen, address = key
        self._address(address).frontends[listen] = None
        known = self.servers.get(key)
        if known is None:
            known = self.servers[key] = ServerRecord(server, HealthStats(now))
        known.server = server
        return known

    def remove(self, key: ServerKey, now: float) -> None:
        """The frontend no longer has this server."""
        listen, address = key
        self.unlearn(key, now)
        del self.servers[key]
        self.addresses[address].frontends.pop(listen, None)
        self._forget_unused([address])

    @contextmanager
    def considering(self, addresses: Collection[Address]) -> Iterator[None]:
        """While a call that names these is checked. The results are forgotten afterwards, unless the call is in force."""
        for address in addresses:
            self._address(address).considered += 1
        try:
            yield
        finally:
            for address in addresses:
                self.addresses[address].considered -= 1
            self._forget_unused(addresses)

    def _address(self, address: Address) -> AddressRecord:
        known = self.addresses.get(address)
        if known is None:
            known = self.addresses[address] = AddressRecord(address)
        return known

    def _forget_unused(self, addresses: Iterable[Address]) -> None:
        for address in addresses:
            known = self.addresses.get(address)
            if known is not None and not known.in_use:
                del self.addresses[address]
                self.proven = self.proven.edited({address: None})

    # ------------------------------------------------------------ writing: what was found

    def unlearn(self, key: ServerKey, now: float) -> None:
        """Forget its answers, as if it had never been asked."""
        known = self.servers[key]
        known.health, known.last_check, known.last_asked = None, None, -inf
        self.group(key, None)
        self.set_passed(key, passed=False)
        if key in self.down:
            self.turn(key, now, down=False)

    def group(self, key: ServerKey, question: ProbeRequest | None) -> None:
        """From now on it asks this question, together with all others that do."""
        known = self.servers[key]
        if known.question == question:
            return
        if known.question is not None:
            group = self.groups[known.question]
            del group[key]
            if not group:
                del self.groups[known.question]
        if question is not None:
            self.groups.setdefault(question, {})[key] = None
        known.question = question

    def set_passed(self, key: ServerKey, *, passed: bool) -> None:
        if passed is not (key in self.passed):
            self.passed = self.passed.edited({key: True if passed else None})

    def set_down(self, key: ServerKey) -> None:
        """It may not serve until it has passed; its health does not change."""
        self.down = self.down.edited({key: True})

    def turn(self, key: ServerKey, now: float, *, down: bool) -> None:
        """Note that the server is down from now on, or up again."""
        known = self.servers[key]
        known.checks = turned(known.checks, now, down=down)
        self.down = self.down.edited({key: True if down else None})

    def set_proof(self, known: AddressRecord, proof: Reachability) -> bool:
        """Is this its first answer?"""
        known.proof = proof
        if proof != PROVEN or known.address in self.proven:
            return False
        self.proven = self.proven.edited({known.address: True})
        return True
