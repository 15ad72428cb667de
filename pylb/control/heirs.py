"""Tokens that replace others (`replaces:`): to whom a call's registration belongs, and which ones pass to another token."""

from dataclasses import replace

from pylb.control.scene import Scene
from pylb.core.auth import Keyring
from pylb.core.ownership import Change, pass_on
from pylb.core.registration import Key, Registration


def inheriting(scene: Scene, wanted: Registration) -> Registration:
    """The registration that a call is about. One that stayed with its old token remains there."""
    keyring = scene.keyring
    if not keyring.has_heirs or wanted.key in scene.claims.registrations:
        return wanted
    return replace(wanted, key=heir_of(wanted, keyring))


def inherited(scene: Scene, key: Key) -> Key:
    """The registration that a caller means whose token was replaced by another."""
    held = scene.claims.registrations
    if key in held:
        return key
    heirs = (key._replace(token=one.name) for one in scene.keyring.tokens if key.token in one.replaces)
    return next((new for new in heirs if new in held), key)


def passed_on(scene: Scene) -> tuple[Scene, Change, dict[Key, Key]]:
    """`scene`, with the registrations of replaced tokens passed on to their heirs.

    If the heir already has one of that name and instance, it stays where it is: two cannot be one, and none may be lost.
    """
    registrations = scene.claims.registrations
    heirs: dict[Key, Key] = {}
    for one in registrations.in_any_order() if scene.keyring.has_heirs else ():
        if (new := heir_of(one, scene.keyring)) not in registrations:
            heirs.setdefault(new, one.key)
    keys = {old: new for new, old in heirs.items()}
    change = pass_on(scene.claims, keys)
    return replace(scene, claims=change.claims), change, keys


def heir_of(one: Registration, keyring: Keyring) -> Key:
    """Its key, under the token that it belongs to."""
    if not keyring.has_heirs:
        return one.key
    ports = [item.port for item in one.wanted]
    return one.key._replace(token=keyring.heir(one.key.token, one.key.name, ports, legacy=one.key.is_legacy))
