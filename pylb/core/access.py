"""Access lists: which networks may connect.

Addresses are 4 or 16 bytes here (`canonical`). Within a family, bytes compare like the numbers that they stand for.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass

from pylb.core.address import Network

_MAPPED = bytes(10) + b"\xff\xff"


def canonical(address: bytes) -> bytes:
    """The 4 or 16 bytes of an address; an IPv4-mapped one (RFC 4291 2.5.5.2), as dual-stack ports see IPv4, becomes 4."""
    return address[12:] if address.startswith(_MAPPED) and len(address) == 16 else address


@dataclass(frozen=True, slots=True)
class AccessRule:
    allow: bool
    network: Network


class AccessList:
    """The longest prefix that contains the address decides. If none does, the client is refused if the list allows anything.

    A look-up is one bisection, with 10 prefixes or with 10,000. The config reader builds the list, not the engine: 10,000
    prefixes take a tenth of a second. Two lists are equal if their rules are.

    `within`: another list that must allow the address too.
    """

    def __init__(self, rules: Sequence[AccessRule] = (), within: "AccessList | None" = None) -> None:
        self.rules = tuple(rules)
        self.within = within or None
        otherwise = not any(rule.allow for rule in rules)
        self._ranges = {
            size: _ranges([rule for rule in self.rules if rule.network.version == version], size, otherwise=otherwise)
            for version, size in ((4, 4), (6, 16))
        }

    def allows(self, address: bytes) -> bool:
        """Whether the list lets this address connect. `address` is canonical."""
        starts, verdicts = self._ranges[len(address)]
        allowed = verdicts[bisect_right(starts, address) - 1]
        return allowed and (self.within is None or self.within.allows(address))

    def narrowing(self, other: "AccessList") -> "AccessList":
        """The list that allows what both allow."""
        narrowed = copy(self)  # the ranges stay as they are: making them is what takes time
        narrowed.within = other or None
        return narrowed

    def __bool__(self) -> bool:
        return bool(self.rules or self.within)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AccessList):
            return False
        return (self.rules is other.rules or self.rules == other.rules) and self.within == other.within

    def __hash__(self) -> int:
        return hash((self.rules, self.within))


def _ranges(rules: list[AccessRule], size: int, *, otherwise: bool) -> tuple[list[bytes], list[bool]]:
    """The rules of one family as disjoint ranges: the start of each, and its verdict."""
    end = 1 << 8 * size
    starts, verdicts = [bytes(size)], [otherwise]
    around: list[tuple[int, bool]] = []  # (last address, verdict) of the networks around the current place, wide ones first

    def begin(place: int, *, verdict: bool) -> None:
        start = place.to_bytes(size, "big")
        if starts[-1] == start:
            verdicts[-1] = verdict
        else:
            starts.append(start)
            verdicts.append(verdict)

    def close(before: int) -> None:
        while around and around[-1][0] < before:
            last, _ = around.pop()
            if last + 1 < end:
                begin(last + 1, verdict=around[-1][1] if around else otherwise)

    # Wide before narrow if both start there; of two identical networks the later line counts (sorted is stable).
    for rule in sorted(rules, key=lambda rule: (int(rule.network.network_address), rule.network.prefixlen)):
        low = int(rule.network.network_address)
        close(low)
        begin(low, verdict=rule.allow)
        around.append((int(rule.network.broadcast_address), rule.allow))
    close(end)
    return starts, verdicts


class Networks:
    """A set of networks."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._list = AccessList([AccessRule(True, network) for network in networks])

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(rule.network for rule in self._list.rules)

    def __contains__(self, address: bytes) -> bool:
        """Whether the address is in one of the networks. It is canonical."""
        return bool(self) and self._list.allows(address)

    def __bool__(self) -> bool:
        return bool(self._list)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and self._list == other._list

    def __hash__(self) -> int:
        return hash(self._list)
