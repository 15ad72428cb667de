"""How many connections a source may have at once, and how many it may begin in a second."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from pylb.core.policy import SourceLimits
from pylb.core.rate_limits import MOST_SOURCES, SourceLimiter


def at(text: str) -> bytes:
    return ip_address(text).packed


def test_connections_at_once_are_counted_down_again() -> None:
    sources, one = SourceLimiter(SourceLimits(per_source=2)), at("192.0.2.1")
    assert [sources.enter(one, 0.0) for _ in range(3)] == ["", "", "per_source"]
    assert sources.enter(at("192.0.2.2"), 0.0) == ""
    sources.leave(one)
    assert sources.enter(one, 0.0) == ""
    for source in (one, one, at("192.0.2.2")):
        sources.leave(source)
    assert len(sources) == 0


def test_a_source_may_make_a_seconds_worth_at_once_and_then_its_rate() -> None:
    sources, one = SourceLimiter(SourceLimits(per_source_rate=5)), at("192.0.2.1")
    assert [sources.enter(one, 10.0) for _ in range(6)] == [""] * 5 + ["per_source_rate"]
    assert [sources.enter(one, 10.2) for _ in range(2)] == ["", "per_source_rate"]
    assert [sources.enter(one, 20.0) for _ in range(6)] == [""] * 5 + ["per_source_rate"]


@given(st.integers(1, 50), st.lists(st.floats(0, 0.2), max_size=200))
def test_a_rate_is_kept_over_any_pattern(rate: int, gaps: list[float]) -> None:
    sources, now, let_in = SourceLimiter(SourceLimits(per_source_rate=rate)), 100.0, []
    for gap in gaps:
        now += gap
        if not sources.enter(b"x" * 16, now):
            let_in.append(now)
    for place, start in enumerate(let_in):
        for end in range(place, len(let_in)):
            assert end - place + 1 <= rate * (1 + let_in[end] - start) + 1e-6


def test_an_ipv6_source_is_a_network_and_an_ipv4_one_an_address() -> None:
    sources = SourceLimiter(SourceLimits(per_source=1, ipv6_prefix=56))
    assert sources.source(at("2001:db8:0:aa::1")) == sources.source(at("2001:db8:0:ff::2")) == at("2001:db8::")
    assert sources.source(at("2001:db8:0:100::1")) != sources.source(at("2001:db8:0:ff::2"))
    assert sources.source(at("192.0.2.1")) != sources.source(at("192.0.2.2"))


def test_a_flood_of_sources_does_not_fill_memory_and_quiet_ones_are_forgotten() -> None:
    sources = SourceLimiter(SourceLimits(per_source_rate=1))
    for number in range(MOST_SOURCES + 5000):
        source = number.to_bytes(16, "big")
        assert sources.enter(source, 1.0) == ""
        sources.leave(source)
    assert len(sources) <= MOST_SOURCES + 2
    for number in range(MOST_SOURCES):
        source = number.to_bytes(16, "big")
        if not sources.enter(source, 1000.0 + number):
            sources.leave(source)
    assert len(sources) < 5


def test_what_a_source_has_elsewhere_counts() -> None:
    sources, one = SourceLimiter(SourceLimits(per_source=3)), at("192.0.2.1")
    sources.elsewhere = [{one: 1}, {}, {one: 1}]
    assert [sources.enter(one, 0.0) for _ in range(2)] == ["", "per_source"]
    sources.elsewhere = [{one: 1}]
    assert [sources.enter(one, 0.0) for _ in range(2)] == ["", "per_source"]


def test_what_was_let_in_elsewhere_is_spent() -> None:
    sources, one = SourceLimiter(SourceLimits(per_source_rate=4)), at("192.0.2.1")
    sources.spend(one, 3, 100.0)
    assert [sources.enter(one, 100.0) for _ in range(2)] == ["", "per_source_rate"]
    unlimited = SourceLimiter(SourceLimits(per_source=1))
    unlimited.spend(one, 3, 100.0)
    assert len(unlimited) == 0


def test_changes_are_noted_once_somebody_asks_for_them() -> None:
    sources, one, two = SourceLimiter(SourceLimits(per_source=9)), at("192.0.2.1"), at("192.0.2.2")
    sources.enter(one, 0.0)
    sources.changed = {}
    for source in (one, two, two):
        sources.enter(source, 0.0)
    sources.leave(one)
    assert sources.changed == {one: 1, two: 2}
    sources.changed = {}
    sources.leave(two)
    assert sources.changed == {two: 0}
