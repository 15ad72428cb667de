"""The process of a successor: how it is started, signalled and ended."""

import asyncio
import errno
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from pylb.upgrade.protocol import VARIABLE, Conversation

# Forks once more and reports the pid: so the successor is a child of process 1 from the start, which reaps it.
_LAUNCHER = """
import os, signal, sys
tell = int(sys.argv[1])
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, signal.SIG_IGN)  # until the new one handles them: by default they kill, and exec keeps this
if pid := os.fork():
    os.write(tell, b"%d" % pid)
    os._exit(0)
os.close(tell)
os.execvp(sys.argv[2], sys.argv[2:])
"""
ENDED = 10.0  # until a killed process is gone


class Successor:
    """The successor's process, which is not our child, and the channel to it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        """Raises OSError: it has ended already. The channel is taken over only if the process lives."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self.conversation = Conversation(channel)

    def signal(self, number: signal.Signals) -> bool:
        """Send it a signal. False: it has ended. The signal never hits another process that got its pid."""
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    @property
    def has_ended(self) -> bool:
        return _wait_for(self._fd, 0)

    async def end(self) -> None:
        """Kill it: it is not the service, and its workers end with their sessions. Idempotent."""
        self.signal(signal.SIGKILL)
        await asyncio.to_thread(_wait_for, self._fd, ENDED)

    def close(self) -> None:
        self.conversation.close()
        os.close(self._fd)


def _wait_for(pidfd: int, seconds: float) -> bool:
    """Wait for the end of a process. Has it ended?

    Not select(2): it takes no descriptor above 1023, and ours may be a hundred thousand.
    """
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))


async def launch(channel: socket.socket, environ: Mapping[str, str]) -> int:
    """Start whatever is installed now. Returns its pid. Raises OSError."""
    left_out = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")  # these are about this process
    environment = {key: value for key, value in environ.items() if key not in left_out}
    environment[VARIABLE] = str(channel.fileno())
    program = await asyncio.to_thread(command)
    heard, writer = os.pipe()
    argv = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(writer), *program]
    try:
        try:
            launcher = await asyncio.create_subprocess_exec(*argv, pass_fds=(channel.fileno(), writer), env=environment)
        finally:
            os.close(writer)
        pid = await asyncio.to_thread(os.read, heard, 20)  # empty if the launcher failed before that
        await launcher.wait()
        if not pid:
            raise OSError(errno.ECHILD, "its launcher has failed")
        return int(pid)
    finally:
        os.close(heard)


def command() -> list[str]:
    """How this pylb was started. A script is started by its path, so that a link to a new version takes effect."""
    script = Path(sys.argv[0])
    if script.name != "__main__.py" and os.access(script, os.X_OK):
        return [str(script), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]
