"""What a terminal shows during long work, and that nobody else sees any of it."""

import sys
import threading
from io import StringIO

import pytest

from pylb.cli import progress as module
from pylb.cli.progress import progress


class Screen(StringIO):
    """A terminal, or not. `drawn` is set by the first thing that is written."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal
        self.drawn = threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.drawn.set()
        return super().write(text)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOMENT", 0.001)
    monkeypatch.setenv("TERM", "xterm")


def test_on_a_terminal_long_work_is_named_and_the_line_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress("asking \x1b[2J"):
        assert screen.drawn.wait(10)
    text = screen.getvalue()
    assert text.startswith("\r\x1b[Kasking \\x1b[2J … 0 s")
    assert text.endswith("\r\x1b[K")


@pytest.mark.parametrize(("terminal", "term", "what"), [(False, "xterm", "work"), (True, "dumb", "work"), (True, "xterm", "")])
def test_nothing_is_written_elsewhere(terminal: bool, term: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", term)
    with progress(what) as now:
        now("something else")
    assert screen.getvalue() == ""


def test_short_work_is_not_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(terminal=True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(module, "MOMENT", 3600.0)
    with progress("work"):
        pass
    assert screen.getvalue() == ""
