"""Which addresses this machine has, followed while pylb runs: a server at one that comes later may be pylb itself.

The kernel says so (rtnetlink(7), RTM_NEWADDR and RTM_DELADDR) to whoever listens on a netlink socket; nobody asks in vain.
What it says is not read: any message is a reason to look, and one that was lost for want of room (ENOBUFS) is one too.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

log = logging.getLogger("pylb")

GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR: linux/rtnetlink.h
SETTLE = 0.1  # seconds after a first message: an interface comes with several addresses
LOOK = 30.0  # seconds between two looks where there is no netlink (gVisor, a seccomp filter)


class Addresses:
    """Calls `on_change` after each message about an address; whether one of ours is another is its matter."""

    def __init__(self, on_change: Callable[[], Awaitable[None]]) -> None:
        self._on_change = on_change
        self._heard = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        except OSError as error:
            log.warning("addresses of this machine are looked at every %g s, for there is no netlink: %s", LOOK, error)
            return await self._look_now_and_then()
        with sock:
            sock.bind((0, GROUPS))
            loop.add_reader(sock.fileno(), self._drain, sock)
            try:
                await self._on_change()  # what came between the start's look and this socket
                while True:
                    await self._heard.wait()
                    await asyncio.sleep(SETTLE)
                    self._heard.clear()
                    await self._on_change()
            finally:
                loop.remove_reader(sock.fileno())

    def _drain(self, sock: socket.socket) -> None:
        """Messages are small, and a burst of them is one reason."""
        self._heard.set()
        with suppress(BlockingIOError):
            while True:
                try:
                    sock.recv(65536)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # some were lost: that is said once, and the rest can be read
                        raise

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            await self._on_change()
