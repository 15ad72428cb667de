"""pylb/host/machine.py: what /proc says, and the descriptors that must exist."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest

from pylb.host import machine
from pylb.host.machine import (
    MOST_LOOKUPS,
    as_owner,
    listeners_of,
    local_addresses,
    outgoing_address,
    raise_descriptor_limit,
    resolve,
)

# As the kernel prints them (net/ipv4/fib_trie.c, net/ipv6/addrconf.c), shortened.
FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 127.0.0.0/8 2 0 2
        +-- 127.0.0.0/31 1 0 0
           |-- 127.0.0.0
              /8 host LOCAL
           |-- 127.0.0.1
              /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     +-- 203.0.113.0/24 2 0 2
        |-- 203.0.113.0
           /24 link UNICAST
        |-- 203.0.113.9
           /32 host LOCAL
        |-- 203.0.113.255
           /32 link BROADCAST
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
20010db8000000000000000000000009 02 40 00 80     eth0
fe800000000000000000000000000001 02 40 20 80     eth0
"""


def test_the_machine_s_own_addresses_are_those_the_kernel_calls_local_without_loopback_and_link_local(
    tmp_path: Path,
) -> None:
    (tmp_path / "fib_trie").write_text(FIB_TRIE)
    (tmp_path / "if_inet6").write_text(IF_INET6)
    assert local_addresses(tmp_path) == {"203.0.113.9", "2001:db8::9"}


def test_a_kernel_without_ipv6_has_only_ipv4_addresses(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(FIB_TRIE)
    assert local_addresses(tmp_path) == {"203.0.113.9"}


def test_a_kernel_that_shows_nothing_has_no_addresses(tmp_path: Path) -> None:
    assert local_addresses(tmp_path) == frozenset()


def test_the_address_that_others_would_see_is_one_of_the_machine_s_or_loopback() -> None:
    address = outgoing_address()
    assert ip_address(address).is_loopback or address in local_addresses()


async def test_a_name_resolves_to_its_addresses_and_an_unknown_one_to_none() -> None:
    assert await resolve("127.0.0.1") == {"127.0.0.1"}
    assert await resolve("name..example") == frozenset()


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300));"
        "from pylb.host.machine import raise_descriptor_limit; print(raise_descriptor_limit());"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    said = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True, timeout=20).stdout
    assert said.split() == ["300", "300"]


def test_who_listens_on_many_ports_is_read_from_each_table_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once per port, and with 50 frontends `pylb doctor` took 4.5 s on a machine with many connections."""
    read, lines = [], machine._lines
    monkeypatch.setattr(machine, "_lines", lambda path: read.append(path) or lines(path))
    with socket.create_server(("127.0.0.1", 0)) as here:
        port = here.getsockname()[1]
        assert listeners_of({*range(1, 51), port})[port].endswith(f", pid {os.getpid()}")
    assert [path.name for path in read if path.parent.name == "net"] == ["tcp", "tcp6"]


def test_raising_the_limit_twice_changes_nothing() -> None:
    first = raise_descriptor_limit()
    assert raise_descriptor_limit() == first == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_closed_standard_descriptors_are_held_so_that_no_socket_gets_their_number() -> None:
    code = (
        "import os, socket; from pylb.host.machine import hold_standard_descriptors; hold_standard_descriptors();"
        "print('lost'); assert socket.socket().fileno() > 2; os.write({report}, b'held')"
    )
    read, write = os.pipe()
    try:
        script = f'exec "$0" -c "{code.format(report=write)}" <&- >&- 2>&-'
        ended = subprocess.run(("sh", "-c", script, sys.executable), check=False, pass_fds=(write,), timeout=20)
        assert ended.returncode == 0
        assert os.read(read, 16) == b"held"
    finally:
        for fd in (read, write):
            os.close(fd)


async def test_names_that_dns_does_not_answer_hold_so_many_threads_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = threading.Event(), []

    def silent(host: str, *_args: object, **_more: object) -> list[object]:
        asked.append(host)
        answers.wait(30)
        return []

    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "pylb-resolve"]

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    monkeypatch.setattr(machine, "RESOLVE_SECONDS", 0.2)
    found = await asyncio.gather(*(resolve(f"{number}.example.net") for number in range(200)), return_exceptions=True)
    assert all(isinstance(one, TimeoutError) for one in found)
    assert len(asked) == MOST_LOOKUPS
    answers.set()
    for thread in threads():
        await asyncio.to_thread(thread.join, 10)
    assert threads() == []
    assert await resolve("after.example.net") == frozenset()


@pytest.mark.root
@pytest.mark.parametrize("planted", ["the directory", "one above it", "its target"])
def test_root_acts_as_whoever_decides_where_a_directory_leads(tmp_path: Path, planted: str) -> None:
    """tmp_path is reachable for root alone, which is enough: only the identity matters."""
    somebody = 65534
    roots, theirs = tmp_path / "roots", tmp_path / "theirs"
    (roots / "state").mkdir(parents=True)
    theirs.mkdir()
    os.chown(theirs, somebody, somebody)
    match planted:
        case "the directory":
            directory = theirs / "state"
            directory.symlink_to(roots / "state")
            os.lchown(directory, somebody, somebody)
        case "one above it":
            (theirs / "link").symlink_to(roots)
            directory = theirs / "link" / "state"
        case _:
            directory = roots / "link"
            directory.symlink_to(theirs)
    with as_owner(directory):
        assert (os.geteuid(), os.getegid()) == (somebody, somebody)
    assert (os.geteuid(), os.getegid()) == (0, 0)
    with as_owner(roots / "state"):
        assert os.geteuid() == 0
