"""What this machine is: its addresses, its descriptor limit, who we are on it. Linux only, read from /proc."""

import os
import resource
import socket
from ipaddress import ip_address
from pathlib import Path

RESOLVE_SECONDS = 2.0


def raise_descriptor_limit() -> int:
    """Set RLIMIT_NOFILE's soft limit to the hard one (no privilege needed, setrlimit(2)) and return it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) - 1  # one is the listing's own


def local_addresses(proc: Path = Path("/proc/net")) -> frozenset[str]:
    """The addresses of all interfaces, loopback left out, without netlink: from fib_trie (IPv4) and if_inet6.

    A kernel without one of the two files has none of that family.
    """
    return frozenset(_ipv4(_lines(proc / "fib_trie")) | _ipv6(_lines(proc / "if_inet6")))


def resolve(host: str) -> frozenset[str]:
    """The addresses of a name, empty when it has none just now. Blocks: call it in a thread."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return frozenset()
    return frozenset(str(entry[4][0]) for entry in found)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _ipv4(lines: list[str]) -> set[str]:
    """In fib_trie a leaf "|-- 192.0.2.1" is followed by its kinds; "/32 host LOCAL" marks an address of ours."""
    found, leaf = set(), ""
    for line in lines:
        text = line.strip()
        if text.startswith("|-- "):
            leaf = text[4:]
        elif text == "/32 host LOCAL" and not ip_address(leaf).is_loopback:
            found.add(leaf)
    return found


def _ipv6(lines: list[str]) -> set[str]:
    """if_inet6 has 32 hex digits first (proc(5))."""
    addresses = (ip_address(bytes.fromhex(line.split()[0])) for line in lines if line.strip())
    return {str(address) for address in addresses if not (address.is_loopback or address.is_link_local)}


def outgoing_address() -> str:
    """The address that others would see, as the routing table says: connecting a UDP socket sends nothing (udp(7)).

    192.0.2.1 is documentation space (RFC 5737); only the route to it is asked for. Loopback where there is no route.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(sock.getsockname()[0])
