"""The file with what this balancer remembers of the cluster over a restart: `cluster.json` in the state directory.

It is written behind the events, within a second or so, and read once. What it lacks is cleared up with etcd (core/merge): it is
an old disk then. Whether a start continues the presence of the one before is decided here: only where it is certain that this
is the same machine, up all the time, and the same directory, for the lock of the state says that the other process has let go
of it. So a copy of a machine, which has the name of the first one by mistake, is noticed.
"""

import json
import os
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from pylb.cluster.memory import UnreadableMemory, read_memory, write_memory
from pylb.cluster.sync import Presence
from pylb.control.storage.files import read_regular, set_aside, write_private
from pylb.core.merge.local import Memory

MOST = 1 << 28  # bytes
BOOT = Path("/proc/sys/kernel/random/boot_id")


class Remembered(NamedTuple):
    memory: Memory
    presence: Presence | None = None  # None: a new one is needed


class Diary:
    """For threads: of two that write at once, what is newer stays."""

    def __init__(self, state_dir: Path) -> None:
        self._dir = state_dir
        self._path = state_dir / "cluster.json"
        self._one = Lock()
        self._written = 0

    def read(self) -> tuple[Remembered, str]:
        """And what is wrong with it. Without it this balancer takes what is its own from etcd."""
        try:
            found = json.loads(read_regular(self._path, MOST))
            if not isinstance(found, dict):
                raise UnreadableMemory("it is not a JSON object")
            return Remembered(read_memory(found.get("memory")), self._presence(found.get("presence"))), ""
        except FileNotFoundError:
            return Remembered(Memory()), ""
        except OSError as error:
            return Remembered(Memory()), f"{self._path} cannot be read: {error.strerror}"
        except (ValueError, RecursionError) as error:
            return Remembered(Memory()), f"{self._path} is not usable: {str(error)[:200]}{set_aside(self._path)}"

    def write(self, remembered: Remembered, number: int) -> str:
        """What is wrong, if it cannot be. `number`: from 1 on, in the order in which they were made."""
        with self._one:
            if number <= self._written:
                return ""
            self._written = number
            return self._write(remembered)

    def _write(self, remembered: Remembered) -> str:
        presence = (
            None if remembered.presence is None else [remembered.presence.nonce, remembered.presence.lease, *self._here()]
        )
        memory = ",".join(f'"{key}":{_text(value)}' for key, value in write_memory(remembered.memory).items())
        try:
            write_private(self._path, f'{{"presence":{_text(presence)},"memory":{{{memory}}}}}'.encode())
        except OSError as error:
            return f"{self._path} cannot be written: {error.strerror}; after a restart this balancer asks etcd"
        return ""

    def _presence(self, found: object) -> Presence | None:
        if not isinstance(found, list) or len(found) != 4 or found[2:] != self._here():
            return None
        nonce, lease = found[:2]
        return Presence(nonce, lease) if isinstance(nonce, str) and type(lease) is int else None

    def _here(self) -> list[str]:
        """What a copy of the directory does not share, nor this machine after a reboot."""
        try:
            place = self._dir.stat()
            return [BOOT.read_text().strip(), f"{place.st_dev}:{place.st_ino}"]
        except OSError:
            return [f"unknown, process {os.getpid()}", ""]


def _text(value: object) -> str:
    """Item by item: one call of the encoder for all of them would hold the loop for a tenth of a second."""
    if isinstance(value, list):
        return f"[{','.join(json.dumps(one) for one in value)}]"
    return json.dumps(value)
