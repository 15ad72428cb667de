"""The names of routes: `git.example.net`, `*.apps.example.net` (one label), `**.example.net` (one label or more).

Names are in lower case. A name that clients cannot send, or that would never be found, is refused with the reason.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TypeVar

T = TypeVar("T")

MOST = 253  # characters (RFC 1035, 2.3.4, without the dot at the end)
ANY = "*"  # in the scope of a token: any name
ONE_LABEL, ANY_DEPTH = "*", "**"
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")  # with the underscore, which is in use


def parse_server_name(text: str) -> str:
    """The name of a route, in lower case. Raises ValueError that says what is wrong and what to write."""
    name = text.lower()
    if not name:
        raise ValueError("a server name is empty; without `server_names` it is the default route")
    if not name.isascii():
        raise ValueError(f"{text[:60]!r} is not ASCII; write its A-label{_a_label(name)}, which is what clients send")
    if name.endswith("."):
        raise ValueError(f"{text[:60]!r} ends with a dot; clients send the name without it")
    if len(name) > MOST:
        raise ValueError(f"a server name of {len(name)} characters: at most {MOST}")
    if _is_ip(name):
        raise ValueError(
            f"{text!r} is an address: a client that connects to one sends no server name, and gets the default route"
        )
    if name in (ONE_LABEL, ANY_DEPTH):
        raise ValueError(f"{text!r} is every name: leave `server_names` out, and it is the default route")
    first, _, rest = name.partition(".")
    for label in (rest if first in (ONE_LABEL, ANY_DEPTH) else name).split("."):
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{text[:60]!r}: {_wrong_label(label)}")
    return name


def _wrong_label(label: str) -> str:
    if "*" in label:
        return "a star stands for whole labels, and only at the beginning: *.example.net for one, **.example.net for any number"
    what = f"{label[:20]!r} is not a label" if label else "a label is empty"
    return f"{what}; letters, digits, '-' and '_', up to 63, and '-' not first or last"


def _a_label(name: str) -> str:
    try:
        return f" ({name.encode('idna').decode('ascii')})"
    except UnicodeError:
        return ""


def _is_ip(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def parse_scope(text: str) -> str:
    """A name that a token may register: like a route's, or `*` for any. Raises ValueError."""
    return text if text == ANY else parse_server_name(text)


def covers(scope: str, name: str) -> bool:
    """May a token with this in its scope register the name? `*.example.net` covers itself and names with one more label."""
    if scope in (ANY, name):
        return True
    first, _, rest = scope.partition(".")
    if first == ANY_DEPTH:
        return name.endswith("." + rest)
    label, _, parent = name.partition(".")
    return first == ONE_LABEL and parent == rest and label != ANY_DEPTH


def find_route(routes: Mapping[str, T], name: str) -> T | None:
    """The route for what a client asks for, by the names of the routes; None: the default route.

    The exact name, then the one with a star in place of its first label, then the longest with two stars.
    """
    if len(name) > MOST or name.startswith("."):
        return None  # the bound also limits the work: a hello has room for thousands of labels
    found = routes.get(name)
    parent = name.partition(".")[2]
    if found is None and parent:
        found = routes.get(f"{ONE_LABEL}.{parent}")
    while found is None and parent:
        found = routes.get(f"{ANY_DEPTH}.{parent}")
        parent = parent.partition(".")[2]
    return found
