"""Registrations as values of etcd, and the way back through this balancer's own scope. No I/O.

`details` of a value in etcd is the entry of a snapshot (control/storage/entries.py) as JSON, without what is known of it at
one balancer only, so whatever a registration may ask for travels along. It is compared as text and read only to serve it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import chain

from pylb.control.desired_state import DesiredState
from pylb.control.new_registration import check_legacy, check_native
from pylb.control.storage.entries import UNUSABLE, read_registration, written_registration
from pylb.control.storage.needs import KNOWN_NEEDS, needs_of
from pylb.control.storage.store import canonical
from pylb.core.address import in_networks, is_loopback
from pylb.core.auth import Caller, Token
from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused
from pylb.core.merge.local import Answer, Conflict, Memory, Own
from pylb.core.merge.values import BESIDE_NAMES, Slot, Wanted
from pylb.core.registration import Key, Registration
from pylb.core.scope import check_dials
from pylb.core.static_rules import StaticRules

RETRY = 10  # seconds, for a caller
JOINS = "join-"  # of a slot's protocol: a server of a static frontend, whose port belongs to nobody


def is_shared(one: Registration) -> bool:
    """Loopback is another machine at each balancer."""
    return not any(map(is_loopback, one.ips))


def as_wanted(one: Registration, static_rules: StaticRules) -> Wanted:
    """Raises Refused: it has a port of pylb's own, or of a static frontend that it may not join."""
    slots, needs = tuple(_slots(one, static_rules)), needs_of(replace(one, displaced=()))
    return Wanted(one.ips[0], slots, one.sequence or 0, one.ttl, frozenset(map(_word, needs)), details_of(one))


def details_of(one: Registration) -> str:
    return canonical(written_registration(one))


def _slots(one: Registration, static_rules: StaticRules) -> Iterator[Slot]:
    owner = f"{one.key.token}/{one.key.name}/{one.key.legacy_port}"
    for item in one.wanted:
        joins = static_rules.place(item, one) in static_rules.frontends
        for port in item.ports:
            if joins:
                yield Slot(JOINS + item.protocol, port, sha256(owner.encode()).hexdigest())
            else:
                yield Slot(item.protocol, port, item.server_name or (BESIDE_NAMES if item.allows_names else ""))


def _word(need: str) -> str:
    """Needs in etcd are words without blanks."""
    return need.replace(" ", "-")


KNOWN = frozenset(map(_word, KNOWN_NEEDS))  # those that this version serves


def reserved_slots(static_rules: StaticRules) -> frozenset[Slot]:
    return frozenset(Slot(protocol, port) for protocol, port in static_rules.own_ports)


def as_registration(key: Key, wanted: Wanted) -> Registration:
    """Raises Refused: nobody can serve that."""
    try:
        one = read_registration(json.loads(wanted.details))
    except UNUSABLE as error:
        raise Refused(Code.INVALID, f"its entry in etcd cannot be read: {str(error)[:200]}") from None
    if one.key != key or one.ips[0] != wanted.address or not one.wanted or not is_shared(one):
        raise Refused(Code.INVALID, "its entry in etcd contradicts its key")
    return one


def same_details(wanted: Wanted, one: Registration) -> bool:
    """Whether it is served as the value in etcd asks. Another version may write the same with other fields."""
    served = details_of(one)
    if wanted.address != one.ips[0] or wanted.details == served:
        return wanted.address == one.ips[0]
    try:
        return details_of(as_registration(one.key, wanted)) == served
    except Refused:
        return False


def check_scope(one: Registration, desired: DesiredState) -> None:
    """What this balancer would check if the phone-home called here, except from where it calls. Raises Refused."""
    token = next((token for token in desired.keyring.tokens if token.name == one.key.token), None)
    if token is None:
        hint = "copy the token to this balancer's config: the balancers that share a table need the same tokens"
        raise Refused(Code.UNAUTHORIZED, f"there is no token {one.key.token!r} here", hint)
    rules = desired.static_rules.rules
    if one.key.is_legacy:
        check_legacy(token, one.key.legacy_port, one.name, desired.static_rules)
    else:
        check_native(token, one.key.name, one.wanted, rules)
    check_dials(one, _caller(one, token, rules.own_ips), rules.own_ips)


def _caller(one: Registration, token: Token, own_ips: frozenset[str]) -> Caller:
    """A phone-home that may call from its server's address may aim there without saying so, except at a balancer."""
    called = not one.members and one.ip not in own_ips and in_networks(one.ip, token.sources)
    return Caller(one.ip if called else "", token)


def refusal(answer: Answer | Conflict, trouble: str = "") -> Refused:
    """What a caller is answered whose claim was not granted."""
    if answer is Answer.LATE:
        return Refused(Code.UNAVAILABLE, "a newer call of it has come meanwhile", "call again", retry_after=1)
    if not isinstance(answer, Conflict):
        detail = f"etcd cannot be used ({trouble or 'no answer in time'}): no new name or port is accepted"
        hint = "what is registered is served, and its calls are answered; repair etcd, `pylb cluster status` says more"
        return Refused(Code.STORE_UNAVAILABLE, detail, hint, retry_after=RETRY)
    port = f"{answer.slot.port}" + ("/udp" if answer.slot.protocol == "udp" else "")
    if answer.owner is None:
        detail = f"port {port} is static, or one of pylb's own, on balancer {answer.balancer!r}"
        return Refused(Code.PORT_OWNED, detail, "use another port, or take it out of that config")
    token, name, legacy = answer.owner
    owner = f"the legacy registrations of token {token!r}" if legacy else f"registration {name!r} of token {token!r}"
    detail, hint = _owned(answer.slot, answer.held or answer.slot, port, owner)
    return Refused(Code.PORT_OWNED, f"{detail}, as the balancers of this cluster know", hint)


def _owned(wanted: Slot, held: Slot, port: str, owner: str) -> tuple[str, str]:
    """What is in the way, and what to do about it: in the words that one balancer has for it (core/conflicts.py)."""
    what, other, only = f"port {port}", "another port", ""
    if held.server_name == BESIDE_NAMES:
        what, only = f"the default route of port {port}", " --default"
    elif held.server_name and not wanted.server_name:
        detail = f"port {port} has routes, as {held.server_name} of {owner}: its default route has to wait"
        return detail, 'say `"names": "allowed"` if your clients are the ones to speak first, as in TLS'
    elif held.server_name:
        what, other, only = f"the name {held.server_name} on port {port}", "another name", f" --name {held.server_name}"
    elif wanted.server_name not in ("", BESIDE_NAMES):
        detail = f"port {port} is owned by {owner}, which allows no names beside it: its server may speak first"
        return detail, 'use another port, or let its owner say `"names": "allowed"`'
    return (
        f"{what} is owned by {owner}",
        f"use {other}, ask its owner, `pylb release {port}{only}`, or give the token `takeover: true`",
    )


def with_own(memory: Memory, desired: DesiredState, wanted_of: Callable[[Registration], Wanted]) -> Memory:
    """What is in force here is what this balancer hears, whatever its memory says: the snapshot is never older than a call."""
    own, unwritten = dict[Key, Own](), set(memory.unwritten)
    for one in desired.claims.registrations.values():
        if one.hearer or not is_shared(one):
            continue
        wanted, known = wanted_of(one), memory.own.get(one.key)
        if known is None or (known.wanted, known.state) != (wanted, one.state):
            unwritten.add(one.key)
        known = known or Own(wanted, one.state, memory.begun, here=False)
        own[one.key] = replace(known, wanted=wanted, state=one.state)
    return replace(memory, own=own, unwritten=frozenset(unwritten | (memory.own.keys() - own.keys())))


def changed_keys(before: Claims, after: Claims) -> Iterator[Key]:
    """Only buckets that an edit has touched differ (persistent_map.py)."""
    old, new = before.registrations, after.registrations
    if old is new:
        return
    same = {id(bucket) for bucket in old.buckets} & {id(bucket) for bucket in new.buckets}
    keys = chain.from_iterable(bucket for bucket in (*old.buckets, *new.buckets) if id(bucket) not in same)
    for key in dict.fromkeys(keys):
        if old.get(key) is not new.get(key):
            yield key
