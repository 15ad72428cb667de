"""The proxies that are measured: real programs, started for one sample and stopped after it, and the origin behind them."""

import random
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from bench import configs
from bench.configs import Wiring
from bench.network import LOOPBACK, Network
from bench.processes import Address, BenchError, Process, free_ports

# Outside the ephemeral range, where any outgoing socket may sit on a port, and below the ports of tests that run beside
# (tests/support/ports.py).
OWN_PORTS = range(10000, 18000)


@dataclass(frozen=True)
class Kind:
    """A kind of target. `program` must be in PATH and comes with the Debian `package`; "": nothing has to be installed."""

    name: str
    about: str
    program: str
    package: str
    version: Sequence[str]
    command: Callable[[Path], list[str]]  # the path of the written config → argv
    render: Callable[[Wiring], str]
    says_ready: bool = False  # on its admin port: its sockets listen before it has done with starting


@dataclass(frozen=True)
class Target:
    """A running target: where its frontends listen, and its process; None for `direct`, which has none."""

    name: str
    http: Address
    bulk: Address
    process: Process | None
    wiring: Wiring
    says_ready: bool = False  # pylb: there is an admin port


def _pylb(name: str, about: str, render: Callable[[Wiring], str]) -> Kind:
    return Kind(
        name,
        about,
        program="",
        package="",
        version=[sys.executable, "-c", "import pylb; print('pylb', pylb.__version__)"],
        command=lambda config: [sys.executable, "-m", "pylb", "run", "-c", str(config)],
        render=render,
        says_ready=True,
    )


def _haproxy(name: str, about: str, threads: int, *, splice: bool = False) -> Kind:
    return Kind(
        name,
        about,
        program="haproxy",
        package="haproxy",
        version=["haproxy", "-v"],
        command=lambda config: ["haproxy", "-db", "-f", str(config)],
        render=lambda wiring: configs.haproxy(wiring, threads, splice=splice),
    )


DIRECT, FLOOR = "direct", "floor"
KINDS = {
    kind.name: kind
    for kind in (
        _pylb("pylb", "pylb, workers 0", configs.pylb),
        _pylb("pylb1", "pylb, workers 1", lambda wiring: configs.pylb(wiring, 1)),
        _pylb("pylb2", "pylb, workers 2", lambda wiring: configs.pylb(wiring, 2)),
        _pylb("pylb-unrecorded", "pylb with recorder.sessions: 0", configs.pylb_unrecorded),
        _pylb("pylb-all", "pylb with limits, access list, queue, source addresses and active checks on", configs.pylb_all),
        _pylb("pylb-log", "pylb with a tcplog line per session, appended to a file", configs.pylb_log),
        _haproxy("haproxy", "HAProxy, one thread, as installed", 1),
        _haproxy("haproxy2", "HAProxy, two threads", 2),
        _haproxy("haproxy-splice", "HAProxy, one thread, with option splice-auto", 1, splice=True),
        Kind(
            "nginx",
            "nginx stream, one worker",
            program="nginx",
            package="nginx libnginx-mod-stream",
            version=["nginx", "-v"],
            command=lambda config: ["nginx", "-c", str(config)],
            render=lambda wiring: configs.nginx(wiring, stream_module()),
        ),
        Kind(
            FLOOR,
            "a bare forwarder in Python without anything that makes it a proxy: what a new connection costs at the least",
            program="",
            package="",
            version=[sys.executable, "-c", "from importlib.metadata import version; print('uvloop', version('uvloop'))"],
            command=lambda config: [sys.executable, "-m", "bench.floor", str(config)],
            render=configs.floor,
        ),
    )
}
ABOUT = {DIRECT: "no proxy: load straight to the origin, the ceiling of this machine"} | {
    k.name: k.about for k in KINDS.values()
}


def require(programs: dict[str, str]) -> None:
    """Raises BenchError naming the Debian packages of all missing programs ({program: package}), all at once."""
    missing = {program: package for program, package in programs.items() if program and not shutil.which(program)}
    if missing:
        raise BenchError(
            f"not installed: {', '.join(missing)}\n  hint: sudo apt install {' '.join(dict.fromkeys(missing.values()))}"
        )


def requirements(names: Sequence[str]) -> dict[str, str]:
    """{program: Debian package} of what the given targets, the origin and the load generator need."""
    needed = {"nginx": "nginx", "wrk": "wrk"}
    return needed | {KINDS[name].program: KINDS[name].package for name in names if name != DIRECT}


def versions(names: Sequence[str]) -> dict[str, str]:
    """{target: first line of its version output}, with `origin` and `wrk` beside them; "unknown" if it prints none."""
    commands = {name: KINDS[name].version for name in names if name != DIRECT}
    return {name: _first_line(argv) for name, argv in (commands | {"origin": ["nginx", "-v"], "wrk": ["wrk", "-v"]}).items()}


def _first_line(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    lines = (done.stdout or done.stderr).splitlines()  # nginx writes its version to stderr; wrk's exit code is 1
    return lines[0].strip() if lines else "unknown"


def stream_module() -> Path | None:
    """nginx's dynamic stream module, None where stream is compiled in. Raises BenchError when there is neither."""
    build = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=True, timeout=20).stderr
    if re.search(r"--with-stream(\s|$)", build):
        return None
    folder = re.search(r"--modules-path=(\S+)", build)
    module = Path(folder[1] if folder else ".") / "ngx_stream_module.so"
    if not module.exists():
        raise BenchError("nginx has no stream module\n  hint: sudo apt install libnginx-mod-stream")
    return module


def wired(folder: Path, descriptors: int, network: Network = LOOPBACK) -> Wiring:
    """Where everything listens, on ports nobody listens on now; writes the token file that pylb's config names."""
    origin_names = ("origin_http", "origin_other", "origin_bulk")
    names = (*origin_names, "proxy_http", "proxy_bulk", "webhook", "admin")
    start = random.randrange(len(OWN_PORTS))  # two runs on one machine seldom meet
    candidates = iter([*OWN_PORTS[start:], *OWN_PORTS[:start]])
    # Namespaces of our own hold no other listener.
    ports = free_ports(network.proxy, len(names), candidates) if network is LOOPBACK else islice(candidates, len(names))
    hosts = {name: network.origin if name in origin_names else network.proxy for name in names}
    wiring = Wiring(
        **{name: Address(hosts[name], port) for name, port in zip(names, ports, strict=True)},
        folder=folder,
        descriptors=descriptors,
        on_proxy=network.on_proxy,
        on_origin=network.on_origin,
    )
    token = configs.token_file(wiring)
    token.touch(mode=0o600)
    token.write_text(secrets.token_urlsafe(32))
    return wiring


@contextmanager
def origin(wiring: Wiring) -> Iterator[None]:
    """The HTTP origin (nginx) and the bulk source, up for the whole run."""
    config = wiring.folder / "origin.conf"
    config.write_text(configs.origin(wiring))
    source = [*wiring.on_origin, sys.executable, "-m", "bench.endpoints", "source", str(wiring.origin_bulk)]
    with (
        Process.started("origin", [*wiring.on_origin, "nginx", "-c", str(config)], wiring.folder) as web,
        Process.started("bulk-source", source, wiring.folder) as bulk,
    ):
        web.wait_listening(wiring.origin_http)
        bulk.wait_listening(wiring.origin_bulk)
        yield


@contextmanager
def running(name: str, wiring: Wiring, altered: Callable[[Kind], Kind] | None = None) -> Iterator[Target]:
    """Run one new target, which listens on both frontends, during the block. `altered`: changes a pylb before it starts."""
    if name == DIRECT:
        yield Target(name, wiring.origin_http, wiring.origin_bulk, None, wiring)
        return
    kind = KINDS[name]
    with started(altered(kind) if altered is not None and kind.says_ready else kind, wiring) as target:
        yield target


@contextmanager
def started(kind: Kind, wiring: Wiring) -> Iterator[Target]:
    """Like `running`, for any kind."""
    config = wiring.folder / f"{kind.name}.yaml"
    config.write_text(kind.render(wiring))
    shutil.rmtree(wiring.folder / "pylb-state", ignore_errors=True)  # a fresh pylb restores nothing of the last sample
    with Process.started(kind.name, [*wiring.on_proxy, *kind.command(config)], wiring.folder) as process:
        process.wait_listening(wiring.proxy_http)
        process.wait_listening(wiring.proxy_bulk)
        if kind.says_ready:
            process.wait_ready(wiring.admin)
        yield Target(kind.name, wiring.proxy_http, wiring.proxy_bulk, process, wiring, kind.says_ready)
