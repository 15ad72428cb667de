"""From a call to the registration that it asks for: the token's scope is checked before anything else happens."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pylb.core.address import Address
from pylb.core.auth import Caller, Keyring, Token, check_name, check_port, check_ports, check_server_name, check_source
from pylb.core.errors import Code, Refused
from pylb.core.legacy import LegacyCall
from pylb.core.policy import ProxyProtocol, Rules
from pylb.core.registration import Announcement, FrontendRequest, Key, Registration, State, check_ttl, legacy_key
from pylb.core.registration import check_name as check_spelling
from pylb.core.scope import check_dials, legacy_target, native_target, set_members
from pylb.core.static_rules import StaticRules


@dataclass(frozen=True, slots=True)
class ImportedServer:
    """One server of an old HAProxy configuration (`pylb import`)."""

    port: int
    address: Address
    name: str = "legacy"
    send_proxy: ProxyProtocol = ProxyProtocol.NONE


def native_registration(name: str, instance: str, announcement: Announcement, caller: Caller, rules: Rules) -> Registration:
    """The registration that a native call asks for; `instance` is "" for a set. Raises Refused."""
    check_source(caller)
    check_spelling("name", name)
    if not announcement.members:
        check_spelling("instance", instance)
    check_native(caller.token, name, announcement.frontends, rules)
    one = Registration(
        Key(caller.token.name, name, instance),
        name,
        "" if announcement.members else native_target(caller, announcement.address),
        announcement.frontends,
        check_ttl(announcement.ttl, rules.leases),
        State.DRAINING if announcement.draining else State.FRESH,
        members=set_members(announcement.members) if announcement.members else (),
        terms=announcement.terms,
        sequence=announcement.sequence,
    )
    check_dials(one, caller, rules.own_ips)
    return one


def check_native(token: Token, name: str, frontends: Iterable[FrontendRequest], rules: Rules) -> None:
    """May the token have this name, these ports and these server names, whoever hears the call? Raises Refused."""
    check_name(token, name)
    for item in frontends:
        check_ports(token, item.ports, rules.reserved_ports, item.protocol)
        if item.server_name:
            check_server_name(token, item.server_name)


def check_legacy(token: Token, port: int, name: str, static_rules: StaticRules) -> None:
    """May the token have this legacy registration? Raises Refused.

    Its name is only a description, unless it opens a static frontend: then the token decides, as for a native call.
    """
    if static_rules.joins_by_name(port, name):
        check_name(token, name)
    check_port(token, port, static_rules.rules.reserved_ports)


def legacy_registration(call: LegacyCall, caller: Caller, static_rules: StaticRules) -> tuple[Registration, str]:
    """The registration of an `add`, and a note for its answer. Raises Refused."""
    rules = static_rules.rules
    check_source(caller)
    check_legacy(caller.token, call.port, call.name, static_rules)
    ip, note = legacy_target(caller, call.address, rules.own_ips)
    wanted = FrontendRequest(call.port, call.target_port, call.send_proxy)
    one = Registration(legacy_key(caller.token.name, call.port), call.name, ip, (wanted,), None)
    check_dials(one, caller, rules.own_ips)
    return one, note or call.address_note


def imported_registration(item: ImportedServer, keyring: Keyring, token: str | None, rules: Rules) -> Registration:
    """The registration as if the port's old phone-home had called from its server. Raises Refused.

    The token is `token`, or the one that may open the port.
    """
    chosen = _token_for(item.port, keyring, token)
    wanted = FrontendRequest(item.port, item.address.port, item.send_proxy)
    one = Registration(legacy_key(chosen.name, item.port), item.name, item.address.ip, (wanted,), None)
    check_dials(one, Caller(item.address.ip, chosen, "legacy"), rules.own_ips)
    return one


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
    """Whether `wanted`, which has no places yet, asks for the same as `before`."""
    return before is not None and before.ip == wanted.ip and replace(before, places=(), displaced=()) == wanted
