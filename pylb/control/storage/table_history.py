"""The generations of the table: what each changed, who asked for it, and when."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from pylb.control.fair_buffer import FairBuffer
from pylb.control.storage.files import read_regular, set_aside, write_private
from pylb.core.address import UDP, written_address, written_listen
from pylb.core.table_diff import PASSING, ChangeKind, ChangeLine
from pylb.core.text import counted

KEPT = 1000  # of each kind
MOST_BYTES = 2 << 20  # of each kind
MOST_FILE = 8 << 20
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Generation:
    number: int
    at: float  # unix time
    by: tuple[str, ...]  # who: tokens with their addresses, admin, reload, leases, health, names
    lines: tuple[ChangeLine, ...]


def _weight(one: Generation) -> int:
    """Roughly its size in the file, in bytes."""
    return 100 + sum(90 + len(line.text) + len(line.frontend) for line in one.lines)


class TableHistory:
    """The last 1,000 changes that somebody asked for, and separately the last 1,000 moves and changes of state: an app that
    moves all the time must not push out who opened its port. At most 2 MiB of each, with a fair share for each token.

    Kept across restarts in a file with one JSON object per line. It is a record, not the state: lines are appended without
    fsync, and a crash may lose the last half second. The file is rewritten when it is over 8 MiB and twice as long as after the
    last rewrite.
    """

    def __init__(self, wall: Callable[[], float], path: Path) -> None:
        self._wall = wall
        self._path = path
        self._asked: FairBuffer[Generation] = FairBuffer(KEPT, MOST_BYTES)
        self._passing: FairBuffer[Generation] = FairBuffer(KEPT, MOST_BYTES)
        self._unwritten: deque[Generation] = deque(maxlen=2 * KEPT)
        self._anew = False  # the file has lines that cannot be read
        self._anew_at = MOST_FILE  # bytes

    def note(self, number: int, by: Iterable[str], lines: Iterable[ChangeLine]) -> None:
        one = Generation(number, self._wall(), tuple(by), tuple(lines))
        self._keep(one)
        self._unwritten.append(one)

    def _keep(self, one: Generation) -> None:
        kind = self._passing if all(line.what in PASSING for line in one.lines) else self._asked
        whose = one.by[0].partition(" from ")[0] if one.by else ""
        kind.add(whose, one, _weight(one))

    def restore(self) -> list[str]:
        """Read the file. An unreadable line costs only itself, but the file is set aside. Returns complaints."""
        try:
            data = read_regular(self._path, 4 * MOST_FILE, follow=False)
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            return [f"{self._path.name} is not usable: {error}{set_aside(self._path)}"]
        bad, rows = 0, data.split(b"\n")
        for row in rows[:-1]:
            try:
                self._keep(_decoded(json.loads(row)))
            except _BROKEN:
                bad += 1
        self._anew = bool(rows[-1])  # the last one has no end: a crash in mid-write
        if not bad:
            return []
        self._anew = True
        return [f"{counted(bad, 'line')} of {self._path.name} cannot be read, the others count{set_aside(self._path)}"]

    @property
    def has_news(self) -> bool:
        return bool(self._unwritten) or self._anew

    def write(self) -> None:
        """Append what is new; to be run in a thread. Raises OSError: then it stays new."""
        new = list(self._unwritten)
        if self._anew or not self._append(new):
            write_private(self._path, _encoded(self.generations()), sync=False)
            self._anew = False
            self._anew_at = max(MOST_FILE, 2 * self._path.stat().st_size)
        for _ in new:
            self._unwritten.popleft()

    def _append(self, new: Iterable[Generation]) -> bool:
        """False: the file is long enough to be rewritten."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND | os.O_NONBLOCK
        fd = os.open(self._path, flags, 0o600)
        with open(fd, "wb") as file:
            if os.fstat(fd).st_size > self._anew_at:
                return False
            file.write(_encoded(new))
        return True

    def generations(self, what: str | None = None) -> list[Generation]:
        """Oldest first; for a port, a frontend's name or the name that registered it, with only their lines."""
        found = sorted((*self._asked.items(), *self._passing.items()), key=lambda one: one.number)
        if what is None:
            return found
        meant = ((one, tuple(line for line in one.lines if _is_about(line, what))) for one in found)
        return [replace(one, lines=lines) for one, lines in meant if lines]

    @property
    def since(self) -> float | None:
        """Unix time: all later changes are there. None: nothing has changed yet."""
        rings = [(ring, ring.items()) for ring in (self._asked, self._passing)]
        gone = [ring.dropped.at for ring, _ in rings if ring.dropped is not None]
        gone += [items[0].at for ring, items in rings if ring.dropped is None and len(items) == KEPT]  # by an earlier pylb
        return max(gone, default=min((items[0].at for _, items in rings if items), default=None))


def _is_about(line: ChangeLine, what: str) -> bool:
    listen = line.listen
    if listen.is_named(what) or (what and what == listen.server_name):
        return True
    port = line.frontend.removesuffix(f":{listen.server_name}") if listen.server_name else line.frontend
    registered = port.removesuffix(f"-{UDP}") if listen.protocol == UDP else port
    return what in (line.frontend, port, registered.rpartition("-")[0])


def _encoded(generations: Iterable[Generation]) -> bytes:
    return b"".join(json.dumps(_plain(one), separators=(",", ":")).encode() + b"\n" for one in generations)


def _plain(one: Generation) -> dict[str, Any]:
    lines = [
        [str(line.what), str(line.listen), line.frontend, line.text, None if line.server is None else str(line.server)]
        for line in one.lines
    ]
    return {"generation": one.number, "time": one.at, "by": list(one.by), "lines": lines}


def _decoded(item: dict[str, Any]) -> Generation:
    """Raises what _BROKEN has."""
    lines = tuple(
        ChangeLine(
            ChangeKind(what), written_listen(listen), str(name), str(text), None if server is None else written_address(server)
        )
        for what, listen, name, text, server in item["lines"]
    )
    number, at = item["generation"], float(item["time"])
    if not isinstance(number, int) or not isfinite(at):
        raise ValueError("no generation")
    return Generation(number, at, tuple(map(str, item["by"])), lines)
