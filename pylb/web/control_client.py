"""The other end of the control socket: another process asks the running pylb. Loads no asyncio, for the shell's completion."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def call(path: Path, request: Mapping[str, Any], timeout: float = 30.0) -> dict[str, Any]:
    """Send a request to the running pylb from another process, and wait for its answer.

    Raises FileNotFoundError or ConnectionRefusedError if none is running; PermissionError; TimeoutError if a step takes
    longer than `timeout` seconds; ConnectionError if pylb closes the connection without an answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, reachable(path) as address:
        sock.settimeout(timeout)
        sock.connect(address)
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile("rb") as file:
            line = file.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("pylb ended the connection without an answer")
    answer: dict[str, Any] = json.loads(line)
    return answer


@contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name for `path` that fits into the 108 bytes of a unix address, however deep the directory is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
