"""The memory of events: bounded, and shared fairly among the tokens."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from pylb.control.event_log import MOST_DETAIL, EventLog, RejectionLogLimit
from pylb.control.fair_buffer import FairBuffer
from pylb.core.errors import Code, Refused


def event_log() -> EventLog:
    return EventLog(lambda: 0.0, lambda _event: None)


def test_one_tokens_events_do_not_flush_out_anothers() -> None:
    book = event_log()
    book.note("reloaded", "of pylb itself")
    for number in range(300):
        book.note("created", f"honest {number}", {"token": "honest"})
    for number in range(20_000):
        book.note("moved", f"noise {number}", {"token": "noisy"})
        book.reject(Refused(Code.UNAUTHORIZED, "no token"), f"2001:db8::{number:x}", "", "PUT")
    events = book.events()
    assert len(events) == 1000
    assert [event.text for event in events if event.fields.get("token") == "honest"] == [f"honest {n}" for n in range(300)]
    assert events[0].text == "of pylb itself"
    assert events[-2].text == "noise 19999"
    assert [event.number for event in events] == sorted(event.number for event in events)
    assert book.noted == events[-1].number == 40_301


def test_one_tokens_refusals_do_not_flush_out_anothers() -> None:
    book = event_log()
    for number in range(40):
        book.reject(Refused(Code.PORT_OWNED, str(number)), "192.0.2.1", "honest", "PUT")
    for number in range(1000):
        book.reject(Refused(Code.PORT_OWNED, str(number)), "192.0.2.2", "noisy", "PUT")
    shown = Counter(one.token for one in book.rejected())
    assert shown == {"honest": 40, "noisy": 60}


def test_what_a_refused_call_repeats_is_cut() -> None:
    book = event_log()
    book.reject(Refused(Code.INVALID, "\x7f" * 4000), "192.0.2.1", "t", "PUT " + "\U000e0001" * 4000)
    (last,) = book.rejected()
    assert len(last.detail) == len(last.what) == MOST_DETAIL
    assert len(book.events()[-1].text) < 3 * MOST_DETAIL


def test_a_token_that_is_refused_without_end_gets_few_lines_and_takes_nobody_elses() -> None:
    now = 0.0
    worth = RejectionLogLimit(lambda: now)
    lines = 0
    for second in range(3600):
        now = float(second)
        lines += sum(worth.allows_line("noisy", f"2001:db8::{second:x}:{number:x}", Code.INVALID) for number in range(100))
    assert lines <= 100 + 2 * 3600
    assert [worth.allows_line("honest", "192.0.2.1", Code.INVALID) for _ in range(11)] == [True] * 10 + [False]
    assert worth.allows_line("honest", "192.0.2.2", Code.INVALID)
    assert worth.allows_line("honest", "192.0.2.1", Code.PORT_OWNED)


@given(st.lists(st.sampled_from("abcdef"), max_size=300), st.integers(1, 40))
def test_a_ring_is_never_larger_and_owes_each_a_fair_share(owners: list[str], size: int) -> None:
    ring: FairBuffer[tuple[str, int]] = FairBuffer(size)
    for number, owner in enumerate(owners):
        ring.add(owner, (owner, number))
    items = ring.items()
    assert len(items) == min(size, len(owners))
    assert [number for _, number in items] == sorted(number for _, number in items)
    kept, said = Counter(owner for owner, _ in items), Counter(owners)
    for owner in said:
        assert kept[owner] >= min(said[owner], size // len(said))
        newest = [number for number, one in enumerate(owners) if one == owner][-kept[owner] :] if kept[owner] else []
        assert [number for one, number in items if one == owner] == newest


def _kept(owners: list[tuple[str, int]], size: int, most: int) -> list[int]:
    """What the buffer holds, by its definition: the one with the most weight loses its oldest item, of equals the one whose
    oldest is the oldest, and never the newest item."""
    held: list[tuple[int, str, int]] = []
    for number, (owner, weight) in enumerate(owners):
        held.append((number, owner, weight))
        while len(held) > size or (sum(one[2] for one in held) > most and len(held) > 1):
            weights: Counter[str] = Counter()
            for _, name, more in held:
                weights[name] += more
            oldest = {name: min(one for one, other, _ in held if other == name) for name in weights}
            gone = max((oldest[name] != number, weights[name], -oldest[name], name) for name in weights)[-1]
            held.remove(next(one for one in held if one[1] == gone))
    return [number for number, _, _ in held]


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 30)), max_size=120),
    st.integers(1, 20),
    st.integers(1, 200),
)
def test_the_heaviest_share_loses_its_oldest_item(owners: list[tuple[str, int]], size: int, most: int) -> None:
    buffer: FairBuffer[int] = FairBuffer(size, most)
    for number, (owner, weight) in enumerate(owners):
        buffer.add(owner, number, weight)
    assert buffer.items() == _kept(owners, size, most)


def test_the_lists_say_how_far_back_they_reach() -> None:
    now = 1000.0
    book = EventLog(lambda: now, lambda _event: None)
    now = 1001.0
    book.note("moved", "first")
    assert (book.events_since, book.rejected_since) == (1000.0, 1000.0)
    for second in range(1, 1001):
        now = 1001.0 + second
        book.note("moved", "another")
    assert (book.events_since, book.rejected_since, book.events()[0].at) == (1001.0, 1000.0, 1002.0)
