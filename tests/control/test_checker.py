"""Dials of real ports, on both kinds of loop."""

import asyncio
import os
import resource
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from pylb.control.checker import dial
from pylb.core.address import Address
from tests.control.harness import NODE_A, black_hole, free_ports, target

Run = Callable[[Coroutine[Any, Any, object]], object]
loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@loops
def test_who_listens_answers(run: Run) -> None:
    (port,) = free_ports(1)
    with target(port):
        assert run(dial(Address(NODE_A, port), 1.0)) == "yes"


@loops
def test_who_does_not_listen_refuses(run: Run) -> None:
    (port,) = free_ports(1)
    assert run(dial(Address(NODE_A, port), 1.0)) == "refused"
    assert run(dial(Address("::1", port), 1.0)) == "refused"


@loops
def test_who_drops_the_syn_times_out(run: Run) -> None:
    (port,) = free_ports(1)
    with black_hole(port):
        assert run(dial(Address(NODE_A, port), 0.1)) == "timeout"


@loops
def test_where_no_route_leads_is_unreachable(run: Run) -> None:
    assert run(dial(Address("255.255.255.255", 30443), 1.0)) == "unreachable"


@loops
def test_no_dial_leaves_a_descriptor_behind(run: Run) -> None:
    (closed, hole, listening) = free_ports(3)

    async def many() -> tuple[int, int]:
        await dial(Address(NODE_A, closed), 1.0)  # whatever the loop itself opens lazily
        before = open_fds()
        ports = (closed, hole, listening) * 5
        await asyncio.gather(*(dial(Address(NODE_A, port), 0.1) for port in ports))
        return before, open_fds()

    with black_hole(hole), target(listening):
        before, after = run(many())  # type: ignore[misc]
    assert before == after


@loops
def test_without_descriptors_nothing_is_said_of_the_target(run: Run) -> None:
    async def starved() -> str:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            return await dial(Address(NODE_A, 30443), 1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert run(starved()) == "resource"
