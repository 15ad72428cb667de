"""What control and several balancers with one table ask of each other. Without `cluster.etcd` there is no `Sharing`.

Each registration has one place where its lease runs: the balancer that its phone-home calls. There it is one of its own
(`Registration.hearer` is ""); the others serve it as one of that balancer's, for as long as etcd has it.

a call           `repeats`, or `claim` before it is decided; a new name or port is in force when etcd has its claim
any change       `committed`, with the state before and after: it is what the others are to know
its end          `released` if somebody said so, which is for all balancers; else only this one no longer hears it
what others say  `MergedRegistrations.apply` (merged.py), through the one writer and by the rules of every call
"""

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pylb.control.desired_state import DesiredState
from pylb.core.address import PortKey
from pylb.core.errors import Refused
from pylb.core.registration import Key, Registration, State


@dataclass(frozen=True, slots=True)
class MemberView:
    """A balancer, as etcd knows it."""

    name: str
    present: bool
    here: bool  # this one
    count: int  # of its transactions
    entries: int  # registrations that it hears
    behind: bool  # others wait for it: it has not processed a release yet, or writes its own again after a restore
    needs: tuple[str, ...] = ()  # those that it knows


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The condition of what is shared."""

    name: str
    trouble: str  # "": connected, and etcd takes writes
    endpoint: str
    trouble_for: float  # seconds
    heard_here: int
    heard_elsewhere: int
    unwritten: int  # what the others do not know yet
    held: tuple[str, ...] = ()  # releases of others that wait for `pylb cluster accept`
    unserved: tuple[str, ...] = ()  # what others hear and this one does not serve, with the reason
    members: tuple[MemberView, ...] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Merged:
    """A registration as all balancers together know it."""

    one: Registration  # with its hearer
    has_claim: bool  # its owner has the claim of each of its ports: whoever else is on one has to leave


@dataclass(frozen=True, slots=True)
class HeardView:
    """A registration on a port, as one balancer hears it."""

    registration: str
    balancer: str
    present: bool
    here: bool
    state: str
    address: str


@dataclass(frozen=True, slots=True)
class PortView:
    """What all balancers together know of a port."""

    owners: tuple[tuple[str, str], ...]  # what of the port, and who has its claim
    heard: tuple[HeardView, ...]
    unserved: tuple[tuple[str, str], ...]  # registrations on it that this balancer does not serve, with the reason


class Picture(Protocol):
    """What all balancers together know. Asked in the writer's turn, so that no call is decided in between."""

    def agrees(self, key: Key, there: Registration | None) -> bool:
        """Whether what is in force here is what it should be, or is about to be decided by a call."""

    def of(self, key: Key) -> Merged | None:
        """None: nobody has it any more. Raises Refused: it cannot be served here."""


Apply = Callable[[Iterable[Key], Picture], Awaitable[Mapping[Key, Refused]]]


class Sharing(Protocol):
    """One balancer's part, for control. Its methods are cheap and never wait for etcd, except `claim`."""

    async def begin(self, desired: Callable[[], DesiredState], apply: Apply) -> None:
        """The snapshot is in force. `desired`: what is in force now; `apply`: as MergedRegistrations.apply."""

    def repeats(self, one: Registration) -> bool:
        """Note that a call repeats it. False: it is not this balancer's own, or has to be claimed (again)."""

    async def claim(self, wanted: Registration, *, takeover: bool) -> None:
        """Before a call is decided. Returns when nobody else can have its ports. Raises Refused."""

    def claimed(self, key: Key) -> None:
        """The call that claimed it has been decided, either way. Exactly once after each `claim` that returned."""

    def committed(self, before: DesiredState, after: DesiredState) -> Generator[None, None, None]:
        """In force here now, in steps."""

    def released(self, keys: Iterable[Key]) -> None:
        """A phone-home or the operator released them: the same for all balancers. After `committed`."""

    def is_fresh_elsewhere(self, key: Key) -> bool:
        """Whether another balancer hears it within its lease."""

    def leave_to_others(self, keys: Iterable[Key]) -> None:
        """Their leases are over here, and others hear them."""

    async def pause(self) -> None:
        """A successor is about to take over: write everything down and say nothing more."""

    def resume(self) -> None:
        """It failed."""

    def trouble(self) -> str:
        """Why the others are not heard, or do not hear; "" if all is well."""

    @property
    def name(self) -> str:
        """Of this balancer."""

    def hearers(self, key: Key) -> Mapping[str, State]:
        """The balancers that hear it, and what each says of it."""

    def plan(self, wanted: Registration, *, takeover: bool) -> list[str]:
        """What a call would mean for the others. Raises Refused, as its claim would."""

    def view(self) -> ClusterView: ...

    def port(self, port: PortKey) -> PortView: ...

    async def differences(self) -> list[dict[str, str]]:
        """Rows of what this balancer does not serve as the others do."""

    def forget(self, balancer: str) -> None:
        """Remove a balancer for good, with what only it hears. Raises Refused."""

    def accept(self) -> list[str]:
        """The releases that were held back are right. Returns what they were about."""

    def resync(self) -> None:
        """List everything again."""
