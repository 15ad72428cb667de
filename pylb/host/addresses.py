"""The addresses of this machine, followed while pylb runs: a server at an address that is added later may be pylb itself.

The kernel reports changes (rtnetlink(7), RTM_NEWADDR and RTM_DELADDR) on a netlink socket, so no polling is needed. The content
of a message is not read: any message is a reason to look, and so is one that was lost because the buffer was full (ENOBUFS).
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

log = logging.getLogger("pylb")

GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR: linux/rtnetlink.h
SETTLE = 0.1  # seconds after the first message: an interface is added with several addresses
LOOK = 30.0  # seconds between two looks if there is no netlink (gVisor, a seccomp filter)


class Addresses:
    """Calls `on_change` after each message about an address. The callee finds out whether anything has changed."""

    def __init__(self, on_change: Callable[[], Awaitable[None]]) -> None:
        self._on_change = on_change
        self._heard = asyncio.Event()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        except OSError as error:
            log.warning("this machine's addresses are checked every %g s, because netlink is not available: %s", LOOK, error)
            return await self._look_now_and_then()
        with sock:
            sock.bind((0, GROUPS))
            loop.add_reader(sock.fileno(), self._drain, sock)
            try:
                await self._on_change()  # for changes between the look at the start and the opening of this socket
                while True:
                    await self._heard.wait()
                    await asyncio.sleep(SETTLE)
                    self._heard.clear()
                    await self._on_change()
            finally:
                loop.remove_reader(sock.fileno())

    def _drain(self, sock: socket.socket) -> None:
        """Messages are small, and a burst of them is one reason to look."""
        self._heard.set()
        with suppress(BlockingIOError):
            while True:
                try:
                    sock.recv(65536)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:  # some were lost: reported once, and the rest can be read
                        raise

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            await self._on_change()
