"""A program in a terminal of its own: what is on its screen, and keys for it."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence
from typing import Self

import pyte

from tests.support.processes import ROOT

COLUMNS, LINES = 120, 40
KEYS = {"F5": "\x1b[15~", "F6": "\x1b[17~", "F7": "\x1b[18~", "F8": "\x1b[19~", "F9": "\x1b[20~", "F10": "\x1b[21~"}
DOWN = "\x1bOB"


class Terminal:
    """Runs `argv` on a pseudo terminal of 120 by 40. `sent`: all that it wrote, `text`: what is on the screen."""

    def __init__(self, argv: Sequence[str], **environment: str) -> None:
        self.sent = b""
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        environ = {"PATH": os.environ["PATH"], "TERM": "xterm", "LC_ALL": "C.UTF-8", "ESCDELAY": "25"}
        self.process = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, env=environ | environment, cwd=ROOT, start_new_session=True
        )
        os.close(slave)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while self.process.poll() is None or select.select([self._master], [], [], 0)[0]:
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    data = os.read(self._master, 65536)
                except OSError:  # EIO: nobody has the other end any more
                    return
                with self._lock:
                    self.sent += data
                    self._stream.feed(data)

    @property
    def text(self) -> str:
        with self._lock:
            return "\n".join(line.rstrip() for line in self._screen.display)

    def colour(self, word: str) -> str:
        """Of the first place where this stands on the screen."""
        with self._lock:
            row, column = next((row, line.index(word)) for row, line in enumerate(self._screen.display) if word in line)
            found: str = self._screen.buffer[row][column].fg
        return found

    def line(self, *words: str) -> str:
        """The first line that has all of these words, or ends of them (":443"); "" if there is none."""
        return next((line for line in self.text.splitlines() if all(_has(line, word) for word in words)), "")

    def press(self, *keys: str) -> None:
        for key in keys:
            os.write(self._master, KEYS.get(key, key).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._thread.join(5)
        os.close(self._master)


def _has(line: str, word: str) -> bool:
    return any(found == word or (word[0] == ":" and found.endswith(word)) for found in line.split())
