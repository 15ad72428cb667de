"""What an operator sees of the cluster: the balancers, a port, the effect of a call, and where this one differs. No I/O."""

from collections.abc import Iterable, Iterator, Mapping

from pylb.cluster.registrations import JOINS, is_shared, refusal
from pylb.control.event_texts import key_title
from pylb.control.sharing import HeardView, MemberView, PortView
from pylb.core.address import PortKey, port_text
from pylb.core.claims import Owner
from pylb.core.errors import Code, Refused
from pylb.core.merge.replica import Replica
from pylb.core.merge.values import BESIDE_NAMES, Slot, Wanted
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


def port_view(replica: Replica, port: PortKey, unserved: Mapping[Key, Refused]) -> PortView:
    protocol, number = port
    keys, claims = replica.knowledge.on_port(protocol, number)
    joining, _ = replica.knowledge.on_port(JOINS + protocol, number)
    known = sorted(keys | joining)
    owners = tuple((_slot_title(slot), _owner_title(owner)) for slot, owner in sorted(claims.items()))
    heard = tuple(one for key in known for one in _heard(replica, key))
    return PortView(owners, heard, tuple((key_title(key), str(unserved[key])) for key in known if key in unserved))


def _heard(replica: Replica, key: Key) -> Iterator[HeardView]:
    mirror = replica.knowledge.mirror
    for name, state in sorted(replica.knowledge.hearers(key).items()):
        here = name == replica.name
        own, written = replica.knowledge.own.get(key) if here else None, mirror.view(name).entries.get(key)
        wanted = own.wanted if own is not None else written.entry.wanted if written is not None else None
        address = "" if wanted is None else wanted.address
        yield HeardView(key_title(key), name, here or mirror.is_present(name), here, str(state), address)


def _slot_title(slot: Slot) -> str:
    text = port_text(slot.port, slot.protocol)
    if slot.server_name == BESIDE_NAMES:
        return f"the default route of port {text}"
    return f"the name {slot.server_name} on port {text}" if slot.server_name else f"port {text}"


def _owner_title(owner: Owner) -> str:
    token, name, legacy = owner
    return f"{token} (legacy)" if legacy else f"{token}/{name}"


def planned(replica: Replica, one: Registration, wanted: Wanted, trouble: str, *, takeover: bool) -> list[str]:
    """What a call would mean for the other balancers. Raises Refused, as its claim would."""
    if not is_shared(one):
        return ["the other balancers do not hear of it: loopback is another machine at each of them"]
    if not replica.linked:
        if not replica.is_known(one.key, wanted.slots):
            raise Refused(
                Code.STORE_UNAVAILABLE, f"etcd cannot be used ({trouble}): no new name or port is accepted", "repair etcd first"
            )
        return [f"the other balancers hear of it when etcd can be used again ({trouble})"]
    if (conflict := replica.knowledge.obstacle(one.key, wanted.slots, takeover=takeover)) is not None:
        raise refusal(conflict)
    return list(_for_each(members(replica), wanted)) or ["there is no other balancer yet that would hear of it"]


def _for_each(several: Iterable[MemberView], wanted: Wanted) -> Iterator[str]:
    others = [one for one in several if not one.here]
    able = [one.name for one in others if one.present and wanted.needs <= set(one.needs)]
    if able:
        serve, config = ("serves", "its own config allows") if len(able) == 1 else ("serve", "their own configs allow")
        yield f"{', '.join(able)} {serve} it as well, if {config} it"
    for one in others:
        if lacking := wanted.needs - set(one.needs):
            yield f"{one.name} keeps it and does not serve it: its pylb does not know {', '.join(sorted(lacking))}"
        elif not one.present:
            yield f"{one.name} is away, and serves it when it is back"


def check_forget(replica: Replica, balancer: str, trouble: str) -> None:
    """Raises Refused: that balancer cannot be removed for good."""
    mirror = replica.knowledge.mirror
    names = sorted(name for name, _ in mirror.members())
    if balancer == replica.name or balancer not in names:
        known = ", ".join(name for name in names if name != replica.name) or "none"
        raise Refused(Code.NOT_FOUND, f"no other balancer is called {balancer!r} (there are: {known})")
    if mirror.is_present(balancer):
        raise Refused(Code.INVALID, f"{balancer!r} is present", "stop it first: only a balancer that is away can be forgotten")
    if not replica.linked:
        raise Refused(Code.STORE_UNAVAILABLE, f"etcd cannot be used: {trouble}", "repair etcd first")
