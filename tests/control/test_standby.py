"""Standby: what /activez goes by, its end, and what a successor hears of it."""

from pathlib import Path

from tests.control.harness import control


async def test_a_standby_ends_by_itself_and_both_are_events(tmp_path: Path) -> None:
    async with control(tmp_path) as one:
        standby = one.registry.standby
        assert standby.left == 0
        standby.begin(90)
        one.clock.now += 60
        await one.registry.tick()
        assert standby.left == 30
        one.clock.now += 31
        await one.registry.tick()
        await one.registry.tick()
        assert standby.left == 0
        texts = [event.text for event in one.heard if event.kind in ("standby", "active")]
        assert texts == [
            "on standby for 1 min 30 s: /activez answers 503, so that another balancer gets the floating address",
            "no longer on standby: /activez answers 200",
        ]


async def test_the_rest_of_it_goes_to_a_successor_and_nothing_else_does(tmp_path: Path) -> None:
    async with control(tmp_path) as one:
        one.registry.go_on_from(one.registry.totals())
        assert one.registry.standby.left == 0
        one.registry.standby.begin(3600)
        one.clock.now += 600
        totals = one.registry.totals()
        assert one.registry.standby.end()
        assert not one.registry.standby.end()
        one.registry.go_on_from(totals)
        assert one.registry.standby.left == 3000
        one.registry.go_on_from({})  # of an older pylb
        assert one.registry.standby.left == 3000
