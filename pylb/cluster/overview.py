"""What an operator sees of the cluster: the balancers, and where this one differs. No I/O."""

from collections.abc import Iterator

from pylb.control.event_texts import key_title
from pylb.control.sharing import MemberView
from pylb.core.errors import Refused
from pylb.core.merge.replica import Replica
from pylb.core.registration import Key, Registration


def members(replica: Replica) -> Iterator[MemberView]:
    mirror, me = replica.knowledge.mirror, replica.name
    for name, member in sorted(mirror.members()):
        waited_for = [one for one in mirror.tombstones.values() if member.processed.get(one.writer, 0) < one.stamp]
        behind = member.partial or any(one.writer != name for one in waited_for)
        entries = len(mirror.view(name).entries)
        yield MemberView(name, mirror.is_present(name), name == me, member.count, entries, behind, tuple(sorted(member.needs)))


def difference(replica: Replica, key: Key, there: Registration | None, why: Refused | None) -> dict[str, str]:
    merged = replica.knowledge.registration(key)
    return {
        "registration": key_title(key),
        "here": "" if there is None else f"{there.ips[0]} {there.state}",
        "cluster": "" if merged is None else f"{merged.wanted.address} {merged.state}, heard by {merged.hearer}",
        "why": "it is about to be put in force" if why is None else str(why),
    }
