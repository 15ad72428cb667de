"""UDP through pylb and through nginx stream, in interleaved rounds: round trips, trains, new flows, memory of idle ones.

    round trips   64 flows, each with one datagram of 100 bytes under way
    trains        datagrams of 1,200 bytes, sent in trains (UDP_SEGMENT): MB/s that arrive, and CPU per GB, at 150 MB/s
                  offered and at 600, where both lose
    new flows     a socket, one datagram there and back, the next socket
    memory        of the process, for each idle flow

pylb may have its server on `*:port`, as registered ports have: there each answer names its source address.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from bench import targets
from bench.processes import Address, BenchError, Process, free_ports
from bench.tables import aligned

HOST = "127.0.0.1"
FLOWS, IDLE = 64, 2000
RATES = (150, 600)  # MB/s offered
DESCRIPTORS = 20_000
SETTLE = 0.3  # seconds until a proxy that was started reads


def pylb_config(folder: Path, listen: int, server: int, admin: int) -> tuple[str, list[str]]:
    frontend = f'{{name: udp, protocol: udp, listen: "*:{listen}", servers: ["{HOST}:{server}"], health: {{mode: none}}}}'
    text = f'webhook: []\nadmin: {{listen: "{HOST}:{admin}"}}\nstate_dir: {folder}/state\nlog: {{format: none}}\n'
    file = folder / "pylb.yaml"
    return f"{text}frontends: [{frontend}]\n", [sys.executable, "-m", "pylb", "run", "-c", str(file)]


def nginx_config(folder: Path, listen: int, server: int, _admin: int) -> tuple[str, list[str]]:
    module = targets.stream_module()
    head = f"load_module {module};\n" if module else ""
    text = f"""{head}daemon off; worker_processes 1; worker_rlimit_nofile {DESCRIPTORS};
pid {folder}/nginx.pid; error_log stderr error; events {{ worker_connections {DESCRIPTORS - 200}; }}
stream {{ server {{ listen {listen} udp; proxy_pass {HOST}:{server}; proxy_timeout 120s; }} }}
"""
    return text, ["nginx", "-c", str(folder / "nginx.conf")]


KINDS = {"pylb": (pylb_config, "pylb.yaml"), "nginx": (nginx_config, "nginx.conf")}


class Run:
    """One target, started for one sample."""

    def __init__(self, name: str, folder: Path, ports: list[int]) -> None:
        self.name = name
        self.folder = folder
        self.listen, self.server, self.admin = ports

    @contextmanager
    def started(self) -> Iterator[Process]:
        make, file = KINDS[self.name]
        text, command = make(self.folder, self.listen, self.server, self.admin)
        (self.folder / file).write_text(text)
        with Process.started(self.name, command, self.folder) as process:
            if self.name == "pylb":
                process.wait_ready(Address(HOST, self.admin))
            time.sleep(SETTLE)  # noqa: TID251 - for other processes; a port of UDP cannot be asked
            yield process

    @contextmanager
    def peer(self, what: str, port: int, *numbers: float) -> Iterator[subprocess.Popen[str]]:
        """A process of its own session: the scheduler shares CPU by session."""
        command = [sys.executable, "-m", "bench.datagram_peers", what, f"{HOST}:{port}", *(f"{one:g}" for one in numbers)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as child:
            try:
                yield child
            finally:
                child.kill()

    def asked(self, what: str, port: int, *numbers: float) -> float:
        with self.peer(what, port, *numbers) as child:
            return float(_line(child))

    def echoing(self, what: str, flows: int, seconds: float) -> tuple[float, float]:
        """A number of `what`, and microseconds of CPU for each."""
        with self.peer("echo", self.server) as echo, self.started() as process:
            _line(echo)
            before = process.cpu_seconds()
            rate = self.asked(what, self.listen, flows, seconds)
            return rate, 1e6 * (process.cpu_seconds() - before) / max(1.0, rate * seconds)

    def trains(self, rate: int, seconds: float) -> tuple[float, float]:
        """MB/s that arrive, and seconds of CPU per GB."""
        with self.peer("sink", self.server, 0, seconds) as sink, self.started() as process:
            _line(sink)
            before = process.cpu_seconds()
            self.asked("blast", self.listen, rate, seconds)
            arrived = float(_line(sink))
            return arrived, 1e3 * (process.cpu_seconds() - before) / max(1.0, arrived * seconds)

    def memory(self) -> float:
        """Bytes for each idle flow."""
        with self.peer("echo", self.server) as echo, self.started() as process:
            _line(echo)
            with self.peer("idle", self.listen, 20, 30) as few:
                _line(few)
                before = process.memory_bytes()
                with self.peer("idle", self.listen, IDLE, 30) as many:
                    _line(many)
                    return (process.memory_bytes() - before) / IDLE


def _line(child: subprocess.Popen[str]) -> str:
    line = child.stdout.readline().strip() if child.stdout is not None else ""
    if not line:
        raise BenchError(f"process {child.pid} of the bench ended early")
    return line


def sample(run: Run, seconds: float) -> dict[str, float]:
    found: dict[str, float] = {}
    found["round trips/s"], found["CPU µs a round trip"] = run.echoing("ping", FLOWS, seconds)
    for rate in RATES:
        found[f"MB/s of {rate}"], found[f"CPU s/GB at {rate}"] = run.trains(rate, seconds)
    found["new flows/s"], found["CPU µs a new flow"] = run.echoing("begin", 16, min(seconds, 1.0))
    found["bytes an idle flow"] = run.memory()
    return found


def main(argv: list[str]) -> int:
    """`python -m bench udp`."""
    parser = argparse.ArgumentParser(
        "python -m bench udp", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(5)")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of each figure (3)")
    parser.add_argument("--targets", default="pylb,nginx", metavar="NAMES", help="(pylb,nginx)")
    options = parser.parse_args(argv)
    names = options.targets.split(",")
    if unknown := set(names) - KINDS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    targets.require({"nginx": "nginx"} if "nginx" in names else {})
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory(prefix="pylb-bench-") as text:
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                folder = Path(text) / f"{name}-{turn}"
                folder.mkdir()
                ports = free_ports(HOST, 3, islice(targets.OWN_PORTS, turn * 40, None))
                for figure, value in sample(Run(name, folder, ports), options.seconds).items():
                    found[name].setdefault(figure, []).append(value)
                print(f"round {turn + 1} {name}", file=sys.stderr, flush=True)
    print("\n".join(aligned([*_table(names, found)])))
    return 0


def _table(names: list[str], found: dict[str, dict[str, list[float]]]) -> Iterator[list[str]]:
    first, *others = names
    yield ["", *names, *(f"{first} x {other}" for other in others)]
    for figure, values in found[first].items():
        medians = [f"{statistics.median(found[name][figure]):,.1f}" for name in names]
        ratios = []
        for other in others:
            pairs = zip(values, found[other][figure], strict=True)
            each = [ours / theirs for ours, theirs in pairs if theirs]
            ratios.append(f"{statistics.median(each):.2f} ({min(each):.2f}..{max(each):.2f})" if each else "-")
        yield [figure, *medians, *ratios]
