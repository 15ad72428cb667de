"""Who follows the addresses of this machine; with netlink in tests/e2e/test_loops.py."""

import asyncio
import logging
import socket

import pytest

from pylb.host import addresses
from pylb.host.addresses import Addresses


async def test_without_netlink_the_addresses_are_checked_at_intervals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> socket.socket:
        raise OSError(93, "Protocol not supported")

    with caplog.at_level(logging.WARNING):
        looks, done = 0, asyncio.Event()

        async def look() -> None:
            nonlocal looks
            looks += 1
            if looks == 3:
                done.set()

        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", refused)
            patched.setattr(addresses, "LOOK", 0.001)
            task = asyncio.get_running_loop().create_task(Addresses(look).run())
            await done.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert "netlink is not available" in caplog.text
