"""What calls are checked against, and the interface to what serves the tables: terms that all parts of control share."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pylb.core.address import Listen, PortKey
from pylb.core.auth import Keyring
from pylb.core.claims import Claims
from pylb.core.operator_overrides import NONE, Overrides, checked, still_valid
from pylb.core.ownership import Change, in_parts
from pylb.core.registration import Key
from pylb.core.static_rules import StaticRules
from pylb.core.table import Table


class Sink(Protocol):
    """What serves the tables: the in-process engine, or the workers."""

    def open(self, listen: Listen, *, freebind: bool) -> None:
        """Binds and listens, accepts nothing yet; one port, of a range one after the other. Idempotent. Raises OSError."""

    def discard(self, listen: Listen) -> None:
        """Close what `open` opened of a port or range, unless a table has published it. Anything else is not touched."""

    def apply(self, table: Table) -> Mapping[Listen, OSError]:
        """Publish. Ports that cannot be opened are returned, and retried with the next table."""

    async def applied(self) -> None:
        """Wait until the last published table is in force everywhere."""


@dataclass(frozen=True, slots=True)
class UnsupportedEntry:
    """An entry of the snapshot from a newer pylb, whose `needs` contain a word that this version does not know.

    Serving it without that feature might send clients elsewhere than its owner asked. So it is written back unchanged, for a
    pylb that knows the word, until it is released or its owner registers something that this version can serve.
    """

    entry: Mapping[str, Any]
    lease: Mapping[str, Any] | None  # the snapshot's record of its lease
    needs: tuple[str, ...]  # the unknown words
    name: str
    ports: tuple[PortKey, ...]  # as far as they can be read


@dataclass(frozen=True, slots=True)
class DesiredState:
    """The state that a call is checked against; the next call gets the next one."""

    claims: Claims
    static_rules: StaticRules
    keyring: Keyring
    overrides: Overrides = field(default_factory=lambda: NONE)
    unserved: Mapping[Key, UnsupportedEntry] = field(default_factory=dict)

    def has(self, listen: Listen) -> bool:
        return self.claims.opens(listen) or listen in self.static_rules.frontends


Decision = tuple[DesiredState, Change]
Step = Callable[[DesiredState], Decision | Generator[None, None, Decision]]  # a generator for long work, in steps


def with_claims(desired: DesiredState, change: Change) -> tuple[DesiredState, Change]:
    """The next state; the same one if nothing changed."""
    if change.claims is desired.claims:
        return desired, change
    overrides = still_valid(desired.overrides, change.claims, desired.static_rules, change.touched)
    return replace(desired, claims=change.claims, overrides=overrides), change


def with_many(
    desired: DesiredState, keys: Sequence[Key], change: Callable[[Claims, Sequence[Key]], Change]
) -> Generator[None, None, Decision]:
    """The next state after `change` (see ownership.in_parts) of many registrations; the same one if nothing changed."""
    found = yield from in_parts(desired.claims, keys, change)
    if found.claims is desired.claims:
        return desired, found
    overrides = yield from checked(desired.overrides, found.claims, desired.static_rules, found.touched)
    return replace(desired, claims=found.claims, overrides=overrides), found


def without(desired: DesiredState, keys: Iterable[Key]) -> DesiredState:
    """Without these entries of a newer pylb: they are released, or have registered what this version serves."""
    if not desired.unserved:
        return desired
    gone = set(keys)
    left = {key: one for key, one in desired.unserved.items() if key not in gone}
    return desired if len(left) == len(desired.unserved) else replace(desired, unserved=left)
