"""The strict parser of native announcements: from the body of a call to what it asks for.

The pydantic models are the bodies of `PUT /v1/registrations/{name}/{instance}`, and of `PUT /v1/registrations/{name}` for a
set. They are the source of their schema.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pylb.core.address import TCP, UDP, PortKey, port_text
from pylb.core.checks import HEALTH_SCHEMA, BadCheck, parse_health
from pylb.core.errors import Code, Refused
from pylb.core.policy import UNSAID, HealthOverride, ProxyProtocol
from pylb.core.port_field import PortField, ends
from pylb.core.registration import MOST_TTL, Announcement, FrontendRequest, check_name
from pylb.core.server_names import parse_server_name
from pylb.core.server_set import MOST_MEMBERS, MOST_RULES, MOST_SERVERS, NO_TERMS, Terms, parse_access
from pylb.core.strict_json import strict_json
from pylb.core.text import whole_number

_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
MOST_ROUTES = 64  # of a call: as many as it may have frontends, one for each server name
MOST_PORTS = 1024  # in all ranges of a call
CONNECT_TO_UDP = "a connect or an HTTP request says nothing of a UDP port"
UDP_CHECKS = (
    "{send: TEXT, expect: TEXT} over UDP, or a port of TCP: {http: /healthz, port: 10256} is kube-proxy's behind a NodePort"
)
_PORTS = 'a number, or a range such as "20000-20099"; a port of UDP has "protocol": "udp" beside it'


class FrontendBody(BaseModel):
    model_config = _STRICT

    port: PortField = Field(description='the port pylb listens on, or a range: "20000-20099"')
    target_port: PortField = Field(
        description="the server's port, usually the Service's NodePort; of a range as many, or one for all"
    )
    protocol: Literal["tcp", "udp"] = Field("tcp", description="443 of TCP and 443 of UDP are two ports")
    server_names: list[str] | None = Field(
        None,
        min_length=1,
        max_length=MOST_ROUTES,
        description="only clients that ask for one of these names by TLS (SNI): `git.example.net`, `*.example.net` for one "
        "label, `**.example.net` for one or more; null: the default route, all other clients of the port",
    )
    names: Literal["allowed"] | None = Field(
        None,
        description="of a default route: others may have routes by server name on its port; then its clients wait until they "
        "have said a name, so it is not for servers that speak first",
    )
    proxy_protocol: Literal["none", "v1", "v2"] | None = Field(None, description="PROXY header sent to the server")
    weight: int = Field(1, ge=1, le=256)
    backup: bool = Field(False, description="used only while no other server is")
    health: Any = Field(  # `parse_health` checks it, and its messages name the key
        None,
        description="how the server is checked: `tcp`, `{http, method, expect, host, port}`, `{send, expect, port}` or "
        "`{steps: [{send, expect}, …], port}`; with `when_all_down: refuse` it serves only while it passes",
        json_schema_extra=dict(HEALTH_SCHEMA),
    )


class AnnouncementBody(BaseModel):
    model_config = _STRICT

    frontends: list[FrontendBody] = Field(min_length=1, max_length=MOST_ROUTES)
    address: str | None = Field(None, description="an IP the token may name; null: the calling address")
    ttl: int | None = Field(60, description="seconds until a silent registration is stale; null: never")
    state: Literal["ready", "draining"] = "ready"


class MemberBody(BaseModel):
    model_config = _STRICT

    instance: str = Field(description="the label of its servers, such as the node's name")
    address: str = Field(description="an IP the token may name")
    weight: int | None = Field(None, ge=1, le=256, description="null: the frontend's")


class SetBody(BaseModel):
    model_config = _STRICT

    frontends: list[FrontendBody] = Field(min_length=1, max_length=64)
    servers: list[MemberBody] = Field(
        min_length=1, max_length=MOST_MEMBERS, description="each has a server for every frontend; they replace those of before"
    )
    access: list[dict[Literal["allow", "deny"], str]] = Field(
        default=[],
        max_length=MOST_RULES,
        description="who may connect to the ports that it opens: `[{allow: CIDR}, {deny: CIDR}]`, as far as the operator "
        "lets them",
    )
    idle_timeout: int | None = Field(
        None, ge=1, le=MOST_TTL, description="seconds until a silent session of these ports is ended; null: the operator's"
    )
    ttl: int | None = Field(60, description="seconds until a silent registration is stale; null: never")
    state: Literal["ready", "draining"] = "ready"


def parse_native(body: bytes) -> Announcement:
    """Raises Refused: INVALID_JSON, or INVALID naming the field."""
    parsed = _validated(AnnouncementBody, body)
    return Announcement(_all_wanted(parsed.frontends), parsed.address, _seconds(parsed.ttl), parsed.state == "draining")


def parse_set(body: bytes) -> Announcement:
    """Parse the body of a set. Raises Refused as `parse_native`."""
    parsed = _validated(SetBody, body)
    wanted = _all_wanted(parsed.frontends)
    if (count := sum(len(item.ports) for item in wanted) * len(parsed.servers)) > MOST_SERVERS:
        detail = f"servers: {count} in all, for each port as many as machines, and a set may have {MOST_SERVERS}"
        raise Refused(Code.INVALID, detail, "make several registrations of it")
    seen: set[str] = set()
    for index, one in enumerate(parsed.servers):
        if one.instance in seen:
            detail = f"servers[{index}].instance: {one.instance[:40]!r} appears twice"
            raise Refused(Code.INVALID, detail, "one entry per machine")
        seen.add(check_name(f"servers[{index}].instance:", one.instance))
    terms = Terms(parse_access(parsed.access), _seconds(parsed.idle_timeout))
    if terms.access and any(item.server_name or item.allows_names for item in wanted):
        detail = "access: on a port with routes by server name it would be for all of them, also those of others"
        raise Refused(Code.INVALID, detail, "leave out access, or server_names and names")
    members = tuple((one.instance, one.address, one.weight) for one in parsed.servers)
    draining = parsed.state == "draining"
    return Announcement(wanted, None, _seconds(parsed.ttl), draining, members, terms if terms != NO_TERMS else NO_TERMS)


B = TypeVar("B", bound=BaseModel)


def _validated(model: type[B], body: bytes) -> B:
    data = strict_json(body)
    if not isinstance(data, dict):
        raise Refused(Code.INVALID, "the body is not a JSON object", 'as in {"frontends": [{"port": 443, …}]}')
    try:
        return model.model_validate(data)
    except ValidationError as error:
        # The misspelt key explains the missing one next to it.
        found = error.errors(include_url=False, include_context=True)
        raise _readable(next((one for one in found if one["type"] == "extra_forbidden"), found[0]), model) from None


def _all_wanted(frontends: list[FrontendBody]) -> tuple[FrontendRequest, ...]:
    by_index = [(index, one) for index, item in enumerate(frontends) for one in _wanted(index, item)]
    wanted = tuple(one for _, one in by_index)
    if len(wanted) > MOST_ROUTES:
        detail = f"frontends: {len(wanted)} ports and names in all, and a call may have {MOST_ROUTES}"
        raise Refused(Code.INVALID, detail, "several registrations")
    if (count := sum(len(item.ports) for item in wanted)) > MOST_PORTS:
        raise Refused(
            Code.INVALID, f"frontends: {count} ports in all, and a call may have {MOST_PORTS}", "several registrations"
        )
    _none_twice(by_index)
    _all_wait_or_none(wanted)
    return wanted


def _seconds(ttl: int | None) -> float | None:
    """Check before it becomes a float, which cannot hold an int of 400 digits. `check_ttl` knows the operator's bounds."""
    if ttl is not None and not 1 <= ttl <= MOST_TTL:
        raise Refused(Code.INVALID, f"ttl: not within 1-{MOST_TTL} seconds", "or null, for never stale")
    return None if ttl is None else float(ttl)


def _wanted(index: int, item: FrontendBody) -> Iterator[FrontendRequest]:
    """One for each server name."""
    send = None if item.proxy_protocol is None else ProxyProtocol(item.proxy_protocol)
    try:
        health = UNSAID if item.health is None else parse_health(item.health)
    except BadCheck as bad:
        raise Refused(Code.INVALID, f"frontends[{index}].health: {bad}", bad.hint) from None
    if item.protocol == UDP:
        _check_udp(index, item, send, health)
    (port, last), (target_port, target_last) = ends(item.port), ends(item.target_port)
    if target_last and target_last - target_port != last - port:
        hint = "as many target ports as ports, or one for all of them"
        raise Refused(Code.INVALID, f"frontends[{index}].target_port: not a range of the same length as port", hint)
    one = FrontendRequest(
        port, target_port, send, item.weight, item.backup, health, item.protocol, last=last, target_last=target_last
    )
    for server_name in _server_names(index, item, one):
        yield replace(one, server_name=server_name, allows_names=item.names is not None)


def _check_udp(index: int, item: FrontendBody, send: ProxyProtocol | None, health: HealthOverride) -> None:
    """Raises Refused: a setting that has no meaning for UDP."""
    for key in ("server_names", "names"):
        if getattr(item, key) is not None:
            raise Refused(Code.INVALID, f"frontends[{index}].{key}: names are read from TLS over TCP", "leave it out")
    if send is ProxyProtocol.V1:
        raise Refused(Code.INVALID, f"frontends[{index}].proxy_protocol: version 1 cannot describe UDP", "v2, or none")
    if health.check is not None and not (health.check.suits_udp or health.port):
        raise Refused(Code.INVALID, f"frontends[{index}].health: {CONNECT_TO_UDP}", UDP_CHECKS)


def _server_names(index: int, item: FrontendBody, one: FrontendRequest) -> list[str]:
    """ "" alone: the default route."""
    field = "names" if item.server_names is None else "server_names"
    if one.last and (item.server_names or item.names):
        raise Refused(Code.INVALID, f"frontends[{index}].{field}: a range of ports has no routes", "one port for each entry")
    if item.server_names is None:
        return [""]
    if item.names is not None:
        detail = f"frontends[{index}].names: it is about a default route, and this one has server_names"
        raise Refused(Code.INVALID, detail, "leave one of the two out")
    found = []
    for number, text in enumerate(item.server_names):
        try:
            found.append(parse_server_name(text))
        except ValueError as error:
            raise Refused(Code.INVALID, f"frontends[{index}].server_names[{number}]: {error}") from None
    return found


def _none_twice(wanted: list[tuple[int, FrontendRequest]]) -> None:
    seen: set[tuple[PortKey, str]] = set()
    for index, item in wanted:
        for port in item.ports:
            if (key := ((item.protocol, port), item.server_name)) not in seen:
                seen.add(key)
                continue
            text = port_text(port, item.protocol)
            if item.server_name:
                detail = f"frontends[{index}].server_names: {item.server_name} appears twice on port {text}"
                raise Refused(Code.INVALID, detail, "one entry per name")
            raise Refused(Code.INVALID, f"frontends[{index}].port: {text} appears twice", "one entry per port")


def _all_wait_or_none(wanted: tuple[FrontendRequest, ...]) -> None:
    """The default route of a port on which the same call has names must say that its clients may wait."""
    with_names = {item.port_key for item in wanted if item.server_name}
    for item in wanted:
        waits = item.server_name or item.allows_names
        if waits or not any((item.protocol, port) in with_names for port in item.ports):
            continue
        detail = (
            f"frontends: port {item.port_text} has server_names, so the clients of its default route have to wait for a hello"
        )
        hint = "one port for each entry" if item.last else 'say `"names": "allowed"` for the default route'
        raise Refused(Code.INVALID, detail, hint)


def ports_named(body: bytes) -> list[PortKey]:
    """The frontend ports that a refused body of either protocol names, as far as it can be read."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(data, dict):
        return []
    frontends = data.get("frontends")
    entries = [one for one in frontends if isinstance(one, dict)] if isinstance(frontends, list) else []
    said = [(UDP if one.get("protocol") == UDP else TCP, one.get("port")) for one in entries]
    texts = ((protocol, str(port)[:6]) for protocol, port in (*said, (TCP, data.get("frontend-port"))))
    return [(protocol, port) for protocol, text in texts if (port := whole_number(text, 65535))]


def _readable(error: ErrorDetails, body: type[BaseModel]) -> Refused:
    place = _place(error["loc"])
    if error["type"] == "extra_forbidden":
        key = str(error["loc"][-1])
        model = body if len(error["loc"]) == 1 else MemberBody if error["loc"][0] == "servers" else FrontendBody
        near = get_close_matches(key, model.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(model.model_fields)
        return Refused(Code.INVALID, f"{place[:80]}: unknown key", hint)
    if error["type"] == "missing":
        return Refused(Code.INVALID, f"{place}: missing")
    given = repr(error["input"])
    shown = given if len(given) <= 40 else given[:40] + "…"
    hint = _PORTS if error["loc"][-1] in ("port", "target_port") else ""
    return Refused(Code.INVALID, f"{place}: {error['msg'][0].lower()}{error['msg'][1:]}, not {shown}", hint)


def _place(loc: tuple[int | str, ...]) -> str:
    """`("frontends", 0, "port")` -> `frontends[0].port`"""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
