"""What the control socket offers: changes that only this machine may make, and the views of the CLI."""

import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pylb.api.cluster import cluster_verbs
from pylb.api.completion import request_of
from pylb.api.completion import words as completions
from pylb.api.explain import explain, ports_of, recorded_of
from pylb.api.plan import Planned, Reloaded, steps
from pylb.api.routes import legacy_notes, rows
from pylb.api.status import status
from pylb.config import ConfigErrors
from pylb.control.new_registration import ImportedServer
from pylb.control.registry import Registry
from pylb.control.steps import in_turns
from pylb.control.storage.table_history import Generation
from pylb.core.address import Address, Listen, parse_ip
from pylb.core.announcement import parse_native
from pylb.core.auth import Caller, Token
from pylb.core.errors import Code, Refused
from pylb.core.legacy import parse_legacy
from pylb.core.operator_overrides import Override, is_server
from pylb.core.policy import AdminState
from pylb.core.recorder import SessionTrace, parse_session_id
from pylb.core.session import SessionView
from pylb.core.text import counted
from pylb.forward.counters import Counters
from pylb.host.machine import knock
from pylb.web.admin import rejection_json
from pylb.web.control_socket import Verb
from pylb.web.sessions import SessionSource as Listed
from pylb.web.sessions import ended, living, named, query_of, reach_json, session_json, trace_json
from pylb.web.views import listen_json

ITEMS = 50  # of an import, or generations, between two turns of the loop: 1 ms
MOST_IMPORTED = 10_000
MOST_ENDED = 100  # in one answer, unless more are wanted


class SessionControl(Listed, Protocol):
    """Live and ended sessions, which can also be reset and explained."""

    def workers(self) -> Mapping[str, tuple[int, float]]: ...

    async def trace(self, number: int) -> SessionTrace | None: ...

    async def expect(self, client: Address) -> None: ...

    async def shutdown_session(self, number: int) -> int: ...

    async def shutdown_sessions(self, listen: Listen, server: Address) -> int: ...


class AppOperations(Protocol):
    """The running pylb: its files, its reloads, and the counters of this process and the previous ones."""

    async def counters(self) -> Counters: ...

    async def reload(self) -> Reloaded | None: ...

    async def upgrade(self) -> str: ...

    async def read_keys(self) -> None: ...

    async def plan(self, path: Path, text: str) -> Planned: ...

    @property
    def reloaded(self) -> bool: ...

    @property
    def file(self) -> Path | None: ...

    def token(self, name: str) -> Token | None: ...

    def token_names(self) -> list[str]: ...

    @property
    def peers_active(self) -> Callable[[], Awaitable[dict[str, str]]]: ...


def verbs(registry: Registry, service: AppOperations, live: SessionControl) -> dict[str, Verb]:
    return (
        _views(registry, service, live)
        | _traces(registry, service, live)
        | _changes(registry, service)
        | _operator(registry)
        | _sessions(registry, live)
        | _address(registry, service)
        | cluster_verbs(registry)
    )


def _views(registry: Registry, service: AppOperations, live: SessionControl) -> dict[str, Verb]:
    """Verbs that change nothing."""
    started_at = time.time()

    async def status_(_request: Mapping[str, Any]) -> dict[str, Any]:
        counters, workers = await service.counters(), len(live.workers())
        return {"status": await status(registry, counters, workers, reloaded=service.reloaded, started_at=started_at)}

    async def ping(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"generation": registry.table.generation, "config": None if service.file is None else str(service.file)}

    async def routes(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"routes": await rows(registry), "notes": legacy_notes(registry)}

    async def complete(request: Mapping[str, Any]) -> dict[str, Any]:
        kinds, prefix = request_of(request)
        sessions = await live.sessions() if "session" in kinds else ()
        return {"words": await completions(registry, sessions, service.token_names(), kinds, prefix)}

    async def rejected(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"rejected": [rejection_json(one) for one in registry.rejected()], "reach": {"since": registry.since.rejected}}

    async def plan(request: Mapping[str, Any]) -> dict[str, Any]:
        if "body" in request:
            planned = await _planned_call(registry, service, request)
        else:
            path, text = _path(request), _unicode("text", request.get("text", ""))
            try:
                planned = await service.plan(path, text)
            except ConfigErrors as errors:
                raise Refused(Code.INVALID, str(errors), "nothing was changed") from None
        answer = {"generation": registry.table.generation, "steps": await steps(planned.lines, await live.sessions())}
        return answer if registry.sharing is None else answer | {"others": planned.others}

    return {
        "complete": complete,
        "ping": ping,
        "plan": plan,
        "rejected": rejected,
        "routes": routes,
        "status": status_,
    }


def _traces(registry: Registry, service: AppOperations, live: SessionControl) -> dict[str, Verb]:
    """Verbs that explain: what changed, and what is wrong."""

    async def history(request: Mapping[str, Any]) -> dict[str, Any]:
        what = request.get("what")
        found = registry.history(None if what is None else str(what))
        return {
            "generations": [_generation(one) async for one in in_turns(found, ITEMS)],
            "reach": {"since": registry.since.history},
        }

    async def explain_(request: Mapping[str, Any]) -> dict[str, Any]:
        if "session" in request:
            return {"explained": await _trace(live, _text(request, "session"))}
        what = str(request["port"]) if type(request.get("port")) is int else _text(request, "what")
        counters = await service.counters()
        found = []
        for port in await ports_of(registry, what):
            recorded = await live.ended(recorded_of(port))
            found.append(await explain(registry, counters, recorded.traces, knocks, port, asked=str(request.get("name") or "")))
        return {"explained": found[0], "all": found}

    async def knocks(listen: Listen) -> str:
        return await knock(listen.ip, listen.port, live.expect)

    return {"explain": explain_, "history": history}


def _changes(registry: Registry, service: AppOperations) -> dict[str, Verb]:
    """Verbs that change registrations or read files again."""

    async def release(request: Mapping[str, Any]) -> dict[str, Any]:
        name = request.get("name")
        if name is not None and not isinstance(name, str):
            raise Refused(Code.INVALID, "name: text is needed")
        return {"released": await registry.operator.release_any(_text(request, "what"), name)}

    async def import_(request: Mapping[str, Any]) -> dict[str, Any]:
        items = request.get("items")
        if not isinstance(items, list) or len(items) > MOST_IMPORTED:
            raise Refused(Code.INVALID, f"items: a list of at most {MOST_IMPORTED} legacy bodies is needed")
        token = _text(request, "token")
        if not items and service.token(token) is None:  # of a dry run
            raise Refused(Code.NOT_FOUND, f"there is no token called {token!r}", "`pylb token list`")
        read = [_imported(item) async for item in in_turns(items, ITEMS)]
        return {"lines": await registry.operator.import_legacy(read, token)}

    async def reload(_request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            reloaded = await service.reload()
        except ConfigErrors as errors:
            raise Refused(Code.INVALID, str(errors), "nothing was changed") from None
        if reloaded is None:
            later = "an upgrade is on its way: the pylb that serves afterwards reads the config again, and logs the result"
            return {"lines": [later]}
        change = reloaded.change
        counts = {"opened": len(change.opened), "closed": len(change.closed), "changed": len(change.changed)}
        return {**counts, "lines": reloaded.lines}

    async def upgrade(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"lines": [await service.upgrade()]}

    async def uses(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"uses": registry.calls.uses()}

    async def tokens(_request: Mapping[str, Any]) -> dict[str, Any]:
        await service.read_keys()
        return {}

    return {"release": release, "import": import_, "reload": reload, "tokens": tokens, "token uses": uses, "upgrade": upgrade}


async def _planned_call(registry: Registry, service: AppOperations, request: Mapping[str, Any]) -> Planned:
    """What a call from `address` by the phone-home of `name`/`instance` would change. Raises Refused."""
    token = service.token(_text(request, "token"))
    if token is None:
        raise Refused(Code.NOT_FOUND, f"there is no token called {request['token']!r}", "`pylb token list`")
    try:
        ip = parse_ip(_text(request, "address"))
    except ValueError as error:
        raise Refused(Code.INVALID, f"address: {error}") from None
    announcement = parse_native(_unicode("body", _text(request, "body")).encode())
    return Planned(
        *await registry.calls.plan_announce(_text(request, "name"), _text(request, "instance"), announcement, Caller(ip, token))
    )


def _generation(one: Generation) -> dict[str, Any]:
    return {
        "generation": one.number,
        "time": one.at,
        "by": list(one.by),
        "changes": [
            {
                "what": str(line.what),
                **listen_json(line.listen),
                "text": line.text,
            }
            for line in one.lines
        ],
    }


def _operator(registry: Registry) -> dict[str, Verb]:
    """The verbs of `pylb ctl` that say what the operator wants of servers and nodes."""

    async def admin(request: Mapping[str, Any]) -> dict[str, Any]:
        state = _text(request, "state")
        if state not in list(AdminState):
            raise Refused(Code.INVALID, f"state: {state[:40]!r} is none of {', '.join(AdminState)}")
        return {"lines": await registry.operator.set_admin(_text(request, "target"), AdminState(state), _seconds(request))}

    async def words(_request: Mapping[str, Any]) -> dict[str, Any]:
        found = await registry.operator.words()
        return {"words": [{"target": who, "word": _said(word), "until": word.until, "hits": hits} for who, word, hits in found]}

    async def weight(request: Mapping[str, Any]) -> dict[str, Any]:
        wanted = request.get("weight")
        if wanted is not None and not (type(wanted) is int and 0 <= wanted <= 256):
            raise Refused(Code.INVALID, "weight: 0-256 or null is needed")
        return {"lines": await registry.operator.set_weight(_text(request, "target"), wanted, _seconds(request))}

    return {"admin": admin, "weight": weight, "words": words}


def _sessions(registry: Registry, live: SessionControl) -> dict[str, Verb]:
    """The verbs about sessions, and those of `pylb ctl` that reset them."""

    async def sessions(request: Mapping[str, Any]) -> dict[str, Any]:
        if request.get("ended"):
            past = await ended(live, query_of(request, time.time(), MOST_ENDED))
            traces = [trace_json(one) for one in past.traces]
            answer = {"total": len(traces), "sessions": traces, "reach": reach_json(past.reach)}
        else:
            found = await living(live, query_of(request, time.time()))
            answer = {"total": found.matching, "sessions": [session_json(one) for one in found.sessions]}
        return answer if answer["sessions"] else answer | {"known": _is_known(registry, request.get("frontend"))}

    async def shutdown_session(request: Mapping[str, Any]) -> dict[str, Any]:
        found = the_session(_text(request, "session"), await live.sessions())
        if not await live.shutdown_session(parse_session_id(found.id)):
            raise Refused(Code.NOT_FOUND, f"session {found.id} has just ended", "`pylb sessions` shows who has one")
        return {"lines": [f"reset: session {found.id} of {Address(found.client, found.client_port)}"]}

    async def shutdown_sessions(request: Mapping[str, Any]) -> dict[str, Any]:
        target = _text(request, "target")
        found = {
            (one.listen, one.address): f"{one.frontend}/{one.server}"
            for one in await live.sessions()
            if one.address is not None and is_server(target, one.frontend, one.listen, one.server, one.address)
        }
        if not found:
            raise Refused(Code.NOT_FOUND, f"{target} has no sessions", "`pylb sessions` shows who has")
        counts = {name: await live.shutdown_sessions(listen, address) for (listen, address), name in found.items()}
        return {"lines": [f"reset: {counted(count, 'session')} of {name}" for name, count in counts.items()]}

    return {"sessions": sessions, "shutdown session": shutdown_session, "shutdown sessions": shutdown_sessions}


def _is_known(registry: Registry, frontend: object) -> bool:
    """Whether there is such a frontend now, if one was asked for."""
    return not frontend or any(
        frontend == one.name or one.listen.is_named(str(frontend)) for one in registry.table.frontends.values()
    )


def _seconds(request: Mapping[str, Any]) -> float | None:
    """`for` of a request. Raises Refused."""
    found = request.get("for")
    if found is not None and not (type(found) in (int, float) and 0 < found <= MOST_WORD):
        raise Refused(Code.INVALID, "for: seconds up to a year are needed")
    return found


def _said(word: Override) -> str:
    weight = None if word.weight is None else f"weight {word.weight}"
    if word.exempt and word.weight is None:
        return "serves although its node is taken out"
    return ", ".join(filter(None, (None if word.state is AdminState.READY else str(word.state), weight)))


def _address(registry: Registry, service: AppOperations) -> dict[str, Verb]:
    """Whether this machine is to have the floating address."""

    async def standby(request: Mapping[str, Any]) -> dict[str, Any]:
        seconds = _seconds(request) or STANDBY
        others = {} if request.get("force") is True else await service.peers_active()
        active = [name for name, why in others.items() if not why]
        if not active and request.get("force") is not True:
            raise _nobody_else(others)
        registry.standby.begin(seconds)
        counters = await service.counters()
        return {"seconds": seconds, "active": active, "sessions": counters.open_sessions}

    async def active(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"was_on_standby": registry.standby.end()}

    return {"standby": standby, "active": active}


def _nobody_else(others: Mapping[str, str]) -> Refused:
    if not others:
        detail, hint = "no other balancer is known that could have the address", "name them in admin.peers, or --force"
    else:
        said = "; ".join(f"{name}: {why}" for name, why in others.items())
        detail, hint = f"no other balancer says that it may have the address: {said}", "repair one first, or use --force"
    return Refused(Code.UNAVAILABLE, detail, f"{hint}; without one, clients would lose the address")


MOST_WORD = 366 * 86_400  # seconds
STANDBY = 3600.0  # seconds, unless the request says how long


def the_session(text: str, views: Sequence[SessionView]) -> SessionView:
    """The session with that id, or of that client's address if it has only one. Raises Refused."""
    try:
        found = named(text, views)
    except ValueError:
        raise Refused(Code.INVALID, f"{text[:60]!r} is neither a session's id nor IP:PORT of a client") from None
    if not found:
        raise Refused(Code.NOT_FOUND, f"no live session has the id or the client {text}", "`pylb sessions` shows all")
    if len(found) > 1:  # through two ports, or two clients behind proxies that name the same address
        ids = ", ".join(sorted(one.id for one in found))
        raise Refused(Code.INVALID, f"{text} has {len(found)} sessions", f"name one of them by its id: {ids}")
    return found[0]


async def _trace(live: SessionControl, text: str) -> dict[str, Any]:
    """Raises Refused."""
    try:
        number = parse_session_id(text)
    except ValueError as error:
        raise Refused(Code.INVALID, str(error), "`pylb sessions` and `pylb sessions --ended` show the ids") from None
    found = await live.trace(number)
    if found is None:
        hint = "only the last ones are kept: recorder.sessions" if live.recording else "recorder.sessions is 0 in the config"
        raise Refused(Code.NOT_FOUND, f"session {text} does not live, and is not among the recorded ones", hint)
    return trace_json(found)


def _text(request: Mapping[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise Refused(Code.INVALID, f"{key}: text is needed")
    return value


def _unicode(key: str, value: object) -> str:
    """JSON may contain half of a surrogate pair (RFC 8259, 8.2), which no file has. Raises Refused."""
    if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
        raise Refused(Code.INVALID, f"{key}: text in Unicode is needed")
    return value


def _path(request: Mapping[str, Any]) -> Path:
    text = _unicode("path", _text(request, "path"))
    if "\0" in text:
        raise Refused(Code.INVALID, "path: no file has such a name")
    return Path(text)


def _imported(item: Any) -> ImportedServer:
    """One body of the legacy route, which names its address. Raises Refused."""
    try:
        body = json.dumps(item).encode()
    except RecursionError:
        raise Refused(Code.INVALID, "an item is nested too deeply") from None
    call = parse_legacy(body)
    if call.address is None:
        raise Refused(Code.INVALID, f"port {call.port}: dst-ip is not an IP address")
    return ImportedServer(call.port, Address(call.address, call.target_port), call.name, call.send_proxy)
