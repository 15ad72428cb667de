"""Who is served on a port of IPv4, of IPv6 alone, or of both: by one process, by workers, and from a unit's sockets."""

import os
import socket
from contextlib import ExitStack
from typing import Any

import pytest

from tests.app.conftest import echo_server
from tests.app.instance import Instance, echo
from tests.app.systemd import Systemd

BOTH = pytest.mark.parametrize("workers", [0, 2])
LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}
CLIENTS = 8  # of each family: with SO_REUSEPORT each of two workers gets some


def frontend(name: str, ip: str, port: int, server: int) -> dict[str, Any]:
    return {"name": name, "listen": f"{ip}:{port}", "servers": [f"127.0.0.1:{server}"]}


def served(pylb: Instance, ip: str) -> bool:
    """All of its clients, or none: False."""
    try:
        with ExitStack() as stack:
            socks = [stack.enter_context(socket.create_connection((ip, pylb.port), timeout=10)) for _ in range(CLIENTS)]
            assert all(echo(sock) == b"ping" for sock in socks)
    except ConnectionRefusedError:
        return False
    return True


def counted(pylb: Instance) -> dict[str, int]:
    """Sessions since the start, by frontend."""
    return {one["frontend"]: one["sessions_total"] for one in pylb.get("/v1/sessions").json["frontends"]}


@BOTH
@pytest.mark.parametrize(
    ("ip", "families"), [("[::]", {"IPv6"}), ("0.0.0.0", {"IPv4"}), ("*", {"IPv4", "IPv6"})], ids=["v6only", "v4", "any"]
)
def test_a_wildcard_serves_its_family_and_no_other(
    pylb: Instance, echo_port: int, workers: int, ip: str, families: set[str]
) -> None:
    """Whatever net.ipv6.bindv6only says."""
    pylb.configure(workers=workers, frontends=[frontend("web", ip, pylb.port, echo_port)])
    pylb.start()
    assert {family for family, loopback in LOOPBACK.items() if served(pylb, loopback)} == families


@BOTH
def test_two_frontends_may_share_a_port_one_for_each_family(pylb: Instance, echo_port: int, workers: int) -> None:
    with echo_server() as other:
        pylb.configure(
            workers=workers,
            frontends=[frontend("four", "0.0.0.0", pylb.port, echo_port), frontend("six", "[::]", pylb.port, other)],
        )
        pylb.start()
        assert all(served(pylb, ip) for ip in LOOPBACK.values())
        assert counted(pylb) == {"four": CLIENTS, "six": CLIENTS}


@BOTH
def test_so_they_may_with_the_sockets_of_a_unit(pylb: Instance, systemd: Systemd, echo_port: int, workers: int) -> None:
    """BindIPv6Only=ipv6-only, as the log says where a frontend on `*` cannot have both."""
    pylb.configure(
        workers=workers,
        frontends=[frontend("four", "0.0.0.0", pylb.port, echo_port), frontend("six", "[::]", pylb.port, echo_port)],
    )
    for family, ip in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.create_server((ip, pylb.port), family=family, dualstack_ipv6=False) as listener:
            systemd.store.append(("unit", os.dup(listener.fileno())))
    with ExitStack() as stack:
        early = [
            stack.enter_context(socket.create_connection((ip, pylb.port), timeout=20))
            for ip in LOOPBACK.values()
            for _ in range(CLIENTS)
        ]
        process = systemd.start(pylb)
        assert all(echo(sock) == b"ping" for sock in early)  # who waited in the unit's sockets
    systemd.until("READY")
    assert all(served(pylb, ip) for ip in LOOPBACK.values())
    assert "clients of" not in process.text()  # "IPv6 clients of … are refused"
    assert counted(pylb) == {"four": 2 * CLIENTS, "six": 2 * CLIENTS}
