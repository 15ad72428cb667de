"""The network of a run: three namespaces in a row over veth as root, else loopback.

    load 198.18.1.1 ── 198.18.1.2 proxy 198.18.2.1 ── 198.18.2.2 origin

The run itself moves into the load's namespace; proxy and origin are started in theirs. `direct` goes from load to origin
through the proxy's kernel, as through a router. Addresses are RFC 2544's, set apart for benchmarks. Names hold the pid, so
that what a killed run left behind is known and removed by the next.
"""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError

_CLONE_NEWNET = 0x40000000  # linux/sched.h
_OURS = re.compile(r"pylb-bench-(\d+)-(load|proxy|origin)")
# New connections by the ten thousand: ports in TIME_WAIT again after a second, as it is on loopback anyway.
SETTINGS = ("net.ipv4.ip_forward=1", "net.ipv4.ip_local_port_range=32768 65535", "net.ipv4.tcp_tw_reuse=1")
_HERE = Path("/run/netns")


@dataclass(frozen=True)
class Network:
    """Addresses of proxy and origin, and what goes before a command to run it there."""

    name: str
    proxy: str
    origin: str
    on_proxy: Sequence[str] = ()
    on_origin: Sequence[str] = ()


LOOPBACK = Network("loopback", "127.0.0.1", "127.0.0.1")


def possible() -> bool:
    """Whether there are root, iproute2, and a kernel that allows namespaces."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False, timeout=20).returncode == 0


@contextmanager
def namespaces() -> Iterator[Network]:
    """Make the namespaces, enter one with this thread, and remove them at the end. Raises BenchError."""
    _remove_leftovers()
    load, proxy, origin = (f"pylb-bench-{os.getpid()}-{role}" for role in ("load", "proxy", "origin"))
    try:
        for name in (load, proxy, origin):
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _link(load, "198.18.1.1", proxy, "198.18.1.2")
        _link(proxy, "198.18.2.1", origin, "198.18.2.2")
        _ip("-n", load, "route", "add", "198.18.2.0/24", "via", "198.18.1.2")
        _ip("-n", origin, "route", "add", "198.18.1.0/24", "via", "198.18.2.1")
        for name in (load, proxy, origin):
            _run("ip", "netns", "exec", name, "sysctl", "-qw", *SETTINGS)
        with _inside(load):
            yield Network("veth", "198.18.1.2", "198.18.2.2", ("ip", "netns", "exec", proxy), ("ip", "netns", "exec", origin))
    finally:
        for name in (load, proxy, origin):
            if (_HERE / name).exists():
                _ip("netns", "delete", name)


def _link(one: str, address: str, other: str, peer: str) -> None:
    """A veth pair named after the far end's role."""
    there, here = other.rpartition("-")[2], one.rpartition("-")[2]
    _ip("-n", one, "link", "add", there, "type", "veth", "peer", "name", here, "netns", other)
    for name, device, ip in ((one, there, address), (other, here, peer)):
        _ip("-n", name, "address", "add", f"{ip}/24", "dev", device)
        _ip("-n", name, "link", "set", device, "up")


@contextmanager
def _inside(name: str) -> Iterator[None]:
    """This thread's new sockets, and the children it starts, belong to the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open("rb") as home, (_HERE / name).open("rb") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET) != 0:
            raise BenchError(f"cannot enter {name}: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            libc.setns(home.fileno(), _CLONE_NEWNET)


def _remove_leftovers() -> None:
    """Namespaces of runs whose process is gone."""
    for path in sorted(_HERE.iterdir()) if _HERE.is_dir() else ():
        ours = _OURS.fullmatch(path.name)
        if ours is not None and not Path(f"/proc/{ours[1]}").exists():
            _ip("netns", "delete", path.name)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: {done.stderr.strip()}")
