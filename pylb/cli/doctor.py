"""`pylb doctor`: finds problems of this machine before they do harm."""

import asyncio
import os
import pwd
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pylb.app.cluster import examine as examine_etcd
from pylb.app.descriptors import budget
from pylb.app.errors import CannotStart
from pylb.cli.progress import progress
from pylb.cli.tables import clock, size
from pylb.config import Config
from pylb.config.health import random_pod
from pylb.control.health.dry_run import failing, has_check
from pylb.control.health.prober import at_most
from pylb.core.address import TCP, UDP
from pylb.core.auth import NODE_PORTS
from pylb.core.claims import Claims
from pylb.core.compose import ServerStates, compose_frontend
from pylb.core.policy import Rules
from pylb.core.static_rules import StaticRules
from pylb.core.table import Frontend
from pylb.core.table_diff import ChangeLine
from pylb.forward.datagram_sockets import LISTENER_BUFFER
from pylb.host.machine import listeners_of, resolve, worker_count
from pylb.web.tls import Certificate

CHECKS_AT_ONCE = 64
FEWEST_DESCRIPTORS = 8192  # 4,000 sessions
WIDE = 1000  # descriptors of ports that are worth a word
LOW_PORT = 1024
SOON = 14 * 86400.0  # seconds
SANE_YEAR = 1_767_225_600.0  # 2026-01-01: a clock before that is wrong
SERVICE_USER = "pylb"
NET = Path("/proc/sys/net")


class Finding(NamedTuple):
    what: str
    ok: bool
    found: str
    remedy: str = ""


def examine(config: Config) -> list[Finding]:
    """All findings. Nothing raises: a file that cannot be read is a finding, or does not concern us."""
    with progress("looking at this machine") as now:
        return list(_examine(config, now))


def _examine(config: Config, now: Callable[[str], None]) -> Iterator[Finding]:
    looks: list[Callable[[Config], Iterator[Finding]]] = [
        _descriptors,
        _low_ports,
        _ports,
        _ephemeral,
        _udp_buffers,
        _clock,
        _certificates,
        _state,
        _conntrack,
        _pipes,
        _advertise,
    ]
    for look in looks:
        yield from look(config)
    if config.cluster.etcd is not None:
        now("asking etcd")
        yield from _etcd(config)
    now("running the checks of the config")
    yield from _checks(config)


def _descriptors(config: Config) -> Iterator[Finding]:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = budget(config, hard, worker_count(config.workers))
    text = f"{hard:,}: {found.most_sessions:,} sessions, {found.reserve:,} descriptors for calls, pages, checks and files"
    listening = found.ports * max(1, found.workers)  # the first process has the sockets of all workers
    text += f", {listening:,} for ports" if listening > WIDE else ""
    remedy = "LimitNOFILE= in the unit, ulimit -Hn in a shell, --ulimit nofile= for a container"
    yield Finding("open files", hard - listening >= FEWEST_DESCRIPTORS, text, remedy)


def _low_ports(config: Config) -> Iterator[Finding]:
    start = _sysctl("ipv4/ip_unprivileged_port_start", LOW_PORT)
    wanted = [frontend.listen.port for frontend in config.frontends if frontend.listen.port < start]
    wanted += [ports.low for entry in config.tokens for ports in entry.ports if ports.low < start]
    may = os.geteuid() == 0 or _has_capability(10)  # CAP_NET_BIND_SERVICE
    if not wanted:
        return
    found = f"{', '.join(map(str, sorted(set(wanted))[:5]))} {'may' if may else 'may not'} be opened by this user"
    remedy = f"run it by its unit (pylb install-service), or sysctl net.ipv4.ip_unprivileged_port_start={min(wanted)}"
    yield Finding("ports below 1024", may, found, remedy)


def _ports(config: Config) -> Iterator[Finding]:
    own = [*(one.listen for one in config.webhook), config.admin.listen]
    own += [one.listen for one in config.frontends if one.listen.protocol == TCP]
    for port, holder in sorted(listeners_of({port for listen in own for port in listen.ports}).items()):
        if not holder.startswith(("pylb", "python")):
            yield Finding(f"port {port}", False, f"{holder} has it", "stop that process, or choose another port")


def _ephemeral(config: Config) -> Iterator[Finding]:
    """A listener inside the range loses its port to any outgoing connection that happens to use it (ip(7))."""
    try:
        low, high = (int(text) for text in (NET / "ipv4/ip_local_port_range").read_text().split())
        reserved = (NET / "ipv4/ip_local_reserved_ports").read_text().strip()
    except (OSError, ValueError):
        return
    inside = sorted({port for one in config.frontends for port in one.listen.ports if low <= port <= high})
    kept = {port for part in reserved.split(",") if part for port in _range(part)}
    if missing := [port for port in inside if port not in kept]:
        texts = _in_ranges(missing)
        found = f"{texts} lie inside {low}-{high}: an outgoing connection may hold one when pylb starts"
        yield Finding("ephemeral ports", False, found, f"sysctl net.ipv4.ip_local_reserved_ports={texts}")


def _udp_buffers(config: Config) -> Iterator[Finding]:
    """Who may open ports of UDP needs room for what comes while the loop does something else; TCP has its windows."""
    opened = any(one.listen.protocol == UDP for one in config.frontends)
    if not opened and not any(ports.protocol == UDP for one in config.tokens for ports in one.ports):
        return
    found = {name: _sysctl(f"core/{name}", LISTENER_BUFFER) for name in ("rmem_max", "wmem_max")}
    ok = min(found.values()) >= LISTENER_BUFFER
    text = ", ".join(f"net.core.{name} {value:,}" for name, value in found.items())
    what = "" if ok else f": bursts of more are dropped, pylb asks for {LISTENER_BUFFER:,} bytes"
    remedy = " ".join(f"net.core.{name}={LISTENER_BUFFER}" for name, value in found.items() if value < LISTENER_BUFFER)
    yield Finding("UDP buffers", ok, text + what, f"sysctl -w {remedy}")


def _in_ranges(ports: Sequence[int]) -> str:
    """The ports in the kernel's notation: `8443,20000-20099`. `ports` are sorted."""
    runs: list[list[int]] = []
    for port in ports:
        if runs and port == runs[-1][-1] + 1:
            runs[-1].append(port)
        else:
            runs.append([port])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _range(text: str) -> range:
    low, _, high = text.partition("-")
    return range(int(low), int(high or low) + 1)


def _clock(_config: Config) -> Iterator[Finding]:
    now = time.time()
    yield Finding("clock", now > SANE_YEAR, clock(now), "timedatectl set-ntp true")


def _certificates(config: Config) -> Iterator[Finding]:
    for listener in config.webhook:
        tls = listener.tls
        if tls is None or tls.certificate is None or tls.key is None:
            continue
        try:
            left = Certificate(tls.certificate, tls.key).expires_at - time.time()
        except (OSError, ValueError) as error:
            yield Finding("certificate", False, f"{tls.certificate}: {error}", "both files must be PEM and belong together")
            continue
        found = f"{tls.certificate}: {left / 86400:.0f} days left"
        yield Finding("certificate", left > SOON, found, "renew it; deploy/certbot has a hook that copies it")
        for path in (tls.certificate, tls.key):
            if (reason := _unreadable_for_service(path)) is not None:
                yield Finding("certificate", False, f"{path}: {reason}", f"chgrp {SERVICE_USER} {path}; chmod g+r {path}")


def _unreadable_for_service(path: Path) -> str | None:
    """Why the service's user cannot read it, judged by mode bits; None: it can, or there is no such user here."""
    try:
        user = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    for one in (*reversed(path.resolve().parents), path.resolve()):
        need = 4 if one == path.resolve() else 1
        found = one.stat()
        bits = found.st_mode >> (6 if found.st_uid == user.pw_uid else 3 if found.st_gid in groups else 0) & 7
        if not bits & need:
            return f"the user {SERVICE_USER} cannot {'read' if need == 4 else 'enter'} {one}"
    return None


def _state(config: Config) -> Iterator[Finding]:
    path = config.state_dir
    remedy = "make it writable for pylb's user (the unit's StateDirectory= does)"
    if not path.exists():
        parent = next(one for one in path.parents if one.exists())
        yield Finding("state directory", os.access(parent, os.W_OK), f"{path} is made by the first start in {parent}", remedy)
        return
    free = os.statvfs(path)
    yield Finding("state directory", os.access(path, os.W_OK), str(path), remedy)
    mib = free.f_bavail * free.f_frsize >> 20
    remedy = "free some: 64 MiB and 100 inodes are enough"
    yield Finding("disk of the state", mib >= 64 and free.f_favail > 100, f"{size(mib << 20)} free", remedy)


def _conntrack(_config: Config) -> Iterator[Finding]:
    """Where connections are tracked each session takes two entries, and a full table drops new ones in silence."""
    most, used = _sysctl("netfilter/nf_conntrack_max", 0), _sysctl("netfilter/nf_conntrack_count", 0)
    if most:
        wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        remedy = f"sysctl net.netfilter.nf_conntrack_max={max(262144, wanted)}, or `notrack` for pylb's ports"
        yield Finding(
            "conntrack", most >= min(wanted, 65536) and used < 0.8 * most, f"{used:,} of {most:,} entries used", remedy
        )


def _pipes(_config: Config) -> Iterator[Finding]:
    soft = _read_int(Path("/proc/sys/fs/pipe-user-pages-soft"), 16384)
    remedy = "sysctl fs.pipe-user-pages-soft=65536: without it bulk goes by recv and send, at more CPU"
    yield Finding("pipes for splice", soft == 0 or soft >= 16384, f"{soft:,} pages", remedy)


def _advertise(config: Config) -> Iterator[Finding]:
    found = config.advertise or "not set: join strings have this machine's own address"
    yield Finding("advertise", True, found)


def _etcd(config: Config) -> Iterator[Finding]:
    try:
        yield from (Finding(*one) for one in asyncio.run(examine_etcd(config)))
    except CannotStart as error:
        yield Finding("cluster.name", False, str(error), "a name that no other balancer has")


def _checks(config: Config) -> Iterator[Finding]:
    """Run each check of the config once: a server that does not pass would be out of service."""
    frontends, failed = asyncio.run(_asked(config.rules(frozenset())))
    for line in failed:
        remedy = "repair the server or its check; a check that is more than a connect is always asked"
        yield Finding(f"check of {line.frontend}", False, line.text, remedy)
    for one in frontends:
        if not any(line.listen == one.listen for line in failed):
            yield Finding(f"check of {one.name}", True, "all its servers pass")
        ports = (one.health(server).check.port or server.address.port for server in one.servers if has_check(one, server))
        port = next((port for port in ports if port in NODE_PORTS), None)
        if port is not None:
            yield Finding(f"check of {one.name}", False, *random_pod(port))


async def _asked(rules: Rules) -> tuple[list[Frontend], list[ChangeLine]]:
    """The frontends of the config that have checks, with what their host names are now, and what fails."""
    hosts = sorted(rules.hosts)
    found = await asyncio.gather(*map(resolve, hosts), return_exceptions=True)
    known = {host: tuple(ips) for host, ips in zip(hosts, found, strict=True) if not isinstance(ips, BaseException)}
    static_rules = StaticRules(rules, known)
    made = [
        one
        for listen in static_rules.frontends
        if (one := compose_frontend(Claims(), static_rules, ServerStates(), listen)) is not None
    ]
    checked = [one for one in made if any(has_check(one, server) for server in one.servers)]
    return checked, await failing(checked, at_most(CHECKS_AT_ONCE))


def _has_capability(number: int) -> bool:
    try:
        line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("CapEff:"))
        return bool(int(line.split()[1], 16) >> number & 1)
    except (OSError, StopIteration, ValueError):
        return False


def _sysctl(name: str, default: int) -> int:
    return _read_int(NET / name, default)


def _read_int(path: Path, default: int) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return default
