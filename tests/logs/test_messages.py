"""Messages of pylb itself."""

import json
import logging
import os
import re
from collections.abc import Iterator

import pytest

from pylb.core.log import Format
from pylb.logs.messages import install


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def _said(style: Format, level: str, speak) -> str:  # type: ignore[no-untyped-def]
    reader, writer = os.pipe()
    handler = install(style, level, writer)
    speak(logging.getLogger("pylb.test"))
    assert handler.lines.close(5)
    os.close(writer)
    with os.fdopen(reader) as file:
        return file.read()


def test_a_message_says_when_how_bad_who_and_what(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    text = _said("tcplog", "info", lambda log: (log.info("port %d opened", 443), log.debug("not shown")))
    when, level, name, rest = text.split(" ", 3)
    assert (len(when), level, name, rest) == (24, "info", "pylb.test:", "port 443 opened\n")


def test_under_the_journal_the_time_is_left_to_it(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    assert _said("tcplog", "info", lambda log: log.warning("x")) == "warning pylb.test: x\n"


def test_what_a_stranger_sent_cannot_forge_a_line_or_drive_a_terminal(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    text = _said("tcplog", "info", lambda log: log.info("name %s", "a\ncritical pylb: all is lost\x1b[2J"))
    assert text == "info pylb.test: name a\n  critical pylb: all is lost\\x1b[2J\n"


def test_a_traceback_is_indented_under_its_message(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")

    def speak(log: logging.Logger) -> None:
        try:
            {}["a\rb"]
        except KeyError:
            log.exception("it broke")

    lines = _said("tcplog", "info", speak).splitlines()
    assert lines[0] == "error pylb.test: it broke"
    assert all(line.startswith("  ") for line in lines[1:])
    assert lines[-1] == "  KeyError: 'a\\rb'"


def test_json_messages_are_one_object_a_line(root: logging.Logger) -> None:
    parsed = json.loads(_said("json", "info", lambda log: log.warning("line\nbreak")))
    assert (parsed["level"], parsed["logger"], parsed["message"]) == ("warning", "pylb.test", "line\nbreak")


def test_logfmt_messages_are_pairs_and_stay_on_their_line(root: logging.Logger) -> None:
    text = _said("logfmt", "info", lambda log: log.warning("line\nbreak"))
    assert re.fullmatch(r'time=\S+Z level=warning logger=pylb\.test message="line\\nbreak"\n', text)


def test_a_stalled_stderr_does_not_stop_a_caller(root: logging.Logger) -> None:
    reader, writer = os.pipe()
    handler = install("tcplog", "info", writer)
    for _ in range(20_000):
        logging.getLogger("pylb.test").info("x" * 200)
    assert not handler.lines.close(0.2)
    assert handler.lines.dropped > 10_000
    os.close(reader)
    handler.lines._thread.join(5)
    os.close(writer)
