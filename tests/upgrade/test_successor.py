"""pylb/upgrade/successor.py: the process of a new one."""

import os
import resource
import signal
import socket
import subprocess
from contextlib import ExitStack

from pylb.upgrade.successor import Successor


async def test_a_successor_is_ended_by_a_pylb_with_more_than_a_thousand_descriptors_too() -> None:
    """What failed there left the state held and the doors closed: `take_back` comes behind it."""
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
        ours, theirs = socket.socketpair()
        stack.callback(theirs.close)
        successor = Successor(process.pid, ours)
        stack.callback(successor.close)
        await successor.end()
        assert process.wait(0) == -signal.SIGKILL
