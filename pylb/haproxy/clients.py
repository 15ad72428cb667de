"""Which clients may connect. Conditions become sets of addresses, so any order of `accept` and `reject` translates exactly."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network, summarize_address_range
from typing import NamedTuple

from pylb.haproxy.config_parser import Line, Notes

MOST_WORK = 200_000  # ranges looked at for one config: ten thousand rules over ten thousand networks would take hours
_MAPPED = IPv6Network("::ffff:0:0/96")  # HAProxy compares IPv4 clients with IPv6 networks in this form
_SIZES = (32, 128)
Range = tuple[int, int]  # inclusive


@dataclass(frozen=True, slots=True)
class Clients:
    """A set of client addresses, as sorted, disjoint ranges of IPv4 and of IPv6."""

    ranges: tuple[tuple[Range, ...], tuple[Range, ...]]

    @classmethod
    def of(cls, networks: Iterable[IPv4Network | IPv6Network]) -> "Clients":
        found: tuple[list[Range], list[Range]] = ([], [])
        for one in networks:
            found[one.version == 6].append((int(one.network_address), int(one.broadcast_address)))
        return cls((_merged(found[0]), _merged(found[1])))

    def __invert__(self) -> "Clients":
        return Clients((_inverted(self.ranges[0], _SIZES[0]), _inverted(self.ranges[1], _SIZES[1])))

    def __or__(self, other: "Clients") -> "Clients":
        one, two = self.ranges, other.ranges
        return Clients((_merged([*one[0], *two[0]]), _merged([*one[1], *two[1]])))

    def __and__(self, other: "Clients") -> "Clients":
        return ~(~self | ~other)

    def __len__(self) -> int:
        return len(self.ranges[0]) + len(self.ranges[1])

    def networks(self) -> Iterator[IPv4Network | IPv6Network]:
        for low, high in self.ranges[0]:
            yield from summarize_address_range(IPv4Address(low), IPv4Address(high))
        for low, high in self.ranges[1]:
            yield from summarize_address_range(IPv6Address(low), IPv6Address(high))


def _merged(ranges: list[Range]) -> tuple[Range, ...]:
    found: list[Range] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def _inverted(ranges: Sequence[Range], size: int) -> tuple[Range, ...]:
    found, start = [], 0
    for low, high in ranges:
        if low > start:
            found.append((start, low - 1))
        start = high + 1
    return (*found, (start, (1 << size) - 1)) if start < 1 << size else tuple(found)


NOBODY = Clients(((), ()))
EVERYBODY = ~NOBODY
_LOOPBACK = Clients.of([IPv4Network("127.0.0.0/8"), IPv6Network("::1/128")])
_KNOWN = {"TRUE": EVERYBODY, "FALSE": NOBODY, "WAIT_END": EVERYBODY, "LOCALHOST": _LOOPBACK}


def access_entries(clients: Clients) -> list[dict[str, str]]:
    """The entries of `access` for `clients`. Without an `allow`, everybody who is not denied may connect."""
    if clients == EVERYBODY:
        return []
    allowed, denied = list(clients.networks()), list((~clients).networks())
    if allowed and len(allowed) <= len(denied):
        return [{"allow": str(one)} for one in allowed]
    return [{"deny": str(one)} for one in denied]


class Rule(NamedTuple):
    """One `accept` or `reject` rule with its condition."""

    line: Line
    accepts: bool
    condition: list[str]  # from `if` or `unless` on; []: everybody


class Conditions:
    """Evaluates `if` and `unless` where the client's address alone decides. There is one per config, to bound the work."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._work = MOST_WORK

    def clients(self, words: Sequence[str], acls: dict[str, list[Line]], port: int) -> Clients | None:
        """The clients for which a condition holds; None: it depends on more than the address."""
        if not words:
            return EVERYBODY
        whole, every, negated = NOBODY, EVERYBODY, False
        rest = iter(words[1:])
        for word in rest:
            if word in ("or", "||"):
                whole, every = whole | every, EVERYBODY
                continue
            while word.startswith("!"):
                negated, word = not negated, word[1:]  # noqa: PLW2901 - there may be several signs
            if not word:
                continue
            anonymous = word == "{"
            found = self._test(list(iter(rest.__next__, "}")), port) if anonymous else self._named(word, acls, port)
            if found is None or self._too_much(found, whole, every):
                return None
            every, negated = every & (~found if negated else found), False
        whole |= every
        return ~whole if words[0] == "unless" else whole

    def _too_much(self, *sets: Clients) -> bool:
        self._work -= 1 + sum(map(len, sets))
        return self._work < 0

    def _named(self, name: str, acls: dict[str, list[Line]], port: int) -> Clients | None:
        lines = acls.get(name)
        if lines is None:
            return _KNOWN.get(name)
        found = NOBODY
        for line in lines:
            one = self._test(line.words[2:], port)
            if one is None or self._too_much(one, found):
                return None
            found |= one
        return found

    def _test(self, words: list[str], port: int) -> Clients | None:
        """The clients for which one test holds: `src 192.0.2.0/24 …`, `dst_port 443`, `always_true`."""
        match words:
            case ["src", *patterns]:
                self._work -= len(patterns)
                return _networks(patterns) if self._work >= 0 else None
            case ["dst_port", *patterns]:
                return _ports(patterns, port)
            case ["always_true" | "always_false" as truth, *_]:
                return EVERYBODY if truth == "always_true" else NOBODY
        return None

    def accepted(self, rules: Sequence[Rule], acls: dict[str, list[Line]], port: int) -> Clients:
        """The clients that `rules` accept: the first rule that holds decides; if none does, the client is accepted."""
        rest, accepted = EVERYBODY, NOBODY
        last = max((number for number, rule in enumerate(rules) if not rule.accepts), default=-1)
        for number, rule in enumerate(rules):
            if number > last:
                break  # the last `accept` rules change nothing, as that is the default
            found = self.clients(rule.condition, acls, port)
            if found is None:
                word = "accept" if rule.accepts else "refuse"
                what = f"HAProxy would {word} some connections by this rule; pylb cannot test that, and ignores the rule"
                self._notes.differs(rule.line, f"{rule.line.text}: {what}")
                continue
            if self._too_much(found, rest, accepted):
                self._notes.differs(rule.line, f"{rule.line.text}: not read: there are too many rules in this config")
                break
            if rule.accepts:
                accepted |= rest & found
            rest &= ~found
        return accepted | rest


def _networks(patterns: Sequence[str]) -> Clients | None:
    found: list[IPv4Network | IPv6Network] = []
    rest: Callable[[], str | None] = iter([*patterns, None]).__next__
    while (word := rest()) is not None:
        if word in ("-n", "--", "-i"):
            continue
        if word == "-m":
            if rest() != "ip":
                return None
            continue
        try:
            one = ip_network(word, strict=False)
        except ValueError:
            return None  # -f FILE, a host name
        found.append(one)
        if isinstance(one, IPv6Network) and _MAPPED.subnet_of(one):
            found.append(IPv4Network("0.0.0.0/0"))
        elif isinstance(one, IPv6Network) and one.subnet_of(_MAPPED):
            found.append(IPv4Network((int(one.network_address) & 0xFFFFFFFF, one.prefixlen - 96)))
    return Clients.of(found)


def _ports(patterns: Sequence[str], port: int) -> Clients | None:
    for word in patterns:
        if word in ("eq", "-m", "int", "--"):
            continue
        low, colon, high = word.partition(":")
        if not word.isascii() or not low.isdigit() or (colon and not high.isdigit()) or len(word) > 11:
            return None
        if int(low) <= port <= int(high or low):
            return EVERYBODY
    return NOBODY
