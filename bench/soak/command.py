"""The options of `python -m bench soak`, and one run from start to verdict."""

import argparse
import asyncio
import random
import sys
from pathlib import Path

from bench import report
from bench.soak import __doc__ as how_it_works
from bench.soak.run import Options, Run
from bench.soak.setup import Setup, prepared
from bench.soak.unit import Unit

LARGEST = 64 << 20
WORKERS = 2  # where somebody is killed


async def _run(options: Options, setup: Setup, log: int, errors: int) -> Run:
    config = setup.folder / "pylb.yaml"
    config.write_text(setup.config())
    unit = Unit([sys.executable, "-m", "pylb", "run", "-c", str(config)], setup.folder, log, errors)
    run = Run(setup, unit, options)
    try:
        await unit.start()
        await run.run(options.seconds)
    finally:
        if left := await unit.stop():
            run.totals.complain(f"SIGTERM did not end {left}")
    return run


def soak(options: Options, keep: Path | None) -> int:
    """A whole run → exit code: 0 nothing was wrong, 1 something was."""
    report.progress(
        f"seed {options.seed} (repeat with --seed {options.seed}), {options.streams} streams at a time, {options.seconds:.0f} s"
    )
    with prepared(WORKERS if options.kills else 0) as setup:
        log, errors = setup.folder / "sessions.log", setup.folder / "pylb.stderr"
        with log.open("wb") as out, errors.open("wb") as err:
            run = asyncio.run(_run(options, setup, out.fileno(), err.fileno()))
        said = errors.read_text(errors="replace")
        if "Traceback" in said:
            run.totals.complain(f"pylb's log has a traceback:\n{said[said.index('Traceback') :][:2000]}")
        lines = len(log.read_text().splitlines())
        # Those of a killed worker's last moment die with it.
        if lines != run.totals.connections and not options.kills:
            run.totals.complain(f"{lines} session lines for {run.totals.connections} connections")
        if options.kills and keep is not None:
            keep.with_suffix(".stderr").write_text(said)
    print(run.results.summary())
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        keep.write_text(run.results.as_json(options.seconds, options.seed, setup.workers))
        report.progress(f"raw samples: {keep}")
    return int(bool(run.totals.wrong))


def main(argv: list[str]) -> int:
    """`python -m bench soak`."""
    parser = argparse.ArgumentParser(
        "python -m bench soak", description=how_it_works, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="how long (10)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="repeat a run's choices")
    parser.add_argument("--streams", type=int, default=24, help="at a time (24)")
    parser.add_argument("--largest", type=int, default=LARGEST, help="bytes one way, at most (64 MiB)")
    parser.add_argument("--kills", action="store_true", help="two workers; they and main are killed at random, and upgraded")
    parser.add_argument("--json", type=Path, help="keep the samples here (from 10 minutes on: under bench/results/)")
    options = parser.parse_args(argv)
    keep = options.json
    if keep is None and options.minutes >= 10:
        keep = report.RESULTS / f"soak-{report.now().replace(':', '')}.json"
    chosen = Options(options.minutes * 60, options.seed, options.streams, options.largest, options.kills)
    return soak(chosen, keep)
