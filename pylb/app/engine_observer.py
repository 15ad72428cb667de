"""Passes on what happens to sessions: to the log, and to control, which learns which servers accept connections."""

import errno
import os

from pylb.app.errors import CannotStart
from pylb.config.models import Log
from pylb.control.registry import Registry
from pylb.control.tasks import Part, Tasks
from pylb.core.address import Listen
from pylb.core.session import SessionRecord
from pylb.core.table import Server
from pylb.logs.async_writer import Output
from pylb.logs.session_log import ConnectionLog
from pylb.logs.targets import open_target


class EngineObserver:
    """The engine's observer: never raises into a session, and works before the registry exists."""

    def __init__(self, connlog: ConnectionLog, tasks: Tasks) -> None:
        self.connlog = connlog
        self._tasks = tasks
        self.registry: Registry | None = None

    @property
    def wants_records(self) -> bool:
        return self.connlog.wants_records

    def session_ended(self, record: SessionRecord) -> None:
        try:  # both by hand: a context manager costs a microsecond for each session
            self.connlog.session_ended(record)
        except Exception as error:  # noqa: BLE001 - the boundary between the engine and its observers
            self._tasks.failed(Part.SESSIONS, error)

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:
        if self.registry is None:
            return
        try:
            self.registry.connect_ended(listen, server, failure)
        except Exception as error:  # noqa: BLE001 - as above
            self._tasks.failed(Part.SESSIONS, error)


def open_session_log(config: Log) -> tuple[ConnectionLog, Output]:
    """Returns the log and its target. Raises CannotStart."""
    try:
        out = open_target(config.target, config.facility, config.tag)
    except OSError as error:
        who = f"by user {os.getuid()}" if error.errno == errno.EACCES else "here"
        raise CannotStart(
            f"log.target: {config.target.place} cannot be opened {who}: {error.strerror}. "
            "Make its directory and let pylb's user write there, or remove log.target: lines go to stdout then."
        ) from None
    return ConnectionLog(out, config.format, config.selection), out
