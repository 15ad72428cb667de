"""pylb's own messages: stdlib logging, written to stderr by a thread. (Session lines go to stdout.)"""

import json
import logging
import os
import sys

from pylb.core.log import Format
from pylb.core.text import visible_lines
from pylb.logs.async_writer import QUEUE_LINES, LineWriter
from pylb.logs.formats import stamp, word
from pylb.logs.targets import Stream


class MessageHandler(logging.Handler):
    """Puts each message into a bounded queue; no logging call ever waits for the reader of stderr."""

    def __init__(self, fd: int, style: Format, limit: int = QUEUE_LINES) -> None:
        super().__init__()
        self._form = {"json": _json_message, "logfmt": _logfmt_message}.get(style, _text_message)
        self.lines: LineWriter = LineWriter(Stream(fd), limit=limit, name="messages")

    def emit(self, record: logging.LogRecord) -> None:
        # Formatted here, not in the thread: the arguments may change, or keep objects alive.
        try:
            self.lines.put(self._form(record))
        except Exception:  # noqa: BLE001 - like every logging handler: a bad message must not break its caller
            self.handleError(record)


def install(style: Format, level: str, fd: int | None = None) -> MessageHandler:
    """Make the root logger write to stderr through a MessageHandler; the caller closes its `lines` at the end."""
    handler = MessageHandler(sys.stderr.fileno() if fd is None else fd, style)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    return handler


def _text_message(record: logging.LogRecord) -> str:
    # Under systemd the journal adds its own time stamp.
    when = "" if "JOURNAL_STREAM" in os.environ else f"{stamp(record.created)} "
    line = f"{when}{record.levelname.lower()} {record.name}: {_indented(record.getMessage())}"
    return line + _traceback(record)


def _json_message(record: logging.LogRecord) -> str:
    fields = {
        "time": stamp(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    if traceback := _traceback(record):
        fields["traceback"] = traceback.strip()
    return json.dumps(fields, separators=(",", ":"))


def _logfmt_message(record: logging.LogRecord) -> str:
    text = word(record.getMessage() + _traceback(record))
    return f"time={stamp(record.created)} level={record.levelname.lower()} logger={record.name} message={text}"


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_info is None or record.exc_info[0] is None:
        return ""
    # Indented, so that a reader of lines sees that they belong to the message above.
    lines = _FORMATTER.formatException(record.exc_info).splitlines()
    return "".join(f"\n  {_indented(line)}" for line in lines)


def _indented(text: str) -> str:
    """A message may quote text from outside. Line breaks and escapes in it must not forge a line or control a terminal: only
    lines that do not start with two spaces are pylb's."""
    return visible_lines(text).replace("\n", "\n  ")


_FORMATTER = logging.Formatter()
