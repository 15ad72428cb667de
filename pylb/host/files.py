"""Files whose changes count without a reload: checked once a second (stat(2), in a thread: a disk may hang)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

PERIOD = 1.0  # seconds

_Signature = dict[Path, tuple[int, int, int, int] | None]


class Watch:
    """Calls `on_change` at the first look, and whenever one of `files()` has changed, disappeared or appeared since the last.

    At the first look too, because what was read at the start may be older: a file that was replaced between that reading and
    the look would otherwise stay unnoticed until its next change, which for a renewed certificate is months away.
    """

    def __init__(self, files: Callable[[], Iterable[Path]], on_change: Callable[[], Awaitable[None]]) -> None:
        self._files = files
        self._on_change = on_change
        self._seen: _Signature | None = None

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            await self.look()

    async def look(self) -> None:
        """One look. The next one notices a file that changes while `on_change` reads it."""
        now = await asyncio.to_thread(lambda: signature(self._files()))
        if now != self._seen:
            await self._on_change()
            self._seen = now  # after `on_change`: if that fails, it is tried again


def signature(files: Iterable[Path]) -> _Signature:
    """What changes with a file's state: device, inode, size and time. Links are followed, because Kubernetes replaces them."""
    return {path: _one(path) for path in files}


def _one(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
