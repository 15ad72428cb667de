"""Files of the state directory: read without waiting for anybody, written whole, and set aside when they are garbage."""

import os
import stat
from contextlib import suppress
from pathlib import Path

PIECE = 1 << 16  # bytes that are read at once: a buffer is made for all that are asked for, however short the file is
MOST_ASIDE = 9  # of one file; then the oldest gives way


def read_regular(path: Path, most: int, *, follow: bool = True) -> bytes:
    """Never blocks: a FIFO or device in its place is refused (O_NONBLOCK, then fstat of what was opened).

    Raises OSError, ValueError for what is no regular file or larger than `most` bytes.
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
    if len(data) > most:  # it grew meanwhile, or is of a file system that knows no sizes
        raise ValueError(f"larger than {most} bytes")
    return bytes(data)


def set_aside(path: Path) -> str:
    """Moves garbage out of the way, so that somebody can look at it. What became of it, to end a complaint with."""
    places = [path.with_name(f"{path.name}.bad-{number}") for number in range(1, MOST_ASIDE + 1)]
    free = [place for place in places if not os.path.lexists(place)]
    try:
        place = free[0] if free else min(places, key=lambda one: one.lstat().st_mtime)
        path.rename(place)
    except OSError as error:
        return f"; it could not be moved aside: {error}"
    return f"; it is now {place.name}"


def write_private(path: Path, data: bytes, *, sync: bool = True) -> None:
    """0600 from its first byte, whole or not there; what was there, of whatever kind, gives way. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        temporary.unlink()  # of a process of before with our number
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
