"""What one announce costs that comes alone, counted and not timed: function calls, in Python and in C.

The marks are what it needs today, and a little more. Raise one only for work that a change really needs, and see
docs/performance.md (Ten thousand registrations): with the caches cold each call costs several times as much as in a loop.
"""

from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from pylb.control.fair_buffer import FairBuffer
from pylb.control.leases import LeaseRecord
from pylb.control.storage import snapshot as encoding
from pylb.control.storage.snapshot import Encoder, Snapshot
from pylb.core import text
from pylb.core.claims import Claims
from pylb.core.ownership import announce, become
from pylb.core.registration import FrontendRequest, Key, Registration, State
from pylb.core.text import visible
from tests.control.test_size import Full
from tests.core.claiming import FREE
from tests.support.counting import counting

MARKS: dict[str, tuple[int, Callable[[Full], Awaitable[object]]]] = {
    "a beat": (280, lambda full: full.put("127.0.3.11")),
    "a move": (1365, lambda full: full.put("127.0.3.99")),
    "a goodbye": (1100, lambda full: full.put("127.0.3.99", draining=True)),
    "one more instance": (1485, lambda full: full.put("127.0.3.98", instance="pod-new")),
}
A_SERVER = 27  # calls for each server of the frontend that stays as it is


async def test_an_announce_that_comes_alone_costs_no_more_calls_than_its_mark(tmp_path: Path) -> None:
    full = Full(tmp_path, 40)
    await full.fill()
    try:
        await full.put("127.0.3.97", instance="pod-first")  # whatever is made only once
        costs = {what: await full.cost(lambda call=call: call(full)) for what, (_, call) in MARKS.items()}  # type: ignore[misc]
    finally:
        await full.registry.stop()
    assert {what: (cost, MARKS[what][0]) for what, cost in costs.items() if cost > MARKS[what][0]} == {}


async def test_a_move_looks_only_briefly_at_the_servers_beside_it(tmp_path: Path) -> None:
    """They stay the same objects: none is made, hashed or compared."""
    costs = {}
    for instances in (10, 110):
        full = Full(tmp_path / str(instances), 0)
        await full.fill()
        try:
            claims = Claims()
            for number in range(instances):
                one = Registration(
                    Key("t3", "app-3", f"pod-{number}"), "app-3", f"10.1.0.{number}", (FrontendRequest(1027, 30000),), 3600.0
                )
                claims = announce(claims, FREE, one, takeover=False, proven=frozenset()).claims
            publisher = full.registry._state.publisher
            desired = type(publisher.desired)(claims, publisher.desired.static_rules, publisher.desired.keyring)
            await publisher.publish(desired, None, ["test"])
            await full.put("10.1.1.1")
            costs[instances] = await full.cost(lambda: full.put("10.1.1.2"))  # noqa: B023 - run at once
        finally:
            await full.registry.stop()
    assert costs[110] - costs[10] <= 100 * A_SERVER


@pytest.mark.parametrize("owners", [2, 1000])
def test_a_full_buffer_takes_one_more_item_at_the_same_cost_however_many_owners_there_are(owners: int) -> None:
    buffer: FairBuffer[int] = FairBuffer(1000)
    for number in range(3000):
        buffer.add(f"owner-{number % owners}", number)
    with counting() as calls:
        for number in range(1000):
            buffer.add(f"owner-{number % owners}", number)
        assert calls() <= 30 * 1000


def test_plain_text_is_not_searched_for_harmful_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each character of every event was tried against thirty ranges."""
    plain = "moved t3/app-3/pod-1: 1027 -> 127.0.0.1:30000"
    assert visible(f"{plain}\n\x7f") == rf"{plain}\x0a\x7f"
    monkeypatch.setattr(text, "_HARMFUL", None)
    assert visible(plain) == plain


async def test_a_snapshot_pauses_between_the_leases_of_silent_registrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand of them were put together and written in one go, which kept the interpreter lock from the loop."""
    longest = {}
    for number in (100, 1500):
        full = Full(tmp_path / str(number), number // 5)
        await full.fill()
        try:
            state = full.registry._state
            claims = become(state.desired.claims, list(state.desired.claims.registrations), State.STALE).claims
            for one in claims.registrations.values():
                state.leases.restore(one, LeaseRecord(stale_for=5.0))
            encoder = Encoder()
            with counting() as calls:
                pauses = [calls()]
                monkeypatch.setattr(encoding.time, "sleep", lambda _seconds: pauses.append(calls()))  # noqa: B023
                payload = encoder.encode(Snapshot(), state.leases.records(claims))
                pauses.append(calls())
                monkeypatch.undo()
        finally:
            await full.registry.stop()
        longest[number] = max(after - before for before, after in pairwise(pauses))
        assert sum(piece.count(b'"stale_for":5.0') for piece in payload["leases"].pieces) == number
    assert longest[1500] <= 1.3 * longest[100] + 50


async def test_what_a_silent_registration_needs_of_its_lease_is_in_the_snapshot_once(tmp_path: Path) -> None:
    """Also of one that is both stale and replaced by others."""
    full = Full(tmp_path, 2)
    await full.fill()
    try:
        state = full.registry._state
        stale, fresh, *_ = keys = list(state.desired.claims.registrations)
        claims = become(state.desired.claims, [stale], State.STALE).claims
        state.leases.restore(claims.registrations[stale], LeaseRecord(stale_for=5.0))
        state.leases._displaced_since.update({stale: 990.0, fresh: 970.0})
        found = list(state.leases.records(claims))
    finally:
        await full.registry.stop()
    assert len(keys) == 10
    assert found == [
        (stale, LeaseRecord(stale_for=5.0, displaced_for=10.0)),
        (fresh, LeaseRecord(displaced_for=30.0)),
    ]
