"""The generations of the table: what each changed, who asked for it, and when."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pylb.core.address import parse_address, parse_listen
from pylb.core.changes import PASSING, Line, What

KEPT = 1000  # of each kind
MOST_BYTES = 8 << 20  # of the file; then it is written anew with what is kept


@dataclass(frozen=True, slots=True)
class Generation:
    number: int
    at: float  # unix time
    by: tuple[str, ...]  # who: tokens with their addresses, admin, reload, leases, health, names
    lines: tuple[Line, ...]


class History:
    """The last 1,000 that somebody asked for, and apart from them the last 1,000 moves and changes of state: an app that
    wanders must not push out who opened its port.

    Kept over restarts in a file with a JSON object a line. It is a record, not the state: lines are appended without fsync,
    and a crash may cost the last half second.
    """

    def __init__(self, wall: Callable[[], float], path: Path) -> None:
        self._wall = wall
        self._path = path
        self._asked: deque[Generation] = deque(maxlen=KEPT)
        self._passing: deque[Generation] = deque(maxlen=KEPT)
        self._unwritten: deque[Generation] = deque(maxlen=2 * KEPT)

    def note(self, number: int, by: Iterable[str], lines: Iterable[Line]) -> None:
        one = Generation(number, self._wall(), tuple(by), tuple(lines))
        self._keep(one)
        self._unwritten.append(one)

    def _keep(self, one: Generation) -> None:
        kind = self._passing if all(line.what in PASSING for line in one.lines) else self._asked
        kind.append(one)

    def restore(self) -> None:
        """What the file has; a line that cannot be read costs only itself, a file that cannot is no history."""
        with suppress(OSError), self._path.open("rb") as file:
            for line in file.read(2 * MOST_BYTES).split(b"\n"):
                with suppress(ValueError, LookupError, TypeError):
                    self._keep(_decoded(json.loads(line)))

    @property
    def has_news(self) -> bool:
        return bool(self._unwritten)

    def write(self) -> None:
        """Appends what is new; to be run in a thread. Raises OSError: it stays new."""
        new = list(self._unwritten)
        mode = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path, mode | os.O_APPEND, 0o600)
        with open(fd, "wb") as file:
            anew = os.fstat(file.fileno()).st_size > MOST_BYTES
            if not anew:
                file.write(_encoded(new))
        if anew:
            temporary = self._path.with_name(f"{self._path.name}.new-{os.getpid()}")
            with open(os.open(temporary, mode | os.O_TRUNC, 0o600), "wb") as file:
                file.write(_encoded(self.generations()))
            temporary.rename(self._path)
        for _ in new:
            self._unwritten.popleft()

    def generations(self, what: str | None = None) -> list[Generation]:
        """Oldest first; of a port, or of a frontend's name or the name that registered it."""
        found = sorted((*self._asked, *self._passing), key=lambda one: one.number)
        return found if what is None else [one for one in found if any(_is_about(line, what) for line in one.lines)]


def _is_about(line: Line, what: str) -> bool:
    return what in (str(line.listen.port), str(line.listen), line.frontend, line.frontend.rpartition("-")[0])


def _encoded(generations: Iterable[Generation]) -> bytes:
    return b"".join(json.dumps(_plain(one), separators=(",", ":")).encode() + b"\n" for one in generations)


def _plain(one: Generation) -> dict[str, Any]:
    lines = [
        [str(line.what), str(line.listen), line.frontend, line.text, None if line.server is None else str(line.server)]
        for line in one.lines
    ]
    return {"generation": one.number, "time": one.at, "by": list(one.by), "lines": lines}


def _decoded(item: dict[str, Any]) -> Generation:
    """Raises ValueError, LookupError or TypeError."""
    lines = tuple(
        Line(What(what), parse_listen(listen), str(name), str(text), None if server is None else parse_address(server))
        for what, listen, name, text, server in item["lines"]
    )
    return Generation(int(item["generation"]), float(item["time"]), tuple(map(str, item["by"])), lines)
