"""The load generators: wrk for requests and connections, our own endpoints for bulk and for sessions held open."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import PIPE, Popen, TimeoutExpired
from typing import IO

from bench.processes import Address, BenchError, started

GRACE_SECONDS = 30.0
UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class WrkResult:
    """What one run of wrk printed. Latencies in seconds; `errors`: socket errors, timeouts, answers not 2xx or 3xx."""

    requests_per_second: float
    requests: int
    p50: float
    p99: float
    errors: int


def parse_wrk(text: str) -> WrkResult:
    """Reads the output of `wrk --latency`; raises BenchError if it is not that."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    count = re.search(r"^\s*(\d+) requests in ", text, re.MULTILINE)
    if not rate or not count:
        raise BenchError(f"cannot read wrk's output:\n{text}")
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    statuses = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return WrkResult(
        requests_per_second=float(rate[1]),
        requests=int(count[1]),
        p50=_latency(text, 50),
        p99=_latency(text, 99),
        errors=(sum(map(int, sockets.groups())) if sockets else 0) + (int(statuses[1]) if statuses else 0),
    )


def _latency(text: str, percentile: int) -> float:
    found = re.search(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s|m|h)\s*$", text, re.MULTILINE)
    if not found:
        raise BenchError(f"no {percentile}% latency in wrk's output:\n{text}")
    return float(found[1]) * UNITS[found[2]]


def wrk(server: Address, connections: int, seconds: int, *, close: bool = False) -> WrkResult:
    """One thread of wrk over `connections` connections; with `close` every request has a connection of its own."""
    header = ["-H", "Connection: close"] if close else []
    argv = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{seconds}s", *header, f"http://{server}/"]
    return parse_wrk(_output(argv, seconds))


@dataclass(frozen=True)
class BulkResult:
    """A bulk transfer: bytes and seconds of the measured window; all bytes, which is what the proxy's CPU went into."""

    bytes: float
    seconds: float
    total_bytes: float


def drain(server: Address, streams: int, seconds: int) -> BulkResult:
    """Reads from `streams` connections at once as fast as they give."""
    argv = [sys.executable, "-m", "bench.endpoints", "drain", str(server), str(streams), str(seconds)]
    return BulkResult(**json.loads(_output(argv, seconds)))


@dataclass(frozen=True)
class PacedResult:
    """Requests at a fixed rate. Seconds from when they were due; `late_p99` is the generator's own share of them."""

    p50: float
    p99: float
    late_p99: float
    answers: int
    due: int


def pace(server: Address, rate: float, seconds: int, connections: int = 64) -> PacedResult:
    """Open loop: the rate does not wait for answers."""
    argv = [sys.executable, "-m", "bench.endpoints", "pace", str(server), str(rate), str(seconds), str(connections)]
    return PacedResult(**json.loads(_output(argv, seconds)))


@dataclass(frozen=True)
class PingResult:
    """Requests made one after the other, with the seconds that each took."""

    p50: float
    p95: float
    p99: float
    errors: int


def ping(server: Address, seconds: int, admin: Address | None) -> list[PingResult]:
    """Send 64 bytes and wait for the answer, on one connection; beside it GET /livez fifty times a second."""
    argv = [sys.executable, "-m", "bench.endpoints", "ping", str(server), str(seconds), *([str(admin)] if admin else [])]
    return [PingResult(**found) for found in json.loads(_output(argv, seconds))]


@contextmanager
def draining(server: Address, streams: int) -> Iterator[None]:
    """Bulk streams that flow while the block runs."""
    argv = [sys.executable, "-m", "bench.endpoints", "drain", str(server), str(streams), "3600"]
    with started(argv, stderr=PIPE):
        yield


@contextmanager
def held(servers: Sequence[Address], sessions: int) -> Iterator[None]:
    """`sessions` connections, spread over `servers`, each idle after one request and answer, while the block runs."""
    with _ready("hold", str(sessions), *map(str, servers)):
        yield  # leaving ends the holder; the kernel closes its sockets in order, for nothing unread is in them


@contextmanager
def sipping(server: Address, readers: int) -> Iterator[None]:
    """Connections that read a byte a second each while the block runs."""
    with _ready("sip", str(server), str(readers)):
        yield


@dataclass(frozen=True)
class SilentConnects:
    """Silent connects: how many were made per second, how many were closed again, and how many of those nobody had accepted."""

    rate: float
    closed: int
    failed: int


@contextmanager
def connecting_silently(server: Address, rate: int) -> Iterator[Callable[[], SilentConnects]]:
    """`rate` silent connects a second while the block runs, or until the function that it yields is called."""
    with _ready("knock", str(server), str(rate)) as child:

        def end() -> SilentConnects:
            out, err = child.communicate(timeout=GRACE_SECONDS)
            if child.returncode:
                raise BenchError(f"knock ended with code {child.returncode}:\n{err}")
            return SilentConnects(**json.loads(out))

        yield end


@contextmanager
def _ready(*arguments: str) -> Iterator[Popen[str]]:
    argv = [sys.executable, "-m", "bench.endpoints", *arguments]
    with started(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE) as child:
        out, err = _pipes(child)
        if out.readline() != "ready\n":
            raise BenchError(f"{' '.join(arguments[:2])}: could not open all sessions:\n{err.read()}")
        yield child


def _pipes(child: Popen[str]) -> tuple[IO[str], IO[str]]:
    """stdout and stderr of a child that was started with both as pipes."""
    if child.stdout is None or child.stderr is None:
        raise ValueError("started without pipes")
    return child.stdout, child.stderr


def _output(argv: list[str], seconds: int) -> str:
    """stdout of a load process that runs for `seconds`. Raises BenchError if it fails or does not end."""
    with started(argv, stdout=PIPE, stderr=PIPE) as child:
        try:
            out, err = child.communicate(timeout=seconds + GRACE_SECONDS)
        except TimeoutExpired as error:
            raise BenchError(f"{argv[0]} did not end within {error.timeout:.0f} s") from None
    if child.returncode:
        raise BenchError(f"{argv[0]} ended with code {child.returncode}:\n{err or out}")
    return out
