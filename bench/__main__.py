"""`python -m bench`: the command line and the order of a run."""

import argparse
import resource
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from bench import __doc__ as how_it_measures
from bench import (
    announce,
    balance,
    bulk_latency,
    charts,
    compare,
    datagrams,
    endings,
    letters,
    load,
    network,
    probes,
    profile_connection,
    recorder,
    report,
    scale,
    scrape,
    targets,
    workers,
)
from bench.configs import Wiring
from bench.figures import WARM_UP, Sample, rotated
from bench.network import Network
from bench.processes import BenchError
from bench.scenarios import DEFAULT_SCENARIOS, QUICK, SCENARIOS, Effort, Scenario
from bench.soak import command as soak
from bench.tables import listed

DESCRIPTORS = 20_000
VERBS = {
    "announce": announce.main,
    "soak": soak.main,
    "endings": endings.main,
    "letters": letters.main,
    "charts": charts.main,
    "compare": compare.main,
    "balance": balance.main,
    "probes": probes.main,
    "profile-connection": profile_connection.main,
    "recorder": recorder.main,
    "scale": scale.main,
    "scrape": scrape.main,
    "udp": datagrams.main,
    "workers": workers.main,
}
DEFAULT_TARGETS = ("direct", "pylb", "floor", "haproxy", "haproxy2", "nginx")
EXAMPLES = """examples:
  python -m bench                    everything, about an hour; the raw JSON is kept under bench/results/
  python -m bench --quick            does it run, is it roughly right? one short round, nothing kept
  python -m bench --scenarios bulk --targets pylb,haproxy,haproxy-splice --rounds 9
  python -m bench --scenarios keepalive-1,keepalive-256 --json out.json

  python -m bench soak --minutes 60  random streams and faults, SHA-256 on each; see python -m bench soak --help

  python -m bench charts             the newest kept run as SVG, under docs/charts/
  python -m bench compare OLD NEW    pylb before and after, from two kept runs
  python -m bench announce           what control costs for one call alone, with 10,000 registrations
  python -m bench balance            what a pick, a look-up and a limit cost, with 2 and with 1,000 servers
  python -m bench probes             how long the loop is held while 1,000 servers are checked
  python -m bench profile-connection CPU and system calls of one new connection: HAProxy, the floor, pylb
  python -m bench recorder           what the flight recorder costs a short connection
  python -m bench scale              what control costs with 10,000 registrations, in parts and in a pylb that runs
  python -m bench scrape             how long a scrape of 1,000 frontends takes, and holds the loop
  python -m bench udp                datagrams through pylb and nginx stream: round trips, trains, new flows, memory
  python -m bench workers            start and memory of workers, and what a busy main process does to the p99
  python -m bench --scenarios connections,keepalive --targets pylb,pylb-all,haproxy   what all features together cost
  python -m bench endings            what clients and servers get to see through each proxy when streams end

exit codes: 0 measured; 1 some requests or samples failed; 2 something is missing; 130 interrupted
peers:      sudo apt install haproxy nginx libnginx-mod-stream wrk
"""


def arguments() -> argparse.ArgumentParser:
    """The command line; its help explains every choice."""
    about = {name: scenario.about for name, scenario in SCENARIOS.items()}
    parser = argparse.ArgumentParser(
        "python -m bench",
        description=how_it_measures,
        epilog="\n".join([_list("scenarios", about), _list("targets", targets.ABOUT), EXAMPLES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=_count, default=5, metavar="N", help="measured rounds after the warm-up (5)")
    parser.add_argument("--seconds", type=_count, metavar="S", help="length of one load, whole seconds (4; bulk-beside 20)")
    parser.add_argument(
        "--scenarios",
        type=_some_of(SCENARIOS),
        default=[*DEFAULT_SCENARIOS],
        metavar="A,B",
        help=",".join(DEFAULT_SCENARIOS),
    )
    parser.add_argument(
        "--targets",
        type=_some_of(targets.ABOUT),
        default=[*DEFAULT_TARGETS],
        metavar="A,B",
        help=",".join(DEFAULT_TARGETS),
    )
    parser.add_argument("--loopback", action="store_true", help="no namespaces, also as root")
    parser.add_argument("--quick", action="store_true", help="one round of one second, smaller counts, no warm-up")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the raw samples here instead of bench/results/")
    return parser


def _list(title: str, items: Mapping[str, str]) -> str:
    return f"{title}:\n{listed(items.items())}\n"


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"unknown: {', '.join(unknown) or 'nothing given'}; choose from {', '.join(known)}"
            )
        return names

    return parse


def measure(
    scenarios: list[Scenario], names: list[str], rounds: range, effort: Effort, wiring: Wiring
) -> tuple[list[Sample], list[str]]:
    """Run everything, scenario by scenario, with progress on stderr. The origin runs already.

    Returns the samples, and a text for each one that failed: one bad minute must not cost the whole run.
    """
    samples, failures = [], []
    for scenario in scenarios:
        chosen = [name for name in names if scenario.admits(name)]
        # A sample of a `once` scenario is already a median over its calls.
        for turn in [rounds[-1]] if scenario.once else rounds:
            for name in rotated(chosen, turn):
                place = f"{_label(turn, rounds)} {scenario.name:<13} {name:<14}"
                try:
                    samples.append(_sample(scenario, name, turn, effort, wiring))
                    report.progress(f"{place} {_first_figure(scenario, samples[-1])}")
                except BenchError as error:
                    failures.append(f"{scenario.name}, {name}, round {turn}: {error}")
                    report.progress(f"{place} failed: {error}")
    return samples, failures


def _sample(scenario: Scenario, name: str, turn: int, effort: Effort, wiring: Wiring) -> Sample:
    with targets.running(name, wiring, bulk_latency.with_lags if scenario.lags else None) as target:
        outcome = scenario.measure(target, effort)
    return Sample(scenario.name, name, turn, outcome.metrics, outcome.errors)


def _label(turn: int, rounds: range) -> str:
    return "warm-up    " if turn == WARM_UP else f"round {turn}/{rounds[-1]}".ljust(11)


def _first_figure(scenario: Scenario, sample: Sample) -> str:
    metric = scenario.metrics[0]
    value = sample.metrics.get(metric.key)
    return "-" if value is None else f"{value:>10,.{metric.decimals}f} {metric.title}"


def run(options: argparse.Namespace) -> int:
    """One run: checks what is installed, measures, prints the tables, keeps the JSON. → exit code."""
    effort = QUICK if options.quick else Effort()
    if options.seconds:
        effort = replace(effort, seconds=options.seconds, beside_seconds=options.seconds)
    rounds = range(1, 2) if options.quick else range(WARM_UP, options.rounds + 1)
    descriptors = _descriptors(effort)
    targets.require(targets.requirements(options.targets))
    started, machine = report.now(), report.machine()  # before the load, so that the load average is the neighbours'
    with tempfile.TemporaryDirectory(prefix="pylb-bench-") as folder, _network(options.loopback) as net:
        wiring = targets.wired(Path(folder), descriptors, net)
        with targets.origin(wiring):
            chosen = [SCENARIOS[name] for name in options.scenarios]
            if "half-rate" in options.scenarios:
                effort = replace(effort, rate=_half_of_the_maximum(options.targets, wiring))
            samples, failures = measure(chosen, options.targets, rounds, effort, wiring)
    result = report.Run(
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        started=started,
        rounds=len(rounds) - (WARM_UP in rounds),
        targets=options.targets,
        effort=effort,
        network=net.name,
        machine=machine,
        versions=targets.versions(options.targets),
        failures=failures,
        samples=samples,
    )
    print(report.tables(result))
    if options.json or not options.quick:  # a quick run is no claim, so it is kept only on request
        report.progress(f"raw samples: {report.save(result, options.json)}")
    return int(bool(failures) or any(sample.errors for sample in samples))


@contextmanager
def _network(loopback: bool) -> Iterator[Network]:
    if loopback or not network.possible():
        yield network.LOOPBACK
    else:
        with network.namespaces() as made:
            yield made


def _half_of_the_maximum(names: list[str], wiring: Wiring) -> float:
    """Half of the requests per second that HAProxy reaches, or else the first target of the run."""
    name = report.BASELINE if report.BASELINE in names else names[0]
    with targets.running(name, wiring) as target:
        return load.wrk(target.http, 64, 2).requests_per_second / 2


def _descriptors(effort: Effort) -> int:
    """Sets the limit of open files that every child inherits, the same on every machine where the hard limit allows it.

    More would make some peers allocate tables for sessions that never come, and show that as their memory.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    needed = 1000 + 2 * max(effort.idle_sessions, effort.live_sessions, *effort.grown_sessions)
    if limit < needed:
        raise BenchError(f"the limit of open files is {hard}, {needed} are needed\n  hint: ulimit -Hn {DESCRIPTORS}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """The first one unwinds; later ones are ignored: unwinding is what stops the children, and it is bounded."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Entry point. SIGTERM ends a run as Ctrl-C does: every process it started is stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        if sys.argv[1:2] and (verb := VERBS.get(sys.argv[1])) is not None:
            return verb(sys.argv[2:])
        return run(arguments().parse_args())
    except BenchError as error:
        report.progress(f"bench: {error}")
        return 2
    except KeyboardInterrupt:
        report.progress("bench: interrupted; everything it started is stopped, nothing was kept")
        return 130


if __name__ == "__main__":
    sys.exit(main())
