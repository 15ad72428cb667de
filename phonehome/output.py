"""What a process of ours prints: its log, and the text that was asked for."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def show(text: str) -> int:
    """Print to stdout; the exit code."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as exc:
        print(f"phonehome: the output could not be written: {exc.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the exit tries to write the rest again
        return 1
    return 0


def logger() -> Callable[[str], None]:
    lock = threading.Lock()

    def log(line: str) -> None:
        with lock:
            try:
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            except (OSError, ValueError):
                pass  # nobody reads the log (a closed pipe, a full disk): the heartbeats matter more

    return log
