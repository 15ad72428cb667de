"""The durable snapshot: one JSON file in the state directory, whole or not at all.

Written temp -> fsync -> rename -> fsync(dir), so a crash at any instant leaves the old or the new generation; the old one
is kept as `state.json.previous`. A checksum over the canonical payload finds what a disk made of it. `version` N reads
N-1 and N+1 (which may only add keys), so one step of upgrade can be taken back. Only this process may write: `open` locks.
"""

import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from errno import EINVAL, EIO, ENOTSUP
from hashlib import sha256
from pathlib import Path
from typing import Any

from pylb.control.storage.disk import Disk, Job, Unsynced
from pylb.control.storage.files import read_regular, set_aside

VERSION = 1
READABLE = range(VERSION - 1, VERSION + 2)
MAX_BYTES = 64 << 20  # 20,000 registrations are 8 MiB
_HASHED = 1 << 16  # bytes
_BUFFER = 1 << 18  # bytes of a write; small enough to stay in the processor's cache

Payload = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Json:
    """A list of the payload that is written already: items as `canonical` writes them, with a comma between two, in pieces
    between which one is missing."""

    pieces: Sequence[bytes]


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
        self._disk = Disk()

    def open(self) -> None:
        """Makes the directory (0700) and locks it. Raises StateLocked, OSError."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = _open_lock(self._dir / "lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            hint = "stop it, or give this one its own state_dir"
            raise StateLocked(f"another pylb uses the state directory {self._dir} ({hint})") from None
        self._lock = fd
        for pattern in (
            "state.json.new-*",
            f".{self.history.name}.*",
        ):  # of a crash in mid-write; the lock says nobody writes now
            for leftover in self._dir.glob(pattern):
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)

    def unlock(self) -> None:
        """Another process may `open` it now. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)  # the lock goes with it
            self._lock = None

    def close(self) -> None:
        """Nothing is written from here on; a write that hangs is not waited for. Idempotent."""
        self._disk.close()
        self.unlock()

    def load(self) -> tuple[Payload | None, list[str]]:
        """(the last good generation or None, what was wrong on the way). A bad file is kept aside, never deleted."""
        complaints: list[str] = []
        for path in (self.path, self.previous):
            try:
                payload = _read(path)
            except FileNotFoundError:
                continue
            except (_Bad, OSError) as error:
                complaints.append(f"{path.name} is not usable: {error}{set_aside(path)}")
                continue
            if path is self.previous and not complaints:  # nobody but a hand removes it: a write never leaves none
                complaints.append(f"{self.path.name} is missing: {path.name}, the generation before it, is used")
            return payload, complaints
        return None, complaints

    async def save(self, make: Callable[[], Payload]) -> None:
        """Returns when the payload is on disk.

        `make` runs in the disk's thread: what it reads is frozen, or is safe to read while the loop changes it.
        Raises Unsynced: it is there for whoever reads it, and only a loss of power may still undo it. Raises OSError: nothing
        on disk has changed, or will; a TimeoutError, if the disk hangs.
        """
        await self._disk.run(lambda job: self._write(make, job))

    async def run(self, work: Callable[[], None]) -> None:
        """Something else that is written there, in its turn. Raises OSError; after a TimeoutError it may still happen."""
        await self._disk.run(lambda _job: work())

    def _write(self, make: Callable[[], Payload], job: Job) -> None:
        pieces = job.computed(lambda: _encode(make()))
        temporary = self._dir / f"state.json.new-{os.getpid()}"
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with open(fd, "wb", buffering=_BUFFER) as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            self._keep_previous()
            job.commit()
            temporary.rename(self.path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        try:
            self._sync_directory()
        except OSError as error:
            raise Unsynced(error.errno, f"{error.strerror}, for the directory") from None

    def _keep_previous(self) -> None:
        """The old generation under a second name, by rename too: at no instant is there none."""
        spare = self._dir / f"state.json.new-{os.getpid()}-previous"
        try:
            try:
                os.link(self.path, spare, follow_symlinks=False)
            except FileNotFoundError:
                raise
            except OSError:  # FAT and SMB have no hard links
                spare.write_bytes(read_regular(self.path, MAX_BYTES, follow=False))
                spare.chmod(0o600)
            spare.rename(self.previous)
        except FileNotFoundError:
            pass  # the first snapshot
        except ValueError as error:
            raise OSError(EIO, f"{self.path.name} is {error}") from None
        finally:
            with suppress(OSError):
                spare.unlink(missing_ok=True)

    def _sync_directory(self) -> None:
        fd = os.open(self._dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (EINVAL, ENOTSUP):  # file systems that cannot say it of a directory
                raise
        finally:
            os.close(fd)


def _open_lock(path: Path) -> int:
    """Raises OSError. What is there and not a file is garbage: nobody can have locked it."""
    # Read-only is enough to lock, and works where the disk has turned read-only under us.
    flags = os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        set_aside(path)
    return os.open(path, flags, 0o600)


def _canonical(payload: Mapping[str, Any]) -> Iterator[bytes]:
    """Sorted keys, no blanks; in pieces that nobody joins: each copy of some megabytes would take the processor's caches from
    the loop, whose next steps cost twice as much then.

    Lists are encoded item by item: one call of the C encoder never lets go of the GIL, and 20,000 registrations in one
    piece would hold the loop for a tenth of a second.
    """
    yield b"{"
    for number, (key, value) in enumerate(sorted(payload.items())):
        yield (("," if number else "") + canonical(key) + ":").encode()
        if not isinstance(value, Json | list):
            yield canonical(value).encode()
            continue
        yield b"["
        for place, piece in enumerate(value.pieces if isinstance(value, Json) else map(_written, value)):
            if place:
                yield b","
            yield piece
        yield b"]"
    yield b"}"


# The one way to write it: one encoder, because `json.dumps` makes one for each call.
canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def _written(value: Any) -> bytes:
    return canonical(value).encode()


def _encode(payload: Payload) -> list[bytes]:
    """The file, in pieces."""
    body = list(_canonical(payload))
    head = f'{{"version":{VERSION},"sha256":"{_checksum(body)}","payload":'
    return [head.encode(), *body, b"}\n"]


def _checksum(pieces: Iterable[bytes]) -> str:
    """In parts of some size: hashlib lets go of the GIL for each, and a busy loop may keep it for 5 ms."""
    found = sha256()
    part: list[bytes] = []
    size = 0
    for piece in pieces:
        part.append(piece)
        size += len(piece)
        if size >= _HASHED:
            found.update(b"".join(part))
            part, size = [], 0
    found.update(b"".join(part))
    return found.hexdigest()


def _read(path: Path) -> Payload:
    """Raises _Bad, OSError."""
    try:
        data = read_regular(path, MAX_BYTES, follow=False)  # no symlink may lead us elsewhere
    except ValueError as error:
        raise _Bad(f"it is {error}") from None
    try:
        outer = json.loads(data)
        version, checksum, payload = outer["version"], outer["sha256"], outer["payload"]
        if version not in READABLE:
            raise _Bad(f"it is of version {version!r:.40}, this pylb reads {READABLE[0]} to {READABLE[-1]}")
        # NaN and 1e999, which json reads, have no canonical form: a ValueError
        if not isinstance(payload, dict) or _checksum(_canonical(payload)) != checksum:
            raise _Bad("its checksum does not match")
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise _Bad(f"it is empty, cut or garbage ({error})") from None
    return payload
