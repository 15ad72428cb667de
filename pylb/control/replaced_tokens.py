"""Tokens that replace others (`replaces:`): to whom a call's registration belongs, and which ones pass to another token."""

from dataclasses import replace

from pylb.control.desired_state import DesiredState
from pylb.core.address import TCP, UDP
from pylb.core.auth import Keyring
from pylb.core.ownership import Change, pass_on
from pylb.core.registration import Key, Registration


def inheriting(desired: DesiredState, wanted: Registration) -> Registration:
    """The registration that a call is about. One that stayed with its old token remains there."""
    keyring = desired.keyring
    if not keyring.has_heirs or wanted.key in desired.claims.registrations:
        return wanted
    return replace(wanted, key=heir_of(wanted, keyring))


def inherited(desired: DesiredState, key: Key) -> Key:
    """The registration that a caller means whose token was replaced by another."""
    held = desired.claims.registrations
    if key in held:
        return key
    replaced_tokens = (key._replace(token=one.name) for one in desired.keyring.tokens if key.token in one.replaces)
    return next((new for new in replaced_tokens if new in held), key)


def passed_on(desired: DesiredState) -> tuple[DesiredState, Change, dict[Key, Key]]:
    """`desired`, with the registrations of replaced tokens passed on to their heirs.

    If the heir already has one of that name and instance, it stays where it is: two cannot be one, and none may be lost.
    """
    registrations = desired.claims.registrations
    replaced_tokens: dict[Key, Key] = {}
    for one in registrations.in_any_order() if desired.keyring.has_heirs else ():
        if (new := heir_of(one, desired.keyring)) not in registrations:
            replaced_tokens.setdefault(new, one.key)
    keys = {old: new for new, old in replaced_tokens.items()}
    change = pass_on(desired.claims, keys)
    return replace(desired, claims=change.claims), change, keys


def heir_of(one: Registration, keyring: Keyring) -> Key:
    """The key of the registration, under the token to which it belongs."""
    if not keyring.has_heirs:
        return one.key
    tcp, udp = ([port for item in one.wanted if item.protocol == protocol for port in item.ports] for protocol in (TCP, UDP))
    names = [item.server_name for item in one.wanted]
    heir = keyring.heir(one.key.token, one.key.name, tcp, legacy=one.key.is_legacy, udp=udp, server_names=names)
    return one.key._replace(token=heir)
