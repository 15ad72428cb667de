"""Where lines end: files that are moved away, disks that fill up, a syslog that is not there, or there again."""

import logging
import os
import re
import resource
import select
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylb.core.log import Target
from pylb.logs.async_writer import LineWriter
from pylb.logs.targets import LogFile, Stream, Syslog, open_target
from tests.support.waiting import eventually

MESSAGE = re.compile(rf"<134>[A-Z][a-z]{{2}} [ \d]\d \d\d:\d\d:\d\d pylb\[{os.getpid()}\]: (.*)\n")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sock.settimeout(5)
        yield sock


def said(sock: socket.socket) -> str:
    found = MESSAGE.fullmatch(sock.recv(9999).decode())
    assert found is not None
    return found[1]


# ------------------------------------------------------------ files


def test_a_file_is_appended_to_and_its_group_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "sessions.log"
    before = os.umask(0o077)  # as in deploy/systemd/pylb.service
    try:
        for line in ("one", "two\nthree"):
            out = LogFile(path)
            assert out.write(line, line.count("\n") + 1) == 0
            out.close()
    finally:
        os.umask(before)
    assert path.read_text() == "one\ntwo\nthree\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_that_was_moved_away_is_opened_anew_between_two_lines(tmp_path: Path) -> None:
    path, moved = tmp_path / "sessions.log", tmp_path / "sessions.log.1"
    log = LineWriter(LogFile(path))
    log.put("before")
    path.rename(moved)
    log.put("before too")
    log.reopen()
    log.put("after")
    assert log.close(5)
    assert (moved.read_text(), path.read_text()) == ("before\nbefore too\n", "after\n")


def test_a_file_that_cannot_be_opened_again_goes_on_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    out = LogFile(folder / "sessions.log")
    folder.rename(tmp_path / "moved")
    with caplog.at_level(logging.ERROR):
        out.reopen()
    assert out.reopen_failures == 1
    assert "sessions.log cannot be opened again: No such file or directory; the old file stays in use" in caplog.text
    assert out.write("still here", 1) == 0
    out.close()
    assert (tmp_path / "moved" / "sessions.log").read_text() == "still here\n"


def test_a_file_that_cannot_be_opened_at_first_is_an_error(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "none" / "x", tmp_path, fifo):  # a FIFO without a reader would hold up the start for ever
        with pytest.raises(OSError, match=path.name):
            open_target(Target("file", str(path)), "local0", "pylb")


def test_a_full_disk_costs_lines_that_are_counted_and_no_line_is_glued_to_a_torn_one(tmp_path: Path) -> None:
    # RLIMIT_FSIZE is the disk: a write beyond it is short, then fails (setrlimit(2)). Python ignores SIGXFSZ.
    path = tmp_path / "sessions.log"
    out = LogFile(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        lost = [out.write("fits", 1), out.write("does not fit\nnor this", 2), out.write("nor that", 1)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lost.append(out.write("again", 1))
    out.close()
    assert lost == [0, 2, 1, 0]
    assert path.read_text() == "fits\ndoes \nagain\n"


def test_a_stream_has_nothing_to_open_again() -> None:
    reader, writer = os.pipe()
    log = LineWriter(Stream(writer))
    log.put("one")
    log.reopen()
    log.put("two")
    assert log.close(5)
    assert os.read(reader, 100) == b"one\ntwo\n"
    os.close(reader)
    os.close(writer)  # still open: it was not the writer's to close


# ------------------------------------------------------------ syslog


def test_a_line_is_a_message_in_the_form_that_haproxy_sends() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        out = open_target(Target("udp", "localhost", sock.getsockname()[1]), "local0", "pylb")
        assert out.write("one 1/2/3\ntwo", 2) == 0
        assert [said(sock), said(sock)] == ["one 1/2/3", "two"]
        out.close()


def test_a_syslog_that_is_started_anew_is_found_again(tmp_path: Path, receiver: socket.socket) -> None:
    out = Syslog(Target("unix", str(tmp_path / "log")), 134, "pylb")
    assert out.write("one", 1) == 0
    assert said(receiver) == "one"
    receiver.close()
    (tmp_path / "log").unlink()
    assert out.write("nobody\nhears this", 2) == 2
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "log"))
        again.settimeout(5)
        out.reopen()  # at once; by itself within a second
        assert out.write("two", 1) == 0
        assert said(again) == "two"
    out.close()


def test_a_syslog_that_was_replaced_between_two_lines_misses_none(tmp_path: Path, receiver: socket.socket) -> None:
    out = Syslog(Target("unix", str(tmp_path / "log")), 134, "pylb")
    assert out.write("one", 1) == 0
    receiver.close()
    (tmp_path / "log").unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(tmp_path / "log"))
        again.settimeout(5)
        assert out.write("two", 1) == 0
        assert said(again) == "two"
    out.close()


def test_a_syslog_that_comes_later_is_found_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylb.logs.targets.RETRY", 0.05)
    out = Syslog(Target("unix", str(tmp_path / "log")), 134, "pylb")
    assert out.write("too early", 1) == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as late:
        late.bind(str(tmp_path / "log"))
        eventually(lambda: out.write("here", 1) == 0, what="a line is taken")
        assert said(late) == "here"
    out.close()


def test_what_udp_is_told_to_have_lost_is_counted() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    out = Syslog(Target("udp", "127.0.0.1", port), 134, "pylb")
    lost = sum(out.write(f"line {number}", 1) for number in range(20))
    assert lost == 19  # of the last one nobody has said anything yet
    out.close()


def test_a_name_that_does_not_resolve_loses_lines_and_nothing_else() -> None:
    out = Syslog(Target("udp", "nowhere.invalid", 514), 134, "pylb")
    assert out.write("one\ntwo", 2) == 2
    out.close()


def test_a_syslog_that_reads_nothing_is_waited_for_a_while_and_never_holds_up_whoever_logs(
    tmp_path: Path, receiver: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pylb.logs.targets.PATIENCE", 0.01)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    log = LineWriter(Syslog(Target("unix", str(tmp_path / "log")), 134, "pylb"), limit=100_000)
    began = time.monotonic()
    for number in range(2000):
        log.put(f"line {number}")
    assert time.monotonic() - began < 1
    assert log.close(5)
    taken = 0
    while select.select([receiver], [], [], 0)[0]:
        receiver.recv(9999)
        taken += 1
    assert 0 < taken < 2000
    assert log.dropped == 2000 - taken


def test_a_syslog_whose_name_no_dns_can_have_loses_lines_and_nothing_else() -> None:
    out = Syslog(Target("udp", f"{'a' * 64}.example", 514), 134, "pylb")
    assert out.write("one", 1) == 1


def test_a_fault_costs_the_lines_that_it_met_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """The thread had ended with it: no line was written any more."""
    written: list[str] = []

    class Sick:
        def write(self, text: str, _count: int) -> int:
            written.append(text)
            if len(written) < 3:
                raise RuntimeError("a bug")
            return 0

        def reopen(self) -> None:
            raise RuntimeError("another")

        def close(self) -> None:
            pass

    lines = LineWriter(Sick())
    for number in range(1, 4):
        lines.put(f"line {number}")
        eventually(lambda number=number: len(written) == number)
    lines.reopen()
    lines.put("the last")
    assert lines.close(5)
    assert written == ["line 1", "line 2", "line 3", "the last"]
    assert lines.dropped == 2
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info] == [("a bug",), ("another",)]  # type: ignore[union-attr]
