"""What workers cost and what they improve: `python -m bench workers`.

Start: the time from fork to a worker's first message, and its memory. Memory: main and workers when idle, as Pss, where pages
that processes share count once (proc(5)), and as the sum of all resident memory. Isolation: the p99 of requests at a fixed
rate, alone and while something else keeps main busy, with one process and with a worker: a flood of calls with wrong tokens,
scrapes of 1,000 frontends one after the other, moves that wait for a disk whose every fsync takes half a second, and 200
servers under active checks that accept and never answer.
"""

import argparse
import http.client
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from bench import configs, load, targets
from bench.configs import Wiring
from bench.processes import Address, free_ports
from bench.registrations import register, swapping
from bench.report import progress
from bench.tables import aligned
from bench.targets import OWN_PORTS, Kind, Target
from pylb.workers.archive import CodeArchive
from pylb.workers.channel import Channel
from pylb.workers.messages import VERSION, Hello, encoded

STARTS = 15
RATE = 4000.0  # requests a second: a fraction of what one process can do
FRONTENDS = 1000
FLOODERS = 3
STUCK = 200  # checks that nobody answers


def starts() -> list[float]:
    """The milliseconds until a worker has sent Ready."""
    program, taken = CodeArchive(), []
    for _ in range(STARTS):
        ours, theirs = socket.socketpair()
        began = time.perf_counter()
        process = program.start(theirs.fileno())
        theirs.close()
        channel = Channel(ours)
        channel.send(*encoded(Hello(VERSION, 1, 1, 100, 10, 1 << 20, "none")))
        ours.setblocking(True)
        ours.recv(1, socket.MSG_PEEK)
        taken.append((time.perf_counter() - began) * 1e3)
        channel.close()
        process.wait(10)
    program.close()
    return taken


def memory(target: Target) -> tuple[float, float]:
    """The Pss and the resident memory of all processes, in MB."""
    if target.process is None:
        raise ValueError("no process")
    return target.process.memory_bytes() / 1e6, target.process.resident_bytes() / 1e6


@contextmanager
def nothing(_target: Target) -> Iterator[None]:
    yield


@contextmanager
def flood(target: Target) -> Iterator[None]:
    """Calls with a wrong token, as fast as three threads can."""
    with _threads(FLOODERS, lambda: _call(target.wiring.webhook, "PUT", "/v1/registrations/x/y", "Bearer wrong")):
        yield


@contextmanager
def scrapes(target: Target) -> Iterator[None]:
    with _threads(1, lambda: _call(target.wiring.admin, "GET", "/metrics", "")):
        yield


@contextmanager
def _threads(count: int, call: Callable[[], None]) -> Iterator[None]:
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            call()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


def _call(where: Address, method: str, path: str, authorization: str) -> None:
    connection = http.client.HTTPConnection(*where, timeout=30)
    try:
        connection.request(method, path, headers={"Authorization": authorization} if authorization else {})
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        pass  # over its limits it is cut off: that is the flood's business
    finally:
        connection.close()


@contextmanager
def moves(target: Target) -> Iterator[None]:
    with swapping(target):
        yield


Company = Callable[[Target], AbstractContextManager[None]]
BESIDE: dict[str, Company] = {"alone": nothing, "beside a flood of calls": flood, "beside scrapes": scrapes}
SLOW_DISK = """
import os, time
fsync = os.fsync
os.fsync = lambda fd: (time.sleep(0.5), fsync(fd))[1]  # in the thread that writes, as the real one
from pylb.cli.main import main
main()
"""


def with_slow_disk(kind: Kind) -> Kind:
    return replace(kind, command=lambda config: [sys.executable, "-c", SLOW_DISK, "run", "-c", str(config)])


def with_stuck_checks(kind: Kind, mute: Address) -> Kind:
    """The same pylb with checks that hang. After a while half of them meet a full backlog, where not even the connect ends."""

    def render(wiring: Wiring) -> str:
        config = yaml.safe_load(kind.render(wiring))
        check = {"mode": "active", "check": {"send": "hello", "expect": "hello"}, "interval": "1s"}
        for port in configs.REGISTERED_PORTS[:STUCK]:
            listen = f"{wiring.proxy_http.host}:{port}"
            config["frontends"].append({"name": f"stuck-{port}", "listen": listen, "servers": [str(mute)], "health": check})
        return yaml.safe_dump(config, sort_keys=False)

    return replace(kind, render=render)


def isolation(names: list[str], rounds: int, seconds: int, wiring: Wiring) -> dict[tuple[str, str], list[float]]:
    """The p99 in milliseconds, by target and by what runs beside it."""
    found: dict[tuple[str, str], list[float]] = {}

    def measured(target: Target, company: str, beside: Company) -> None:
        with beside(target):
            result = load.pace(target.http, RATE, seconds)
        found.setdefault((target.name, company), []).append(result.p99 * 1e3)
        progress(f"{target.name:<6} {company:<26} p99 {result.p99 * 1e3:.2f} ms")

    for _ in range(rounds):
        for name in names:
            kind = targets.KINDS[name]
            with targets.started(kind, wiring) as target:
                register(target, 0, FRONTENDS)
                for company, beside in BESIDE.items():
                    measured(target, company, beside)
            with targets.started(with_slow_disk(kind), wiring) as target:
                measured(target, "beside moves on a slow disk", moves)
            with (
                socket.create_server(
                    (wiring.proxy_http.host, free_ports(wiring.proxy_http.host, 1, iter(OWN_PORTS))[0])
                ) as mute,
                targets.started(with_stuck_checks(kind, Address(*mute.getsockname())), wiring) as target,
            ):
                measured(target, "beside stuck checks", nothing)
    return found


def main(argv: list[str]) -> int:
    """`python -m bench workers`."""
    parser = argparse.ArgumentParser("python -m bench workers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of the isolation (5)")
    parser.add_argument("--seconds", type=int, default=4, metavar="S", help="each (4)")
    options = parser.parse_args(argv)
    names = ["pylb", "pylb1"]
    targets.require(targets.requirements(names))
    taken = starts()
    print(f"start of a worker: median {statistics.median(taken):.0f} ms ({min(taken):.0f}..{max(taken):.0f})")
    with tempfile.TemporaryDirectory(prefix="pylb-bench-") as folder:
        wiring = targets.wired(Path(folder), 4096)
        with targets.origin(wiring):
            for name in (*names, "pylb2"):
                with targets.running(name, wiring) as target:
                    pss, resident = memory(target)
                    print(f"memory of {name}, idle: {pss:.0f} MB (Pss), {resident:.0f} MB resident in all")
            found = isolation(names, options.rounds, options.seconds, wiring)
    rows = []
    for (name, company), values in found.items():
        ratios = [value / alone for value, alone in zip(values, found[name, "alone"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"
        rows.append([f"{name} {company}", f"{statistics.median(values):.2f}", spread])
    print("\n".join(aligned([[f"{RATE:,.0f} requests/s", "p99 ms", "x alone"], *rows])))
    return 0
