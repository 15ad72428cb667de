"""The calls of `python -m bench announce` are what they are called."""

from pathlib import Path

from bench.announce import Announces
from bench.scale import free, running


async def test_each_kind_of_call_does_what_its_name_says(tmp_path: Path) -> None:
    async with running(tmp_path, free(20)) as benchmark:
        await benchmark.fill()
        announces, totals = Announces(benchmark), benchmark.registry.registrations_total
        assert totals["created"] == 200
        for announce, result in (
            (announces.beat, "unchanged"),
            (announces.move, "moved"),
            (announces.goodbye, "updated"),
            (announces.new_instance, "created"),
        ):
            before = dict(benchmark.registry.registrations_total)
            for _ in range(3):
                await announce()
            after = benchmark.registry.registrations_total
            assert {what: count - before[what] for what, count in after.items() if count != before[what]} == {result: 3}
