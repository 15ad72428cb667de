"""The state on disk: what a start finds there, and the snapshot of what is in force."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import EINVAL

from pylb.control.desired_state import DesiredState
from pylb.control.health.records import HealthRecords
from pylb.control.health.resolver import Resolver
from pylb.control.leases import LeaseRecord, Leases
from pylb.control.publisher import Publisher
from pylb.control.storage.snapshot import Encoder, Snapshot, decode
from pylb.control.storage.store import Store
from pylb.control.storage.table_history import TableHistory
from pylb.control.tasks import Part, Tasks
from pylb.core.registration import Key

NUMBERS_AHEAD = 1000  # generations


class Persistence:
    def __init__(
        self,
        store: Store,
        history: TableHistory,
        *,
        publisher: Publisher,
        leases: Leases,
        health_records: HealthRecords,
        resolver: Resolver,
        wall: Callable[[], float],
        tasks: Tasks,
    ) -> None:
        self._store = store
        self._history = history
        self._publisher = publisher
        self._leases = leases
        self._health_records = health_records
        self._resolver = resolver
        self._wall = wall
        self._tasks = tasks
        self._encoder = Encoder()
        # Generation numbers that no other table will have, not even after a crash: tables made by health are in no snapshot.
        self.numbers_ahead = NUMBERS_AHEAD  # with each snapshot; 0 for the last one
        self._reserved = 0  # the first one that is not
        self.unsaved = False  # something worth a snapshot that no answer waits for
        self.failures = 0

    async def load(self) -> tuple[Snapshot, list[str]]:
        """Load the state from disk, with complaints about what is damaged. Raises StateLocked."""
        complaints = list[str]()
        try:
            await asyncio.to_thread(self._store.open)
        except OSError as error:
            complaints.append(f"the state directory cannot be used: {error}")
        payload, more = await asyncio.to_thread(self._store.load)
        snapshot, wrong = decode(payload or {})
        return snapshot, [*complaints, *more, *wrong, *await asyncio.to_thread(self._history.restore)]

    def is_wanted(self) -> bool:
        """Whether there is something to write for which no call waits."""
        return self.unsaved or self._publisher.table.generation + NUMBERS_AHEAD // 2 > self._reserved

    async def save(self, desired: DesiredState) -> None:
        """Raises OSError."""
        snapshot = Snapshot(
            self._publisher.table.generation + 1,
            self._wall(),
            desired.claims.registrations,
            {},
            self._health_records.proven,
            self._health_records.down,
            self._health_records.passed,
            desired.overrides,
            dict(self._resolver.answers),
            desired.unserved,
            self._publisher.table.generation + 1 + self.numbers_ahead,
            self._leases.learned,
        )
        self.unsaved = False
        try:
            await self._encoded_and_saved(snapshot, self._leases.records(desired.claims))
        except OSError:
            self.unsaved = True
            self.failures += 1
            raise

    async def _encoded_and_saved(self, snapshot: Snapshot, leases: Iterator[tuple[Key, LeaseRecord]]) -> None:
        """`leases` are made in the disk's thread: thousands may be stale, and their times differ every time. Raises OSError."""
        try:
            await self._store.save(lambda: self._encoder.encode(snapshot, leases))
        except OSError:
            raise
        except Exception as bug:  # noqa: BLE001 - a bug there counts as a failing disk, and does not end the writer
            self._tasks.failed(Part.SNAPSHOT, bug)
            raise OSError(EINVAL, f"it cannot be encoded ({type(bug).__name__}: {bug})") from None
        self._reserved = snapshot.reserved

    async def write_history(self) -> None:
        """Nothing is refused because a record cannot be written: the snapshot raises the alarm."""
        if self._history.has_news:
            with suppress(OSError):
                await self._store.run(self._history.write)
