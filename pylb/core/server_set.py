"""What only a set registration has: servers at several addresses, and terms for the ports that it opens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import Any, NamedTuple

from pylb.core.access import AccessList, AccessRule
from pylb.core.errors import Code, Refused
from pylb.core.policy import Policy

MOST_MEMBERS = 512  # machines of a set
MOST_SERVERS = 4096  # of a set: its machines times its ports
MOST_RULES = 256  # of its access list


class Member(NamedTuple):
    """A machine of a set: for each of its frontends there is a server on it."""

    instance: str  # the label of its servers
    ip: str
    weight: int | None = None  # None: as the frontend has it


class Terms(NamedTuple):
    """What a set asks for the clients of its ports. It has no effect on static frontends: those are the operator's."""

    access: AccessList = AccessList()
    idle: float | None = None  # seconds; None: as the operator has it

    def over(self, policy: Policy) -> Policy:
        """`policy` with these terms on top. They cannot let in whom the operator keeps out."""
        if self.access:
            policy = replace(policy, access=self.access.narrowing(policy.access))
        if self.idle is not None:
            policy = replace(policy, timeouts=replace(policy.timeouts, idle=self.idle, udp_idle=self.idle))
        return policy


NO_TERMS = Terms()


def parse_access(rules: Sequence[Mapping[Any, str]]) -> AccessList:
    """`[{"allow": "203.0.113.0/24"}, {"deny": …}]`. Raises Refused."""
    found = []
    for index, rule in enumerate(rules):
        where = f"access[{index}]"
        if len(rule) != 1 or not rule.keys() <= {"allow", "deny"}:
            raise Refused(Code.INVALID, f"{where}: neither allow nor deny alone", 'as in {"allow": "203.0.113.0/24"}')
        [(verdict, network)] = rule.items()
        try:
            found.append(AccessRule(verdict == "allow", ip_network(network)))
        except ValueError as error:
            raise Refused(Code.INVALID, f"{where}.{verdict}: {error}", "a network such as 203.0.113.0/24") from None
    return AccessList(found)


def written_access(access: AccessList) -> list[dict[str, str]]:
    """The form that `parse_access` reads."""
    return [{"allow" if rule.allow else "deny": str(rule.network)} for rule in access.rules]
