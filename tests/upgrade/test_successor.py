"""pylb/upgrade/successor.py: the process of a new one."""

import asyncio
import os
import resource
import signal
import socket
import subprocess
from contextlib import ExitStack

from pylb.upgrade.successor import Successor


def test_a_successor_is_ended_by_a_pylb_with_more_than_a_thousand_descriptors_too() -> None:
    """What failed there left the state held and the doors closed: `take_back` comes behind it."""

    async def end(pid: int) -> None:
        ours, theirs = socket.socketpair()
        successor = Successor(pid, ours)
        try:
            await successor.end()
        finally:
            successor.close()
            theirs.close()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        fd = 0
        while fd <= 1023:
            fd = os.open(os.devnull, os.O_RDONLY)
            stack.callback(os.close, fd)
        process = stack.enter_context(subprocess.Popen(["sleep", "60"]))
        stack.callback(process.kill)
        asyncio.run(end(process.pid))
        assert process.wait(0) == -signal.SIGKILL
