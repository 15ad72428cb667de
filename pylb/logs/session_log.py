"""The session log: the loop makes the lines, a thread writes them."""

from pylb.core.log import Format, Selection
from pylb.core.session import SessionRecord
from pylb.logs.async_writer import QUEUE_LINES, LineWriter, Output
from pylb.logs.formats import LineBatch

ALL = Selection()


class ConnectionLog:
    """`session_ended` is called by the observer. Nothing is written before `flush`, which the loop calls at every tick.

    Writing each line at once would wake the thread each time, and every wake-up takes the interpreter lock from the loop.
    """

    def __init__(self, out: Output, style: Format, selection: Selection = ALL, limit: int = QUEUE_LINES) -> None:
        self.lines = LineWriter(out, limit=limit, name="connlog")
        self._gathered = LineBatch(style, selection)

    @property
    def wants_records(self) -> bool:
        """`log.format` is not none."""
        return self._gathered.wants_records

    def session_ended(self, record: SessionRecord) -> None:
        if self._gathered.add(record):
            self.flush()

    def flush(self) -> None:
        text, count = self._gathered.take()
        if count:
            self.lines.put(text, count)

    def close(self, timeout: float) -> bool:
        """Like LineWriter.close."""
        self.flush()
        return self.lines.close(timeout)
