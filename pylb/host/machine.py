"""Facts about this machine: its addresses, its descriptor limit, our identity on it. Linux only, read from /proc."""

import asyncio
import importlib.resources
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pylb.core.address import Address

RESOLVE_SECONDS = 2.0
MOST_LOOKUPS = 32  # at once, each in a thread
_LOOKUPS = threading.BoundedSemaphore(MOST_LOOKUPS)


def raise_descriptor_limit() -> int:
    """Set RLIMIT_NOFILE's soft limit to the hard one (no privilege needed, setrlimit(2)) and return it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def worker_count(wanted: int | Literal["auto"]) -> int:
    """The config's `workers`: `auto` is one per processor that this process may use (sched_getaffinity(2))."""
    return len(os.sched_getaffinity(0)) if wanted == "auto" else wanted


def reap_strangers(ours: Collection[int]) -> None:
    """For process 1 of a container: reap children that are not `ours`, orphans of whatever else ran in it (waitid(2)).

    Ours are reaped by whoever started them; one that has just ended delays the others until that is done.
    """
    try:
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if ended.si_pid in ours:
                return
            os.waitpid(ended.si_pid, 0)
    except ChildProcessError:
        pass  # no such child


def hold_standard_descriptors() -> None:
    """Make sure that 0, 1 and 2 are open: the next socket would get the number of a closed one, and lines meant for stdout.

    libuv would abort the process because of it (an assertion in uv__close).
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # open(2) gives the lowest free number
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - for the process's life
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


class ControllingTerminal:
    """The terminal that this process was started on. Asked after a SIGHUP: does it mean that the terminal was closed?

    A descriptor of one that was closed is not a terminal any more (EIO, tty_ioctl(4)). `nohup` ignores SIGHUP from the start:
    then the process is meant to live on.
    """

    def __init__(self) -> None:
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._fds = () if nohup else tuple(fd for fd in (0, 1, 2) if os.isatty(fd))

    def is_closed(self) -> bool:
        return not all(os.isatty(fd) for fd in self._fds)


def local_addresses(proc: Path = Path("/proc/net")) -> frozenset[str]:
    """The addresses of all interfaces except loopback, without netlink: from fib_trie (IPv4) and if_inet6.

    A kernel that lacks one of the files has no addresses of that family.
    """
    return frozenset(_ipv4(_lines(proc / "fib_trie")) | _ipv6(_lines(proc / "if_inet6")))


async def resolve(host: str) -> frozenset[str]:
    """The addresses of a name, empty if it has none at the moment. Raises TimeoutError after RESOLVE_SECONDS.

    In a separate daemon thread: getaddrinfo cannot be cancelled, and at the end a loop waits for its executor. So a DNS
    server that does not answer occupies threads (for 10 s, resolv.conf(5)), at most MOST_LOOKUPS of them at once.
    """
    if not _LOOKUPS.acquire(blocking=False):
        raise TimeoutError(f"{MOST_LOOKUPS} names are already being looked up")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[frozenset[str]] = loop.create_future()

    def tell(found: frozenset[str]) -> None:
        if not answer.done():
            answer.set_result(found)

    def ask() -> None:
        try:
            loop.call_soon_threadsafe(tell, _resolve(host))
        except RuntimeError:
            pass  # the loop has been closed: nobody waits any more
        finally:
            _LOOKUPS.release()

    try:
        threading.Thread(target=ask, name="pylb-resolve", daemon=True).start()
    except RuntimeError as error:  # no thread could be started
        _LOOKUPS.release()
        raise TimeoutError(str(error)) from None
    async with asyncio.timeout(RESOLVE_SECONDS):
        return await answer


def _resolve(host: str) -> frozenset[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # UnicodeError: a label that IDNA does not allow
        return frozenset()
    return frozenset(str(entry[4][0]) for entry in found)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _ipv4(lines: list[str]) -> set[str]:
    """In fib_trie a leaf "|-- 192.0.2.1" is followed by its kinds; "/32 host LOCAL" marks one of our addresses."""
    found, leaf = set(), ""
    for line in lines:
        text = line.strip()
        if text.startswith("|-- "):
            leaf = text[4:]
        elif text == "/32 host LOCAL" and not ip_address(leaf).is_loopback:
            found.add(leaf)
    return found


def _ipv6(lines: list[str]) -> set[str]:
    """Each line of if_inet6 starts with 32 hex digits (proc(5))."""
    addresses = (ip_address(bytes.fromhex(line.split()[0])) for line in lines if line.strip())
    return {str(address) for address in addresses if not (address.is_loopback or address.is_link_local)}


def outgoing_address() -> str:
    """The address that others would see, according to the routing table: connecting a UDP socket sends nothing (udp(7)).

    192.0.2.1 is documentation space (RFC 5737); only the route to it is looked up. Loopback if there is no route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])


def deployed(name: str) -> str:
    """The text of a file from deploy/, which a wheel contains below pylb/data (force-include in pyproject.toml)."""
    packaged = importlib.resources.files("pylb") / "data" / name
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).resolve().parents[2] / "deploy" / name).read_text(encoding="utf-8")


async def knock(ip: str, port: int, expect: Callable[[Address], Awaitable[None]]) -> str:
    """The outcome of a connect from this machine: yes, refused, timeout, or the kernel's words. `expect` is called first, with
    the address that the connect will come from."""
    where = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)
    with socket.socket(socket.AF_INET6 if ":" in where else socket.AF_INET) as sock:
        sock.settimeout(2.0)
        try:
            sock.bind((where, 0))  # one of our addresses, like that of the port
            await expect(Address(where, sock.getsockname()[1]))
            await asyncio.to_thread(sock.connect, (where, port))
        except ConnectionRefusedError:
            return "refused"
        except ConnectionResetError:
            pass  # it was accepted and closed at once
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return error.strerror or str(error)
    return "yes"


def listeners_of(ports: Collection[int], proc: Path = Path("/proc")) -> dict[int, str]:
    """`NAME, pid N` for the processes that listen on these TCP ports and are visible (only root sees those of others)."""
    port_of = {
        f"socket:[{fields[9]}]": port
        for table in ("net/tcp", "net/tcp6")
        for line in _lines(proc / table)[1:]
        if len(fields := line.split()) > 9 and fields[3] == "0A"  # LISTEN
        if (port := int(fields[1].rpartition(":")[2], 16)) in ports
    }
    found: dict[int, str] = {}
    for process in proc.iterdir() if port_of else ():
        if not process.name.isdigit():
            continue
        for port in {port_of[link] for link in _links(process / "fd") if link in port_of} - found.keys():
            found[port] = f"{''.join(_lines(process / 'comm')).strip()}, pid {process.name}"
    return found


def open_files_of_lock_holders(proc: Path = Path("/proc")) -> Iterator[Path]:
    """What processes that hold a lock on some file (flock(2)) have open, as far as this user may look (proc_locks(5))."""
    holders = {fields[4] for line in _lines(proc / "locks") if len(fields := line.split()) > 4 and fields[1] == "FLOCK"}
    for pid in sorted(holders):
        yield from map(Path, _links(proc / pid / "fd"))


def _links(folder: Path) -> Iterator[str]:
    """Leaves out what we may not read, or what has disappeared meanwhile."""
    try:
        for one in folder.iterdir():
            try:
                yield os.readlink(one)
            except OSError:
                continue
    except OSError:
        return


def _first_of_another(directory: Path) -> os.stat_result | None:
    """The nearest part of a path that does not belong to root: itself, the target of a link, or a directory around it."""
    for start in (directory.absolute(), directory.resolve()):
        for part in (start, *start.parents):
            try:
                found = part.lstat()
            except OSError:
                continue  # it does not exist yet
            if found.st_uid != 0:
                return found
    return None


@contextmanager
def as_owner(directory: Path) -> Iterator[None]:
    """Root acts as the user who owns `directory` or decides where it leads. So what it writes is readable for the service, and
    a compromised service cannot plant a link, there or in place of the directory, that leads root astray."""
    found = _first_of_another(directory)
    if found is None or os.geteuid() != 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups([found.st_gid])
    os.setegid(found.st_gid)
    os.seteuid(found.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
