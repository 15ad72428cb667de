"""From a call to the registration it asks for: the scope of its token, checked before anything else happens."""

from dataclasses import dataclass, replace

from pylb.core.address import Address, refused_class
from pylb.core.auth import (
    Caller,
    Keyring,
    Token,
    check_name,
    check_port,
    check_source,
    check_target_port,
    legacy_target,
    native_target,
)
from pylb.core.errors import Code, Refused
from pylb.core.legacy import LegacyCall
from pylb.core.policy import ProxyProtocol, Rules
from pylb.core.registration import Announcement, Key, Registration, State, Wanted, check_ttl, legacy_key
from pylb.core.registration import check_name as check_spelling


@dataclass(frozen=True, slots=True)
class Imported:
    """One server of an old HAProxy configuration (`pylb import`)."""

    port: int
    address: Address
    name: str = "legacy"
    send_proxy: ProxyProtocol = ProxyProtocol.NONE


def native_registration(name: str, instance: str, announcement: Announcement, caller: Caller, rules: Rules) -> Registration:
    """Raises Refused."""
    check_source(caller)
    check_spelling("name", name)
    check_spelling("instance", instance)
    check_name(caller.token, name)
    ip = native_target(caller, announcement.address)
    for item in announcement.frontends:
        check_port(caller.token, item.port, rules.reserved_ports)
        check_target_port(caller.token, item.target_port)
    return Registration(
        Key(caller.token.name, name, instance),
        name,
        ip,
        announcement.frontends,
        check_ttl(announcement.ttl, rules.leases),
        State.DRAINING if announcement.draining else State.FRESH,
    )


def legacy_registration(call: LegacyCall, caller: Caller, rules: Rules) -> tuple[Registration, str]:
    """(the registration of an `add`, a note for its answer). Raises Refused."""
    check_source(caller)
    check_port(caller.token, call.port, rules.reserved_ports)
    check_target_port(caller.token, call.target_port)
    ip, note = legacy_target(caller, call.address)
    wanted = Wanted(call.port, call.target_port, call.send_proxy)
    one = Registration(legacy_key(caller.token.name, call.port), call.name, ip, (wanted,), None)
    return one, note or call.address_note


def imported_registration(item: Imported, keyring: Keyring, token: str | None) -> Registration:
    """As if the old phone-home of the port had called with `token`, or with the only token that may. Raises Refused."""
    kind = refused_class(item.address.ip)
    if kind is not None:
        raise Refused(Code.TARGET_REFUSED, f"{item.address} is no target: it is {kind}")
    chosen = _token_for(item.port, keyring, token)
    wanted = Wanted(item.port, item.address.port, item.send_proxy)
    return Registration(legacy_key(chosen.name, item.port), item.name, item.address.ip, (wanted,), None)


def _token_for(port: int, keyring: Keyring, name: str | None) -> Token:
    may = [token for token in keyring.tokens if name in (None, "", token.name) and token.may_open(port)]
    if len(may) == 1:
        return may[0]
    if not may:
        whose = f"no token {name!r}" if name else "no token"
        raise Refused(Code.PORT_FORBIDDEN, f"there is {whose} that may open port {port}")
    several = ", ".join(repr(token.name) for token in may)
    raise Refused(Code.PORT_FORBIDDEN, f"several tokens may open port {port}: {several}", "say which with --token")


def same_call(before: Registration | None, wanted: Registration) -> bool:
    """Is `wanted`, which has no places yet, what `before` already is?"""
    return before is not None and replace(before, places=(), displaced=()) == wanted
