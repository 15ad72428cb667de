"""The log of sessions: a line for each, to a descriptor, by a thread."""

from pylb.core.session import SessionRecord
from pylb.observe.form import Format, form_of
from pylb.observe.lines import QUEUE_LINES, LineWriter


class ConnectionLog:
    """`session_ended` is the observer's: formats the line at once (3 µs) and leaves it to a thread to write."""

    def __init__(self, fd: int, style: Format, limit: int = QUEUE_LINES) -> None:
        self.lines = LineWriter(fd, limit=limit, name="connlog")
        self._form = form_of(style)

    def session_ended(self, record: SessionRecord) -> None:
        if self._form is not None:
            self.lines.put(self._form(record))
