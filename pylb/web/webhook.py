"""The webhook: the native registration API, whoami, and the legacy route (docs/protocol.md)."""

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pylb.control.calls import Calls
from pylb.control.views import FrontendOutcome, Outcome, RegistrationView
from pylb.core.address import Network, in_networks
from pylb.core.announcement import parse_native, parse_set, ports_named
from pylb.core.auth import ANYWHERE, STRONG, Caller, Interface, Keyring, Token
from pylb.core.errors import Code, Refused, break_cycles
from pylb.core.legacy import LegacyCall, parse_legacy
from pylb.core.policy import CallLimits
from pylb.core.registration import SEQUENCE, SET, Announcement, parse_sequence
from pylb.core.token_buckets import TokenBuckets
from pylb.web import openapi
from pylb.web.answers import LEGACY_NOT_FOUND, legacy_refusal, one_line, refusal
from pylb.web.client_address import bearer, caller_ip, network_of
from pylb.web.listener import HttpLimits
from pylb.web.types import Answer, Call, Handler, NoRoute, Router, json_answer, text_answer
from pylb.web.views import port_json

audit = logging.getLogger("pylb.audit")

LEGACY_PATH = "/hooks/update-haproxy"
LEGACY_HEADER = "x-funkypenguin-token"
# A legacy client without REPEAT_INTERVAL calls in a hot loop. Repeated calls are cheap, but limited: a client that calls every
# few seconds is never refused, and one in a loop cannot use up the calls of the others behind its address.
REPEAT_BURST, REPEAT_RATE = 30.0, 5.0
# Generous, because a whole cluster behind one NAT is one source, and a heartbeat that changes nothing costs one look into a
# dictionary. A call is refused here before its body is read.
BEATS, BEAT_RATE = 1000.0, 200.0
BODY = HttpLimits().body
SET_BODY = 256 * 1024  # of a set: 512 machines and 64 ports with checks
SETS_PATH, SET_SLASHES = "/v1/registrations/", 3
NOTE_BURST, NOTE_RATE = 5.0, 1 / 60  # log lines per source and kind of refusal
ALL_NOTES = 20  # times as many log lines for all sources together
ALL_SOURCES = 5  # a token may make so many times the calls of one source from all its sources together
# Wrong secrets that are short enough to be guessed: about a thousand tries a day from all sources together. The same secret
# again from the same source (a pod with a wrong token) does not count as a new guess.
GUESSES, GUESS_RATE = 100.0, 1 / 60
A_DAY = 86400.0
MOST_PROVEN = 4096


T = TypeVar("T")
V = TypeVar("V")


class Webhook:
    """The pages of one webhook listener, through `handler`. A reload may replace `trusted_proxies`."""

    def __init__(
        self,
        calls: Calls,
        keyring: Callable[[], Keyring],
        *,
        trusted_proxies: Sequence[Network] = (),
        legacy: Sequence[Network] = ANYWHERE,
        limits: CallLimits = CallLimits(),  # noqa: B008 - frozen
        log_beats: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._calls = calls
        self._keyring = keyring
        self._wall = wall
        self.trusted_proxies = trusted_proxies
        self._legacy_from = legacy  # networks that may use the legacy route; empty: it does not exist
        self._log_beats = log_beats
        self._repeats = TokenBuckets(REPEAT_BURST, REPEAT_RATE, clock)
        self._beats = TokenBuckets(BEATS, BEAT_RATE, clock)  # all calls of a token and source
        self._all_beats = TokenBuckets(ALL_SOURCES * BEATS, ALL_SOURCES * BEAT_RATE, clock)  # all calls of a token
        self._changes = TokenBuckets(limits.burst, limits.rate, clock)  # calls of a token and source that are not heartbeats
        self._all_changes = TokenBuckets(ALL_SOURCES * limits.burst, ALL_SOURCES * limits.rate, clock)  # of a token
        self._failures = TokenBuckets(limits.lockout, limits.lockout / 60, clock)  # calls of a source without a valid token
        self._guesses = TokenBuckets(GUESSES, GUESS_RATE, clock)
        self._guessed = TokenBuckets(1, 1 / A_DAY, clock)
        self._proven: OrderedDict[tuple[str, bytes], None] = OrderedDict()  # sources that have called with a valid short secret
        self._notes = TokenBuckets(NOTE_BURST, NOTE_RATE, clock)
        self._all_notes = TokenBuckets(ALL_NOTES * NOTE_BURST, ALL_NOTES * NOTE_RATE, clock)

    def handler(self) -> Handler:
        routes: dict[str, Handler] = {
            "PUT /v1/registrations/{}/{}": self._announce,
            "DELETE /v1/registrations/{}/{}": self._release,
            "PUT /v1/registrations/{}": self._announce_set,
            "DELETE /v1/registrations/{}": self._release_set,
            "GET /v1/registrations": self._own,
            "GET /v1/whoami": self._whoami,
            "GET /openapi.json": _openapi,
        }
        if self._legacy_from:
            routes[f"POST {LEGACY_PATH}"] = self._legacy
        router = Router(routes)

        async def answer(call: Call) -> Answer:
            try:
                try:
                    handler, args = router.find(call.method, call.path)
                except NoRoute as missing:
                    return self._no_route(call, missing)
                return await handler(replace(call, args=args))
            except Refused as refused:
                break_cycles(refused)
                return refusal(call.path, refused)

        return answer

    # ------------------------------------------------------------ native

    async def _announce(self, call: Call) -> Answer:
        caller = self._caller(call, bearer(call.headers), "native")
        name, instance = call.args
        return await self._announced(call, caller, name, instance, parse_native)

    async def _announce_set(self, call: Call) -> Answer:
        caller = self._caller(call, bearer(call.headers), "native")
        return await self._announced(call, caller, call.args[0], SET, parse_set)

    async def _announced(
        self, call: Call, caller: Caller, name: str, instance: str, parse: Callable[[bytes], Announcement]
    ) -> Answer:
        announcement = self._parsed(call, caller, parse)
        if (sequence := call.headers.get(SEQUENCE.lower())) is not None:
            announcement = replace(announcement, sequence=self._checked(call, caller, parse_sequence, sequence))
        if not self._calls.is_beat(name, instance, announcement, caller):
            self._count_change(call, caller)
        outcome = await self._calls.announce(name, instance, announcement, caller)
        self._audit(call, caller, outcome.result)
        return json_answer(201 if outcome.result == "created" else 200, outcome_json(outcome))

    async def _release(self, call: Call) -> Answer:
        caller = self._caller(call, bearer(call.headers), "native")
        name, instance = call.args
        return await self._released(call, caller, name, instance)

    async def _release_set(self, call: Call) -> Answer:
        caller = self._caller(call, bearer(call.headers), "native")
        return await self._released(call, caller, call.args[0], SET)

    async def _released(self, call: Call, caller: Caller, name: str, instance: str) -> Answer:
        self._count_change(call, caller)
        outcome = await self._calls.release(name, instance, caller)
        self._audit(call, caller, outcome.result)
        return json_answer(200, outcome_json(outcome))

    async def _own(self, call: Call) -> Answer:
        """What the caller's token has registered."""
        caller = self._caller(call, bearer(call.headers), "native")
        return json_answer(200, {"registrations": [_own_json(one) async for one in self._calls.own(caller)]})

    def long_body(self, call: Call) -> int:
        """How many bytes of a long body are read; `call` has none yet. Only sets need one, and only with a valid token."""
        is_set = call.method == "PUT" and call.path.startswith(SETS_PATH) and call.path.count("/") == SET_SLASHES
        return SET_BODY if is_set and self._keyring().find(bearer(call.headers)) is not None else 0

    async def _whoami(self, call: Call) -> Answer:
        """The caller's address (replaces ifconfig.co), and pylb's unix time. No token is needed."""
        return json_answer(200, {"address": self._ip(call), "time": round(self._wall(), 3)})

    # ------------------------------------------------------------ legacy

    async def _legacy(self, call: Call) -> Answer:
        caller = self._legacy_caller(call)
        said = self._parsed(call, caller, _parse_legacy)
        if not self._calls.is_legacy_beat(said, caller):
            self._count_change(call, caller)
        line = one_line(await self._calls.legacy(said, caller))
        self._audit(call, caller, line.partition(":")[0])
        return text_answer(200, line + "\n")

    def _legacy_caller(self, call: Call) -> Caller:
        if not in_networks(ip := self._ip(call), self._legacy_from):
            refused = Refused(Code.SOURCE_FORBIDDEN, f"the legacy route is closed for {ip}", "use the new phone-home")
            raise self._note(call, ip, "", refused)
        return self._caller(call, call.headers.get(LEGACY_HEADER, "").strip(), "legacy")

    # ------------------------------------------------------------ both

    def _caller(self, call: Call, secret: str, at: Interface) -> Caller:
        """The caller with a valid token. Raises Refused: UNAUTHORIZED, always in the same words, or TOO_MANY.

        A caller with a valid token is served whatever others do from its address; only its own calls count against it.
        """
        ip = self._ip(call)
        source = network_of(ip)
        token = self._keyring().find(secret, at)
        if at == "legacy" and 0 < len(secret) < STRONG:
            token = self._unless_guessed(call, secret, ip, token)
        if token is None:
            refused = Refused(Code.UNAUTHORIZED, "the call carries no valid token", _HINT)
            if wait := self._failures.take(source):
                refused = _too_many("too many calls without a valid token", _HINT, wait)
            raise self._note(call, ip, "", refused)
        if wait := self._repeats.take((token.name, source, call.method, call.path, hash(call.body))):
            hint = "set REPEAT_INTERVAL in the container" if at == "legacy" else "call once per third of the TTL"
            raise self._note(call, ip, token.name, _too_many("the same call was repeated too often", hint, wait))
        if wait := self._beats.take((token.name, source)) or self._all_beats.take(token.name):
            raise self._note(call, ip, token.name, _too_many("too many calls with this token", "call less often", wait))
        self._calls.note_use(token, secret)
        return Caller(ip, token, at)

    def _count_change(self, call: Call, caller: Caller) -> None:
        """Count a call that is not a heartbeat. Raises Refused."""
        name, source = caller.token.name, network_of(caller.ip)
        if wait := self._changes.take((name, source)) or self._all_changes.take(name):
            raise self._note(call, caller.ip, name, _too_many("too many changes with this token", "call less often", wait))

    def _unless_guessed(self, call: Call, secret: str, ip: str, token: Token | None) -> Token | None:
        """`token`, which was found by a short secret. After too many wrong guesses this raises Refused for right and wrong
        secrets alike, but not for a source that has called with this secret before."""
        source, wait = network_of(ip), self._guesses.wait("")
        proven = token is not None and (token.name, source) in self._proven
        if wait and not proven:
            raise self._note(call, ip, "", _too_many("too many calls without a valid token", _HINT, wait))
        if token is not None:
            self._proven[token.name, source] = None
            self._proven.move_to_end((token.name, source))
            if len(self._proven) > MOST_PROVEN:
                self._proven.popitem(last=False)
        elif self._guessed.take((source, hash(secret))) == 0:
            self._guesses.take("")
        return token

    def _audit(self, call: Call, caller: Caller, result: str) -> None:
        if self._log_beats or result != "unchanged":
            what = f"{call.method} {call.path[:160]}"
            audit.info("accepted %s from %s with token %r: %s", what, caller.ip, caller.token.name, result)

    def _ip(self, call: Call) -> str:
        return caller_ip(call.peer, call.headers, self.trusted_proxies)

    def _no_route(self, call: Call, missing: NoRoute) -> Answer:
        if self._legacy_from and call.path == LEGACY_PATH:
            # As in the original webhook: a caller without a token learns nothing else.
            self._legacy_caller(call)
            return legacy_refusal(Refused(Code.METHOD, "the hook accepts only POST"), Allow="POST")
        if missing.allow:
            wrong_method = Refused(Code.METHOD, f"this path does not accept {call.method}")
            return refusal(call.path, wrong_method, Allow=", ".join(missing.allow))
        if call.path.startswith("/hooks/"):
            return text_answer(404, LEGACY_NOT_FOUND)
        return refusal(call.path, Refused(Code.NOT_FOUND, "there is nothing at this path"))

    def _parsed(self, call: Call, caller: Caller, parse: Callable[[bytes], T]) -> T:
        return self._checked(call, caller, parse, call.body)

    def _checked(self, call: Call, caller: Caller, parse: Callable[[V], T], value: V) -> T:
        try:
            return parse(value)
        except Refused as refused:
            raise self._note(call, caller.ip, caller.token.name, refused) from None

    def _note(self, call: Call, ip: str, token: str, refused: Refused) -> Refused:
        """Log a call that is refused before the registry sees it, but not a flood of them. Returns `refused`."""
        tell = self._notes.take((network_of(ip), refused.code)) == 0 and self._all_notes.take(refused.code) == 0
        ports = ports_named(call.body) if tell else ()
        name = call.args[0] if call.args else ""
        what = f"{call.method} {call.path[:160]}"
        self._calls.reject(refused, ip, token, what, name=name[:64], ports=ports, tell=tell)
        return refused


_HINT = f"send a token of pylb's config, of at least {STRONG} characters, as Authorization: Bearer TOKEN"


def _too_many(detail: str, hint: str, wait: float) -> Refused:
    return Refused(Code.TOO_MANY, detail, hint, retry_after=wait)


async def _openapi(_call: Call) -> Answer:
    return Answer(200, openapi.rendered())


def _parse_legacy(body: bytes) -> LegacyCall:
    """Parse a legacy body. Over 4 KiB is allowed only if dst-ip holds an HTML page, which its client cannot help.

    Raises Refused.
    """
    too_large = Refused(Code.TOO_LARGE, f"the body is over {BODY} bytes")
    if len(body) > BODY and _is_json(body):
        raise too_large
    try:
        return parse_legacy(body)
    except Refused as refused:
        # Not a legacy call without the page either, so its size is what is wrong.
        raise too_large if len(body) > BODY and refused.code is Code.INVALID_JSON else refused from None


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    body: dict[str, Any] = {"result": outcome.result, "generation": outcome.generation, "durable": outcome.durable}
    if outcome.result != "released":
        body["lease"] = {"ttl": _whole(outcome.ttl), "expires_in": _whole(outcome.expires_in)}
    body["frontends"] = [_frontend_json(frontend) for frontend in outcome.frontends]
    if outcome.note:
        body["note"] = outcome.note
    return body


def _frontend_json(frontend: FrontendOutcome) -> dict[str, Any]:
    port = port_json(frontend.port, frontend.protocol, frontend.last, frontend.server_name)
    if frontend.servers is not None:
        count, answering = frontend.servers
        found = {**port, "target_port": frontend.target_port, "servers": count, "answering": answering}
        return found | {"hint": frontend.hint} if frontend.hint else found
    body: dict[str, Any] = {
        **port,
        "address": frontend.address,
        "target_port": frontend.target_port,
        "reachable": frontend.reachable,
    }
    return body | {"hint": frontend.hint} if frontend.hint else body


def _own_json(one: RegistrationView) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": one.name,
        "instance": one.instance or None,  # null: a set, or a legacy one
        "legacy": one.legacy,
        "state": one.state,
        "lease": {"ttl": _whole(one.ttl), "expires_in": _whole(one.expires_in)},
        "frontends": [
            {**port_json(item.port, item.protocol, item.last), "target_port": item.target_port} for item in one.frontends
        ],
    }
    if one.members:
        body["servers"] = len(one.members)
    return body if one.sequence is None else body | {"sequence": one.sequence}


def _whole(seconds: float | None) -> float | int | None:
    """A whole number as int, so that JSON has 60 instead of 60.0."""
    if seconds is None:
        return None
    rounded = round(seconds, 1)
    return int(rounded) if rounded.is_integer() else rounded
