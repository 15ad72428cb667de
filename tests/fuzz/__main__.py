"""The long run: `python -m tests.fuzz [MINUTES] [--seed N] [--only PARSER]` (make fuzz-parsers)."""

import argparse
import itertools
import logging
import random
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, Phase, given, seed, settings

from pylb.cli.tables import Column, Table, written
from tests.fuzz.inputs import Parser, inputs, shapes
from tests.fuzz.measures import HANG, Hang, memory, no_hang, seconds
from tests.fuzz.parsers import BY_NAME, PARSERS

ROUND = 300  # inputs of a parser before the next one has its turn
LARGE = 1 << 20  # bytes
STEP = 4  # how much longer an input is than the one before
ENOUGH = 0.5  # seconds of CPU time from which on a ratio says something
STEEP = 9.0  # times the time for four times the input: 4 is linear, 16 quadratic
SLOW = 5.0  # seconds: larger inputs are not tried
SHARE = 3.0  # seconds of CPU time for such inputs of a parser in a round


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def any_bytes(parser: Parser, number: int) -> int:
    """Inputs of one round. Raises whatever is a defect, with the smallest input that shows it."""
    tried = 0

    @seed(number)
    @settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),  # not its explanations, which trace every line
    )
    @given(inputs(parser))
    def some(data: bytes) -> None:
        nonlocal tried
        tried += 1
        with no_hang():
            parser.run(data)

    some()
    return tried


def ever_longer(parser: Parser, make: Callable[[int], bytes]) -> None:
    """One shape of input up to 1 MiB, or what reaches the parser. Raises AssertionError where it costs too much."""
    most = min(parser.most, LARGE)
    before = 0.0
    for size in (most // (STEP * STEP), most // STEP, most):
        data = make(size)
        with no_hang():
            took = seconds(parser.work, data)
        assert took < ENOUGH or not before or took < STEEP * max(before, ENOUGH / STEP), (
            f"{size} bytes take {took:.2f} s, a quarter of it {before:.2f} s: {make(60)!r}"
        )
        before = took
        if took > SLOW:
            break
    data = make(min(most, 1 << 16))
    found = memory(parser.work, data)
    assert found <= (1 << 20) + parser.memory * len(data), f"{len(data)} bytes take {found} bytes of memory: {make(60)!r}"


class Tally:
    def __init__(self, parser: Parser, number: int, shape: int | None) -> None:
        """`shape`: that one alone, else all, in an order of the seed `number`."""
        self.parser = parser
        self.tried = self.grown = 0
        self.failures: list[str] = []
        self.shapes = list(enumerate(shapes(parser), 1))
        random.Random(number).shuffle(self.shapes)
        if shape is not None:
            self.shapes = [one for one in self.shapes if one[0] == shape]

    def turn(self, number: int) -> None:
        """A round of any bytes, and the next shapes."""
        self._guarded("inputs", number, 0, lambda: any_bytes(self.parser, number))
        end = time.process_time() + SHARE
        while self.grown < len(self.shapes) and time.process_time() < end:
            shape, make = self.shapes[self.grown]
            self.grown += 1
            self._guarded(f"shape {shape}", number, shape, lambda make=make: ever_longer(self.parser, make))

    def _guarded(self, what: str, number: int, shape: int, work: Callable[[], int | None]) -> None:
        try:
            self.tried += work() or 0
        except (Exception, Hang):  # noqa: BLE001 - all of them are what is looked for
            once = f'--only "{self.parser.name}" --seed {number} --rounds 1 --shape {shape}'
            again = f"make fuzz-parsers ARGS={shlex.quote(once)}"
            say(f"\n{self.parser.name}: {what} of seed {number} failed\n{traceback.format_exc(limit=-6)}once more: {again}\n")
            self.failures.append(what)


def main(argv: Sequence[str] | None = None) -> int:
    asked = argparse.ArgumentParser(prog="make fuzz-parsers ARGS=")
    asked.add_argument("--minutes", type=float, default=10.0)
    asked.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    asked.add_argument("--only", choices=sorted(BY_NAME), action="append", metavar="PARSER", help=", ".join(sorted(BY_NAME)))
    asked.add_argument("--rounds", type=int, default=1_000_000, help="at most so many; 1 repeats a failure from its seed")
    asked.add_argument("--shape", type=int, help="only this one of the inputs that grow to 1 MiB; 0: none")
    args = asked.parse_args(argv)
    logging.disable()  # what a parser complains of is no defect
    chosen = [parser for parser in PARSERS if not args.only or parser.name in args.only]
    say(f"seed {args.seed}, {args.minutes:g} minutes, {len(chosen)} parsers; a hang is {HANG:g} s of CPU time")
    tallies = [Tally(parser, args.seed, args.shape) for parser in chosen]
    began = shown = time.monotonic()
    for number, tally in itertools.product(range(args.seed, args.seed + args.rounds), tallies):
        if time.monotonic() - began > args.minutes * 60:
            break
        if not tally.failures:
            tally.turn(number)
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            say(f"{shown - began:5.0f} s: {sum(one.tried for one in tallies)} inputs, {tally.parser.name}")
    rows = [(one.parser.name, one.tried, f"{one.grown} of {len(one.shapes)}", len(one.failures) or "-") for one in tallies]
    columns = (Column("PARSER"), *(Column(heading, right=True) for heading in ("INPUTS", "SHAPES", "FAILURES")))
    say(written([Table(columns, rows)]))
    return 1 if any(tally.failures for tally in tallies) else 0


if __name__ == "__main__":
    sys.exit(main())
