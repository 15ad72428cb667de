"""Limits of the webhook: whoever has a token is served, whatever others do."""

import gc
import json
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from pylb.core.policy import CallLimits
from pylb.web.client_address import network_of
from pylb.web.types import Call, Handler
from pylb.web.webhook import ALL_NOTES, ALL_SOURCES, GUESS_RATE, GUESSES, NOTE_BURST, REPEAT_BURST
from tests.support.ports import free_port
from tests.web.calling import body_for, facing, legacy_body
from tests.web.running import SECRET, WEAK


async def test_a_legacy_client_in_a_hot_loop_is_slowed_and_its_neighbours_are_not(tmp_path: Path) -> None:
    async with facing(tmp_path, clock=lambda: 1000.0) as face:
        looping, honest = legacy_body(free_port(), 30000), legacy_body(free_port(), 30001)
        replies = [await face.hook(looping) for _ in range(int(REPEAT_BURST) + 3)]
        assert [reply.status for reply in replies] == [200] * int(REPEAT_BURST) + [429] * 3
        assert replies[-1].headers["retry-after"] == "1"
        assert (await face.hook(honest)).status == 200
        assert (await face.hook(legacy_body(int(looping["frontend-port"]), 30002))).status == 200


async def test_wrong_tokens_are_remembered_without_the_secret_and_a_flood_is_not(tmp_path: Path) -> None:
    async with facing(tmp_path, clock=lambda: 1000.0) as face:
        body = {"frontends": [{"port": free_port(), "target_port": 30000}]}
        for _ in range(20):
            await face.put("mosquitto/p", body, {"Authorization": "Bearer not-a-secret-that-is-known"})
        rejected = face.control.registry.rejected()
        assert len(rejected) == 5
        assert face.control.registry.refused_total == {"unauthorized": 20}
        assert (rejected[0].ip, rejected[0].token, rejected[0].code) == ("127.0.0.1", "", "unauthorized")
        assert rejected[0].what == "PUT /v1/registrations/mosquitto/p"
        assert "not-a-secret" not in repr(rejected)


async def test_wrong_tokens_lock_out_wrong_tokens_alone(tmp_path: Path) -> None:
    """Case 37: one pod with a wrong token in a loop behind the address of 30 honest ones."""
    async with facing(tmp_path, clock=lambda: 1000.0, limits=CallLimits(lockout=20)) as face:
        port = free_port()
        wrong = {"Authorization": "Bearer not-a-secret-that-is-known"}
        found = [await face.put("mosquitto/p", body_for(port), wrong) for _ in range(25)]
        assert [reply.status for reply in found] == [401] * 20 + [429] * 5
        assert found[-1].headers["retry-after"] == "3"
        assert [(await face.put(f"mosquitto/{n}", body_for(port))).status for n in range(30)] == [201] * 30


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"Authorization": "Bearer not-a-secret-that-is-known"},
        {"Authorization": f"Bearer {WEAK}"},
        {"Authorization": "Bearer " + "x" * 3000},
    ],
)
async def test_every_401_has_the_same_words(tmp_path: Path, headers: dict[str, str]) -> None:
    async with facing(tmp_path) as face:
        reply = await face.put("mosquitto/p", body_for(free_port()), headers)
        assert reply.status == 401
        assert json.loads(reply.body) == {
            "error": "unauthorized",
            "detail": "the call carries no valid token",
            "hint": "send a token of pylb's config, of at least 22 characters, as Authorization: Bearer TOKEN",
        }


async def test_a_token_in_a_frenzy_is_slowed_and_the_others_are_not(tmp_path: Path) -> None:
    async with facing(tmp_path, clock=lambda: 1000.0, limits=CallLimits(burst=5, rate=2)) as face:
        port = free_port()
        found = [(await face.put(f"mosquitto/{n}", body_for(port))).status for n in range(7)]
        assert found == [201] * 5 + [429] * 2
        other = legacy_body(free_port(), 30000)
        assert (await face.hook(other, {"X-Funkypenguin-Token": WEAK})).status == 200


async def test_beats_that_change_nothing_are_not_limited_as_changes_are(tmp_path: Path) -> None:
    """400 pods behind one NAT, all at the same moment."""
    now = 1000.0
    limits = CallLimits(burst=50, rate=20)
    async with facing(tmp_path, clock=lambda: now, limits=limits) as face:
        port = free_port()
        for number in range(400):
            if number % 40 == 0:
                now += 10.0
            assert (await face.put(f"mosquitto/{number}", body_for(port))).status == 201
        now += 10.0
        found = [(await face.put(f"mosquitto/{number}", body_for(port))).status for number in range(400)]
        assert found == [200] * 400
        changes = [(await face.put(f"mosquitto/{number}", body_for(free_port()))).status for number in range(60)]
        assert changes == [200] * 50 + [429] * 10


def test_a_source_is_an_ipv4_address_or_an_ipv6_network() -> None:
    assert network_of("192.0.2.7") == bytes((192, 0, 2, 7)) != network_of("192.0.2.8")
    assert network_of("2001:db8::1:2:3:4") == network_of("2001:db8::ffff:0:0:1") != network_of("2001:db8:0:1::1")


def _said_by(ip: str, secret: str, number: int = 0) -> Call:
    """Without effect: what nobody registered is taken back. So it needs no free port."""
    body = json.dumps(legacy_body(20000 + number % 9000, 30000, "delete")).encode()
    return Call("POST", "/hooks/update-haproxy", {"x-funkypenguin-token": secret}, ip, "127.0.0.1", body)


async def _statuses(handler: Handler, calls: Iterable[Call]) -> Counter[int]:
    return Counter([(await handler(call)).status for call in calls])


async def test_a_token_has_a_limit_over_all_addresses_too(tmp_path: Path) -> None:
    """From addresses of one /64 as from one, from many networks five times that (finding 38)."""
    limits = CallLimits(burst=5, rate=2)
    async with facing(tmp_path, clock=lambda: 1000.0, limits=limits) as face:
        handler = face.webhook.handler()
        one_network = [_said_by(f"2001:db8::{n:x}", WEAK, n) for n in range(60)]
        assert await _statuses(handler, one_network) == {200: 5, 429: 55}
        many_networks = [_said_by(f"2001:db8:0:{n:x}::1", WEAK, n) for n in range(1, 60)]
        assert await _statuses(handler, many_networks) == {200: ALL_SOURCES * 5 - 5, 429: 59 - ALL_SOURCES * 5 + 5}
        assert (await handler(_said_by("2001:db8::1", SECRET, 8000))).status == 200


async def test_guesses_have_a_budget_over_all_addresses_and_who_has_called_before_is_served(tmp_path: Path) -> None:
    now = 1000.0
    async with facing(tmp_path, clock=lambda: now) as face:
        handler = face.webhook.handler()
        assert (await handler(_said_by("192.0.2.1", WEAK))).status == 200
        guesses = [_said_by(f"2001:db8:0:{n:x}::1", f"guess-{n}") for n in range(500)]
        assert await _statuses(handler, guesses) == {401: int(GUESSES), 429: 500 - int(GUESSES)}
        right, wrong = [await handler(_said_by("192.0.2.9", secret)) for secret in (WEAK, "guess")]
        assert (right.status, right.body) == (wrong.status, wrong.body)  # no oracle
        assert (await handler(_said_by("192.0.2.1", WEAK))).status == 200
        assert (await handler(_said_by("192.0.2.9", SECRET, 8000))).status == 200  # nobody guesses that one
        now += 1 / GUESS_RATE
        assert (await handler(_said_by("192.0.2.9", WEAK))).status == 200


async def test_a_pod_with_a_wrong_token_in_a_loop_spends_no_more_than_one_guess(tmp_path: Path) -> None:
    async with facing(tmp_path, clock=lambda: 1000.0) as face:
        handler = face.webhook.handler()
        await _statuses(handler, [_said_by("192.0.2.1", "wrong") for _ in range(500)])
        assert (await handler(_said_by("192.0.2.9", WEAK))).status == 200


async def test_a_flood_from_many_networks_is_no_flood_of_the_log(tmp_path: Path) -> None:
    async with facing(tmp_path, clock=lambda: 1000.0) as face:
        handler = face.webhook.handler()
        await _statuses(handler, [_said_by(f"2001:db8:0:{n:x}::1", "not-a-secret-that-is-known") for n in range(3000)])
        assert sum(event.kind == "refused" for event in face.control.registry.events()) == ALL_NOTES * NOTE_BURST


async def test_a_refused_call_is_free_when_it_is_answered(tmp_path: Path) -> None:
    """With its body, and without the collector's help (finding 36)."""

    class Headers(dict[str, str]):
        """Of a call: bytes, such as its body, take no weak reference."""

    gc.disable()
    try:
        async with facing(tmp_path) as face:
            handler = face.webhook.handler()
            for secret, body in (("wrong", b"{}"), (SECRET, b"no JSON"), (SECRET, b"x" * 60000)):
                headers = Headers({"x-funkypenguin-token": secret})
                gone = weakref.ref(headers)
                assert (await handler(replace(_said_by("192.0.2.1", secret), body=body, headers=headers))).status >= 400
                del headers
                assert gone() is None, secret
    finally:
        gc.enable()
