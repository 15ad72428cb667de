"""The description of the webhook's API (OpenAPI 3.1), generated from the models that check the calls."""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from pylb import __version__
from pylb.core.announcement import AnnouncementBody, SetBody
from pylb.core.errors import Code
from pylb.core.registration import MOST_SEQUENCE, SEQUENCE
from pylb.web.answers import STATUS

# What each code means and what the caller can do about it, for the document and for docs/protocol.md.
MEANINGS: dict[Code, tuple[str, str]] = {
    Code.INVALID_JSON: ("the body is not JSON, or contains a key twice", "send one JSON object in UTF-8"),
    Code.INVALID: ("a field is missing, unknown or out of range", "the detail names the field"),
    Code.UNAUTHORIZED: ("the call carries no valid token", "Authorization: Bearer TOKEN, as `pylb token create` printed it"),
    Code.SOURCE_FORBIDDEN: ("the token may not be used from this address", "widen its `sources`, or call from one of them"),
    Code.NAME_FORBIDDEN: ("the token may not register this name", "use one of its names, or widen its `names`"),
    Code.PORT_FORBIDDEN: ("the token may not open this port, or pylb itself uses it", "use another port, or widen its `ports`"),
    Code.TARGET_FORBIDDEN: ("outside the token's `targets` or `target_ports`", "leave `address` out, or widen them"),
    Code.TARGET_REFUSED: ("the address can never be a target: link-local, a loop, …", "call from the node itself"),
    Code.PORT_OWNED: ("another registration has the port; the detail says whose", "release it there, or use `takeover`"),
    Code.PORT_IN_USE: ("another process on the machine has the port", "`ss -ltnp` shows which"),
    Code.PORT_PRIVILEGED: ("pylb may not open ports below 1024", "start it with its systemd unit"),
    Code.CANNOT_BIND: ("the kernel refused the port", "the detail says why"),
    Code.NOT_FOUND: ("there is nothing at this path", "see this document"),
    Code.METHOD: ("the path does not accept this method", "the header Allow lists those that it accepts"),
    Code.TOO_LARGE: ("the body is over 4 KiB, or 256 KiB of a set", "register fewer ports in one call"),
    Code.LENGTH_REQUIRED: ("the body is chunked", "send a Content-Length"),
    Code.MEDIA_TYPE: ("the body is compressed", "send it uncompressed"),
    Code.TIMEOUT: ("the request was not complete in time", "call again"),
    Code.TOO_MANY: ("too many calls with this token, or without a valid one", "wait as long as Retry-After says"),
    Code.STATE_NOT_WRITABLE: ("pylb cannot write to its disk and accepts nothing new", "free or repair the disk; call again"),
    Code.STORE_UNAVAILABLE: ("etcd cannot be reached, and a new name or port needs it", "repair etcd; call again"),
    Code.UNAVAILABLE: ("pylb is stopping or starting", "call again after the time in Retry-After"),
}


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Placed(_Answer):
    """One port, and where its connections go."""

    port: int = Field(description="of a range, its first")
    last_port: int = Field(0, description="only of a range")
    server_name: str = Field("", description="only of a route by server name")
    protocol: Literal["tcp", "udp"] = Field("tcp", description="only of UDP")
    address: str
    target_port: int
    reachable: Literal["yes", "refused", "timeout", "unreachable", "unknown"] = Field(
        description="the result of one connect to the target; the registration is in force either way. UDP: `refused` if an "
        "empty datagram was refused, else mostly `unknown`"
    )
    hint: str = Field("", description="what this result usually means")


class PlacedSet(_Answer):
    """One port of a set."""

    port: int = Field(description="of a range, its first")
    last_port: int = Field(0, description="only of a range")
    target_port: int
    servers: int
    answering: int | None = Field(
        description="how many of them accepted the last connect, as far as they were asked before the answer; null of a range, "
        "which nobody asks"
    )
    hint: str = Field("", description="if none did: what the answer of most of them usually means")


class Lease(_Answer):
    ttl: float | None = Field(description="seconds; null: the lease never ends")
    expires_in: float | None = Field(description="seconds")


class Registered(_Answer):
    """The registration is in force, and on disk too unless `durable` is false."""

    result: Literal["created", "unchanged", "moved", "updated", "superseded"]
    generation: int = Field(description="the generation of the table")
    durable: bool
    lease: Lease
    frontends: list[Placed]
    note: str = ""


class OwnFrontend(_Answer):
    port: int = Field(description="of a range, its first")
    last_port: int = Field(0, description="only of a range")
    target_port: int


class RegisteredSet(Registered):
    frontends: list[PlacedSet]  # type: ignore[assignment]


class OwnRegistration(_Answer):
    name: str
    instance: str | None = Field(description="null: a set, or a legacy registration")
    legacy: bool
    state: Literal["fresh", "stale", "draining"]
    lease: Lease
    frontends: list[OwnFrontend]
    servers: int | None = Field(None, description="of a set: how many machines it has")
    sequence: int | None = Field(None, description="its Pylb-Sequence, if its call had one")


class OwnRegistrations(_Answer):
    registrations: list[OwnRegistration]


class Released(_Answer):
    result: Literal["released"]
    generation: int
    durable: bool
    frontends: list[Placed] = Field(max_length=0)
    note: str = ""


class WhoAmI(_Answer):
    address: str = Field(description="the caller's address, as pylb sees it")
    time: float = Field(description="unix time")


class Refusal(_Answer):
    """A call that was refused. It has changed nothing."""

    error: Code | Literal["bad_request", "internal"]
    detail: str
    hint: str = ""
    port: str = Field("", description="the frontend port that the refusal is about, if it is one")


_SETS = "/v1/registrations"
_NATIVE = "/v1/registrations/{name}/{instance}"
_AUTHENTICATED = (401, 403, 408, 413, 429)
_CHANGING = (400, *_AUTHENTICATED, 409, 411, 415, 422, 503)


def document() -> dict[str, Any]:
    models = (
        *(AnnouncementBody, SetBody),
        *(Registered, RegisteredSet, OwnRegistrations, Released, WhoAmI, Refusal),
    )
    _, schemas = models_json_schema([(one, "validation") for one in models], ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pylb",
            "version": __version__,
            "summary": "Register apps for ports of this machine, and say where their connections go.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            _NATIVE: {"parameters": [_segment("name"), _segment("instance")], "put": _put(), "delete": _delete()},
            f"{_SETS}/{{name}}": {"parameters": [_segment("name")], "put": _put_set(), "delete": _delete("releaseSet")},
            _SETS: {"get": _own()},
            "/v1/whoami": {"get": _whoami()},
            "/openapi.json": {"get": _itself()},
        },
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


@cache
def rendered() -> bytes:
    return json.dumps(document(), indent=1).encode() + b"\n"


def _put() -> dict[str, Any]:
    return {
        "operationId": "register",
        "summary": "Register, renew the lease, move, or announce a pause",
        "description": "All its ports change at once. Repeating the call renews the lease: do so every third of the TTL.",
        **_registers("AnnouncementBody", "Registered"),
    }


def _put_set() -> dict[str, Any]:
    return {
        "operationId": "registerSet",
        "summary": "Register a set: one registration with servers on many machines",
        "description": "The call says all of its servers, and those it does not name leave. Ports and servers change at once.",
        **_registers("SetBody", "RegisteredSet"),
    }


def _registers(body: str, answer: str) -> dict[str, Any]:
    return {
        "security": [{"token": []}],
        "parameters": [_sequence()],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(body)}}},
        "responses": {
            "201": _response("The registration is new.", answer),
            "200": _response("A heartbeat, a move, or a change; `superseded`: a newer state is registered.", answer),
            **_refusals(_CHANGING),
        },
    }


def _sequence() -> dict[str, Any]:
    text = "the number of this state; a call with a lower one changes nothing while the lease of the higher one is fresh"
    schema = {"type": "integer", "minimum": 0, "maximum": MOST_SEQUENCE}
    return {"name": SEQUENCE, "in": "header", "description": text, "schema": schema}


def _own() -> dict[str, Any]:
    return {
        "operationId": "own",
        "summary": "What the caller's token has registered",
        "security": [{"token": []}],
        "responses": {"200": _response("All registrations of the token.", "OwnRegistrations"), **_refusals(_AUTHENTICATED)},
    }


def _delete(name: str = "release") -> dict[str, Any]:
    return {
        "operationId": name,
        "summary": "Release. A repeated call succeeds, too.",
        "security": [{"token": []}],
        "responses": {
            "200": _response("Nothing is registered under this name any more.", "Released"),
            **_refusals((*_CHANGING,)),
        },
    }


def _whoami() -> dict[str, Any]:
    return {
        "operationId": "whoami",
        "summary": "The address that pylb sees",
        "responses": {"200": _response("No token is needed.", "WhoAmI"), **_refusals((400, 408, 422))},
    }


def _itself() -> dict[str, Any]:
    content = {"application/json": {"schema": {"type": "object"}}}
    answers = {"200": {"description": "This document.", "content": content}, **_refusals((400, 408))}
    return {"operationId": "openapi", "summary": "This document", "responses": answers}


def _segment(name: str) -> dict[str, Any]:
    pattern = "^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
    schema = {"type": "string", "pattern": pattern, "minLength": 1, "maxLength": 253}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _ref(model: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model}"}


def _response(description: str, model: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ref(model)}}}


def _refusals(statuses: Iterable[int]) -> dict[str, Any]:
    found = {}
    for status in statuses:
        codes = [code for code, its in STATUS.items() if its == status]
        text = "; ".join(f"`{code}`: {MEANINGS[code][0]}" for code in codes)
        found[str(status)] = _response(text or "not HTTP", "Refusal")
    return found
