"""Files of the state directory: read without blocking, written atomically, and set aside when they are damaged."""

import os
import stat
from contextlib import suppress
from pathlib import Path

PIECE = 1 << 16  # bytes per read: a buffer of the requested size is allocated, however short the file is
MOST_ASIDE = 9  # per file; then the oldest is replaced


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """Never blocks: a FIFO or device in its place is refused (O_NONBLOCK, then fstat of what was opened).

    Raises OSError, and ValueError for anything but a regular file of at most `most` bytes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError("not a regular file")
        if info.st_size > most:
            raise ValueError(f"larger than {most} bytes")
        data = bytearray()
        while len(data) <= most and (piece := os.read(fd, min(PIECE, most + 1 - len(data)))):
            data += piece
    finally:
        os.close(fd)
    if len(data) > most:  # it grew meanwhile, or its file system reports no sizes
        raise ValueError(f"larger than {most} bytes")
    return bytes(data)


def set_aside(path: Path) -> str:
    """Move a damaged file aside for inspection. Returns the outcome, as the end of a complaint."""
    places = [path.with_name(f"{path.name}.bad-{number}") for number in range(1, MOST_ASIDE + 1)]
    free = [place for place in places if not os.path.lexists(place)]
    try:
        place = free[0] if free else min(places, key=lambda one: one.lstat().st_mtime)
        path.rename(place)
    except OSError as error:
        return f"; it could not be moved aside: {error}"
    return f"; it is now {place.name}"


def write_private(path: Path, data: bytes, *, sync: bool = True) -> None:
    """0600 from its first byte, atomic; replaces whatever was there. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        temporary.unlink()  # left by a previous process with our pid
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        try:
            temporary.rename(path)
        except IsADirectoryError:
            set_aside(path)
            temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
