"""The webhook: the native registration API, whoami, and the legacy route. Shapes: design.md 7, legacy-protocol.md."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

from pylb.control.registry import Registry
from pylb.control.views import FrontendOutcome, Outcome
from pylb.core.address import Network
from pylb.core.auth import STRONG, Caller, Keyring
from pylb.core.errors import Code, Refused
from pylb.core.legacy import LegacyCall, parse_legacy
from pylb.core.registration import parse_native
from pylb.web.answers import LEGACY_NOT_FOUND, legacy_refusal, one_line, refusal
from pylb.web.call import Answer, Call, Handler, NoRoute, Router, json_answer, text_answer
from pylb.web.limit import Buckets
from pylb.web.listener import Limits
from pylb.web.source import bearer, caller_ip

LEGACY_PATH = "/hooks/update-haproxy"
LEGACY_HEADER = "x-funkypenguin-token"
# A client without REPEAT_INTERVAL calls in a hot loop. The same call again is cheap, but not for ever: one that beats
# every few seconds is never refused, one in a loop gets 20 answers a second.
REPEAT_BURST, REPEAT_RATE = 100.0, 20.0
BODY = Limits().body
NOTE_BURST, NOTE_RATE = 5.0, 1 / 60  # per source and kind of refusal


T = TypeVar("T")


class Webhook:
    """Answers for all webhook listeners; each takes its own `handler`. `trusted_proxies` may be replaced at a reload."""

    def __init__(
        self,
        registry: Registry,
        keyring: Callable[[], Keyring],
        *,
        trusted_proxies: Sequence[Network] = (),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._keyring = keyring
        self._wall = wall
        self.trusted_proxies = trusted_proxies
        self._repeats = Buckets(REPEAT_BURST, REPEAT_RATE, clock)
        self._notes = Buckets(NOTE_BURST, NOTE_RATE, clock)

    def handler(self, *, legacy: bool) -> Handler:
        """What a listener serves; without `legacy` its `/hooks/` paths are unknown."""
        routes: dict[str, Handler] = {
            "PUT /v1/registrations/{}/{}": self._announce,
            "DELETE /v1/registrations/{}/{}": self._release,
            "GET /v1/whoami": self._whoami,
        }
        if legacy:
            routes[f"POST {LEGACY_PATH}"] = self._legacy
        router = Router(routes)

        async def answer(call: Call) -> Answer:
            try:
                try:
                    handler, args = router.find(call.method, call.path)
                except NoRoute as missing:
                    return self._no_route(call, missing, legacy=legacy)
                return await handler(replace(call, args=args))
            except Refused as refused:
                return refusal(call.path, refused)

        return answer

    # ------------------------------------------------------------ native

    async def _announce(self, call: Call) -> Answer:
        caller = self._caller(call, bearer(call.headers), "native")
        name, instance = call.args
        announcement = self._parsed(call, caller, parse_native)
        outcome = await self._registry.announce(name, instance, announcement, caller)
        return json_answer(201 if outcome.result == "created" else 200, outcome_json(outcome))

    async def _release(self, call: Call) -> Answer:
        caller = self._caller(call, bearer(call.headers), "native")
        name, instance = call.args
        return json_answer(200, outcome_json(await self._registry.release(name, instance, caller)))

    async def _whoami(self, call: Call) -> Answer:
        """The address pylb sees (replaces ifconfig.co) and its unix time; no token, it tells the caller about itself."""
        return json_answer(200, {"address": self._ip(call), "time": round(self._wall(), 3)})

    # ------------------------------------------------------------ legacy

    async def _legacy(self, call: Call) -> Answer:
        caller = self._legacy_caller(call)
        said = self._parsed(call, caller, _parse_legacy)
        if wait := self._repeats.take((caller.token.name, caller.ip, said)):
            hint = "set REPEAT_INTERVAL in the container"
            raise Refused(Code.TOO_MANY, "the same call again and again", hint, retry_after=wait)
        return text_answer(200, one_line(await self._registry.legacy(said, caller)) + "\n")

    def _legacy_caller(self, call: Call) -> Caller:
        return self._caller(call, call.headers.get(LEGACY_HEADER, "").strip(), "legacy")

    # ------------------------------------------------------------ both

    def _caller(self, call: Call, secret: str, at: Literal["native", "legacy"]) -> Caller:
        """Raises Refused UNAUTHORIZED. Short secrets are for the legacy route alone."""
        ip = self._ip(call)
        token = self._keyring().find(secret, weak=at == "legacy")
        if token is None:
            hint = f"a token of at least {STRONG} characters as in pylb's config: Authorization: Bearer TOKEN"
            detail = "the token is not known here" if secret else "the call carries no token"
            refused = Refused(Code.UNAUTHORIZED, detail, hint)
            self._note(call, ip, "", refused)
            raise refused
        return Caller(ip, token, at)

    def _ip(self, call: Call) -> str:
        return caller_ip(call.peer, call.headers, self.trusted_proxies)

    def _no_route(self, call: Call, missing: NoRoute, *, legacy: bool) -> Answer:
        if legacy and call.path == LEGACY_PATH:
            # As the original: whoever cannot show a token learns nothing else.
            self._legacy_caller(call)
            return legacy_refusal(Refused(Code.METHOD, "the hook takes POST"), Allow="POST")
        if missing.allow:
            wrong_method = Refused(Code.METHOD, f"{call.method} is not for this path")
            return refusal(call.path, wrong_method, Allow=", ".join(missing.allow))
        if call.path.startswith("/hooks/"):
            return text_answer(404, LEGACY_NOT_FOUND)
        return refusal(call.path, Refused(Code.NOT_FOUND, "there is nothing at this path"))

    def _parsed(self, call: Call, caller: Caller, parse: Callable[[bytes], T]) -> T:
        try:
            return parse(call.body)
        except Refused as refused:
            self._note(call, caller.ip, caller.token.name, refused)
            raise

    def _note(self, call: Call, ip: str, token: str, refused: Refused) -> None:
        """What is refused before the registry hears of it. A wrong token is worth a line, a flood of them is not."""
        if self._notes.take((ip, refused.code)) == 0:
            self._registry.reject(refused, ip, token, f"{call.method} {call.path[:160]}")


def _parse_legacy(body: bytes) -> LegacyCall:
    """Over 4 KiB only with a page in dst-ip: it breaks the JSON, and its client cannot help it. Raises Refused."""
    too_large = Refused(Code.TOO_LARGE, f"the body is over {BODY} bytes")
    if len(body) > BODY and _is_json(body):
        raise too_large
    try:
        return parse_legacy(body)
    except Refused as refused:
        # No legacy call behind a page either: what matters then is its size.
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
    body = {
        "port": frontend.port,
        "address": frontend.address,
        "target_port": frontend.target_port,
        "reachable": frontend.reachable,
    }
    return body | {"hint": frontend.hint} if frontend.hint else body


def _whole(seconds: float | None) -> float | int | None:
    """60 instead of 60.0."""
    if seconds is None:
        return None
    rounded = round(seconds, 1)
    return int(rounded) if rounded.is_integer() else rounded
