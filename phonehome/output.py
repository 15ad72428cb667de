"""What a process of ours prints: its log, and the text that was asked for."""

from __future__ import annotations

import os
import ssl
import sys
import threading
from collections.abc import Callable, Iterable

from phonehome.settings import SettingsError
from phonehome.values import Endpoint


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


def misused(exc: SettingsError | ssl.SSLError | ValueError) -> int:
    """Say what is wrong with the environment, or with the certificate in PYLB_CA; the exit code."""
    if isinstance(exc, SettingsError):
        problems = list(exc.problems)
    else:
        reason = exc.reason if isinstance(exc, ssl.SSLError) else None
        problems = [f"PYLB_CA: contains no usable certificate ({reason or exc})"]
    for problem in problems:
        print(f"phonehome: {problem}", file=sys.stderr)
    return 2


def warn_of_plain_http(endpoints: Iterable[Endpoint], log: Callable[[str], None]) -> None:
    for endpoint in endpoints:
        if endpoint.exposes_token:
            log(f"{endpoint.label}: plain http: anyone on the path can read the token")


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
