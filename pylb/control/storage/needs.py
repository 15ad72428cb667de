"""The words of `needs`: what a version of pylb must know to serve an entry of the snapshot as it was meant.

A version that does not know one of them keeps the entry untouched and does not serve it.
"""

from pylb.core.address import UDP
from pylb.core.checks import GET
from pylb.core.registration import Registration

# Words of `needs` that this version serves: fields of a health check that came after the first form of an entry.
STEPS, REFUSE, METHOD = "check in steps", "when_all_down", "check with a method"
RANGES = "ranges"
SETS = "servers on several machines"
NAMES = "names"  # a route by server name: without that word an older pylb would send it all clients of the port
DATAGRAMS = "udp"
KNOWN_NEEDS = frozenset({STEPS, REFUSE, METHOD, RANGES, SETS, NAMES, DATAGRAMS})


def needs_of(one: Registration) -> list[str]:
    """The features that a pylb must know to serve this registration. One that does not leaves the entry as it is."""
    found: set[str] = {SETS} if one.members else set()
    if any(item.protocol == UDP for item in one.wanted):
        found.add(DATAGRAMS)
    if any(item.last for item in one.wanted):
        found.add(RANGES)
    if any(item.server_name for item in one.wanted):
        found.add(NAMES)
    said = [*(item.health for item in one.wanted), *(old.health for old in one.displaced)]
    for health in said:
        if health.when_all_down is not None:
            found.add(REFUSE)
        if (check := health.check) is not None:
            found |= {STEPS} if len(check.steps) > 1 else set()
            found |= {METHOD} if check.method != GET else set()
    return sorted(found)
