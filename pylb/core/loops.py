"""Registrations that would make pylb connect to itself.

They are refused when they call; one that becomes a loop later is not served.
"""

from collections.abc import Collection, Generator, Iterable

from pylb.core.address import Address, Listen, PortKey, port_text
from pylb.core.claims import LOOPBACK, Claims, with_ports
from pylb.core.errors import Code, Refused
from pylb.core.registration import Key, Registration
from pylb.core.static_rules import StaticRules

STEP = 100  # registrations that one step of `looping` judges: 1 ms
BUCKETS = 16  # of addresses that one step looks at: with 10,000 addresses 640, less than 1 ms


def check_no_loop(claims: Claims, static_rules: StaticRules, one: Registration) -> None:
    """Check that the registration does not make pylb dial one of its own ports. Raises Refused."""
    if (found := loop(claims, static_rules, one)) is not None:
        raise Refused(Code.TARGET_REFUSED, found, "aim at the node, not at the load balancer")


def loop(claims: Claims, static_rules: StaticRules, one: Registration) -> str | None:
    """Why a registration would make pylb connect to itself, or None. Its own ports count, whether they are open or not."""
    for ip in one.ips:
        if (why := loop_at(claims, static_rules, one, ip)) is not None:
            return why
    return None


def loop_at(claims: Claims, static_rules: StaticRules, one: Registration, ip: str, at: Listen | None = None) -> str | None:
    """Like `loop`, for one of its addresses: for all of its servers there, or only for the one `at` one of its listens."""
    if not static_rules.is_here(ip):
        return None
    for item, place in zip(one.wanted, one.places, strict=True):
        for name, port in item.targets(static_rules.policy(place).health.check) if at in (None, place) else ():
            protocol, number = port
            held = number in claims.ports and _is_open(claims, port)
            if port in static_rules.own_ports or held or _has(one.places, protocol, number):
                sent = f"port {item.port_text} would be sent in a loop" if name == "target_port" else "no server would be asked"
                return f"{Address(ip, number, protocol)} ({name}) is pylb itself: {sent}"
    return None


def looping(claims: Claims, static_rules: StaticRules) -> Generator[None, None, dict[Key, str]]:
    """Registrations that aim at pylb itself, and why, found in steps: their address has become ours since they called, or a
    static frontend was added. compose.py leaves their servers out."""
    registered = (listen for bucket in claims.holders.buckets for listen in bucket)
    ports = static_rules.own_ports.union((listen.protocol, port) for listen in registered for port in listen.ports)
    if ports.isdisjoint(static_rules.check_ports) and not (yield from _any_aims_at(claims, static_rules, ports)):
        return {}  # nearly always: saves a look at each of them
    ones, found = tuple(claims.registrations.values()), dict[Key, str]()
    for start in range(0, len(ones), STEP):
        yield
        for one in ones[start : start + STEP]:
            if (why := loop(claims, static_rules, one)) is not None:
                found[one.key] = why
    return found


def check_opens_no_loop(claims: Claims, static_rules: StaticRules, wanted: Registration) -> None:
    """Check that `wanted` opens no port to which pylb already forwards as to a server. Raises Refused."""
    opened: set[PortKey] = set()
    for listen in with_ports(wanted.places):
        if not (listen.server_name or listen in static_rules.frontends or claims.opens(listen)):
            opened.update([(listen.protocol, port) for port in listen.ports])
    if circle := opened & static_rules.aimed_here:
        protocol, port = min(circle)
        detail = f"port {port_text(port, protocol)} of this machine is where a static frontend is sent: a loop"
        raise Refused(Code.TARGET_REFUSED, detail, "use another port")
    if not opened or not _is_aimed_at(claims, static_rules, opened):
        return
    for one in claims.registrations.values():  # somebody is: who?
        aims = any(port in opened for item in one.wanted for _, port in item.targets())
        if aims and one.key != wanted.key and any(map(static_rules.is_here, one.ips)):
            detail = f"a port of {wanted.owner} is where {one.owner} is sent, on this machine: a loop"
            raise Refused(Code.TARGET_REFUSED, detail, "use another port")


def _has(places: Iterable[Listen], protocol: str, number: int) -> bool:
    for place in places:  # noqa: SIM110  any() makes three calls, and this is asked for each holder of a port that a call touches
        if place.protocol == protocol and place.port <= number <= (place.last or place.port):
            return True
    return False


def _is_open(claims: Claims, port: PortKey) -> bool:
    return next(claims.listens(port), None) is not None


def _any_aims_at(claims: Claims, static_rules: StaticRules, ports: Collection[PortKey]) -> Generator[None, None, bool]:
    """Like `_is_aimed_at` for many ports: looks at each address once, however many ports and own addresses there are."""
    here = {LOOPBACK, *static_rules.own_ips}
    for number, bucket in enumerate(claims.sent_to.buckets, 1):
        if any(address.ip in here and (address.protocol, address.port) in ports for address in bucket):
            return True
        if number % BUCKETS == 0:
            yield
    return False


def _is_aimed_at(claims: Claims, static_rules: StaticRules, ports: Iterable[PortKey]) -> bool:
    """Whether a registration is aimed at one of these ports of this machine."""
    here = (LOOPBACK, *static_rules.own_ips)
    return any(Address(ip, port, protocol) in claims.sent_to for protocol, port in ports for ip in here)
