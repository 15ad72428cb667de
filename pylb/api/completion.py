"""What a shell completes with: ports, names, targets of `pylb ctl`, ids of sessions, tokens, balancers of the running pylb."""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pylb.control.registry import VIEWS, Registry
from pylb.control.sharing import MemberView
from pylb.control.steps import in_turns
from pylb.control.views import RegistrationView
from pylb.core.errors import Code, Refused
from pylb.core.session import SessionView
from pylb.core.table import Frontend

T = TypeVar("T")
Words = Iterable[tuple[str, str]]  # each with what it is

MOST = 200  # in one answer: nobody reads more at a prompt
_PLAIN = re.compile(r"[\w.:/@+\[\]-]+", re.ASCII)  # nothing in it means something to a shell


async def words(
    registry: Registry, sessions: Collection[SessionView], tokens: Iterable[str], kinds: Collection[str], prefix: str
) -> list[tuple[str, str]]:
    """The words of these kinds that begin with `prefix`, in order, each once. Raises Refused."""
    found: dict[str, str] = {}

    async def look(items: Iterable[T], words_of: Callable[[T], Words]) -> None:
        async for one in in_turns(items, VIEWS):
            found.update((word, what) for word, what in words_of(one) if word.startswith(prefix) and _PLAIN.fullmatch(word))
            if len(found) >= 5 * MOST:  # to sort all words of 10,000 registrations at the end would take 40 ms in one step
                first = _first(found)
                found.clear()
                found.update(first)

    for kind in kinds:
        if kind in _OF_FRONTENDS:
            await look(registry.table.frontends.values(), _OF_FRONTENDS[kind])
        elif kind == "registration":
            await look(registry.each_registration(), _registration)
        elif kind == "session":
            await look(sessions, lambda one: [(one.id, f"{one.client} to {one.frontend}")])
        elif kind == "token":
            await look(tokens, lambda name: [(name, "token")])
        elif kind == "balancer":
            await look(() if registry.sharing is None else registry.sharing.view().members, _balancer)
        else:
            raise Refused(Code.INVALID, f"kinds: {kind[:40]!r} is not known")
    return _first(found)


def _first(found: Mapping[str, str]) -> list[tuple[str, str]]:
    """Numbers first, in their order."""
    return sorted(found.items(), key=lambda item: (not item[0].isdigit(), item[0].isdigit() and len(item[0]), item[0]))[:MOST]


def _targets(one: Frontend) -> Iterator[tuple[str, str]]:
    for server in one.servers:
        yield f"{one.name}/{server.name}", str(server.address)
        yield server.address.ip, "all servers on this node"


def _registration(one: RegistrationView) -> Words:
    return [(one.name, "registration"), (f"{one.name}/{one.instance}", f"registration of token {one.token}")]


def _balancer(one: MemberView) -> Words:
    """Those that may be forgotten: one that is present may not."""
    return [] if one.present else [(one.name, "away")]


def request_of(request: Mapping[str, Any]) -> tuple[list[str], str]:
    """`kinds` and `prefix` of a request. Raises Refused."""
    kinds, prefix = request.get("kinds"), request.get("prefix")
    if not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds) and isinstance(prefix, str)):
        raise Refused(Code.INVALID, "kinds: a list of text, and prefix: text are needed")
    return kinds, prefix


_OF_FRONTENDS: dict[str, Callable[[Frontend], Words]] = {
    "port": lambda one: [] if one.listen.server_name else [(one.listen.port_text, one.name)],
    "frontend": lambda one: [(one.name, f"port {one.listen.route_text}")],
    "server_name": lambda one: [(name, f"port {one.listen.port_text}")] if (name := one.listen.server_name) else [],
    "server": lambda one: ((server.name, str(server.address)) for server in one.servers),
    "target": _targets,
}
