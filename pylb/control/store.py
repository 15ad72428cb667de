"""The durable snapshot: one JSON file in the state directory, whole or not at all.

Written temp -> fsync -> rename -> fsync(dir), so a crash at any instant leaves the old or the new generation; the old one
is kept as `state.json.previous`. A checksum over the canonical payload finds what a disk made of it. `version` N reads
N-1 and N+1 (which may only add keys), so one step of upgrade can be taken back. Only this process may write: `open` locks.
"""

import asyncio
import fcntl
import json
import os
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

VERSION = 1
READABLE = range(VERSION - 1, VERSION + 2)
MAX_BYTES = 64 << 20  # 20,000 registrations are 8 MiB
WRITE_TIMEOUT = 10.0  # seconds: a disk that hangs is a disk that fails

Payload = dict[str, Any]


class Json(str):
    """A value of the payload that is written already: a list of items, each as `canonical` writes it."""

    __slots__ = ()


class StateLocked(Exception):  # noqa: N818 - the state, not the program, is in this condition
    """Another pylb uses the state directory."""


class _Bad(Exception):  # noqa: N818 - as above
    """Not a snapshot we can use; the text says why."""


class Store:
    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "state.json"
        self.previous = state_dir / "state.json.previous"
        self.history = state_dir / "history.jsonl"
        self._dir = state_dir
        self._lock: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")  # one: writes keep their order

    def open(self) -> None:
        """Makes the directory (0700) and locks it. Raises StateLocked, OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # read-only is enough to lock, and works where the disk has turned read-only under us
        fd = os.open(self._dir / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            hint = "stop it, or give this one its own state_dir"
            raise StateLocked(f"another pylb uses the state directory {self._dir} ({hint})") from None
        self._lock = fd
        for leftover in self._dir.glob("state.json.new-*"):  # of a crash in mid-write; the lock says nobody writes now
            leftover.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Another process may `open` it now. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)  # the lock goes with it
            self._lock = None

    def close(self) -> None:
        """Waits for a write under way. Idempotent."""
        self._thread.shutdown(wait=True)
        self.unlock()

    def load(self) -> tuple[Payload | None, list[str]]:
        """(the last good generation or None, what was wrong on the way). A bad file is kept aside, never deleted."""
        complaints: list[str] = []
        for path in (self.path, self.previous):
            try:
                return _read(path), complaints
            except FileNotFoundError:
                continue
            except (_Bad, OSError) as error:
                complaints.append(f"{path.name} is not usable: {error}" + self._set_aside(path))
        return None, complaints

    def _set_aside(self, path: Path) -> str:
        for number in range(1, 100):
            aside = self._dir / f"state.json.bad-{number}"
            if not os.path.lexists(aside):
                try:
                    path.rename(aside)
                except OSError as error:
                    return f"; it could not be moved aside: {error}"
                return f"; it is kept as {aside.name}"
        return "; it is left where it is, there are 99 bad ones already"

    async def save(self, make: Callable[[], Payload]) -> None:
        """Returns when the payload is on disk. `make` runs in the writer's thread: it must only read frozen values.

        Raises OSError: nothing on disk has changed, or will. A write that hangs past its timeout is called off.
        """
        called_off = Event()
        writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write, make, called_off)
        try:
            async with asyncio.timeout(WRITE_TIMEOUT):
                await asyncio.shield(writing)
        except TimeoutError:
            called_off.set()
            writing.add_done_callback(lambda done: done.exception())  # its end is nobody's surprise any more
            raise TimeoutError("the disk did not answer in time") from None  # TimeoutError is an OSError

    def _write(self, make: Callable[[], Payload], called_off: Event) -> None:
        data = _encode(make())
        temporary = self._dir / f"state.json.new-{os.getpid()}"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if called_off.is_set():
                raise TimeoutError("called off")
            self._keep_previous()
            temporary.rename(self.path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._sync_directory()

    def _keep_previous(self) -> None:
        """A second name for the old generation, by rename too: at no instant is there none."""
        spare = self._dir / f"state.json.new-{os.getpid()}-previous"
        try:
            os.link(self.path, spare, follow_symlinks=False)
            spare.rename(self.previous)
        except FileNotFoundError:
            pass  # the first snapshot
        finally:
            with suppress(OSError):
                spare.unlink(missing_ok=True)

    def _sync_directory(self) -> None:
        fd = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _canonical(payload: Mapping[str, Any]) -> bytes:
    """Sorted keys, no blanks.

    Lists are encoded item by item: one call of the C encoder never lets go of the GIL, and 20,000 registrations in one
    piece would hold the loop for a tenth of a second.
    """
    parts = [f"{canonical(key)}:{_items(value)}" for key, value in sorted(payload.items())]
    return ("{" + ",".join(parts) + "}").encode()


def _items(value: Any) -> str:
    if isinstance(value, Json):
        return value
    return "[" + ",".join([canonical(item) for item in value]) + "]" if isinstance(value, list) else canonical(value)


def canonical(value: Any) -> str:
    """The one way to write it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _encode(payload: Payload) -> bytes:
    body = _canonical(payload)
    head = f'{{"version":{VERSION},"sha256":"{sha256(body).hexdigest()}","payload":'
    return head.encode() + body + b"}\n"


def _read(path: Path) -> Payload:
    """Raises _Bad, OSError."""
    # no symlink may lead us elsewhere, and a FIFO must not make the start wait for a writer
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise _Bad("it is no regular file")
        if info.st_size > MAX_BYTES:
            raise _Bad(f"it is {info.st_size} bytes long")
        data = file.read()
    try:
        outer = json.loads(data)
        version, checksum, payload = outer["version"], outer["sha256"], outer["payload"]
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise _Bad(f"it is empty, cut or garbage ({error})") from None
    if version not in READABLE:
        raise _Bad(f"it is of version {version!r}, this pylb reads {READABLE[0]} to {READABLE[-1]}")
    if not isinstance(payload, dict) or sha256(_canonical(payload)).hexdigest() != checksum:
        raise _Bad("its checksum does not match")
    return payload
