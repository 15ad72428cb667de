"""Splice that fails by itself, not by the connection: that direction goes on by recv and send and loses nothing."""

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from pylb.forward.relay import UNSPLICEABLE
from tests.support.drive import Drive

Make = Callable[..., Drive]
DATA = bytes(range(256)) * 16384  # 4 MiB


class Splice:
    """os.splice, whose `at`th call (and all later ones) of the first or second step fails with `code`."""

    def __init__(self, drive: Drive, code: int, at: int, *, into_pipe: bool) -> None:
        self._drive, self._code, self._at, self._into_pipe = drive, code, at, into_pipe
        self._splice = os.splice
        self.calls = self.failed = 0

    def __call__(self, source: int, destination: int, count: int, **more: Any) -> int:
        if (source in self._drive.engine._life.halves) == self._into_pipe:
            self.calls += 1
            if self.calls >= self._at:
                self.failed += 1
                raise OSError(self._code, os.strerror(self._code))
        return self._splice(source, destination, count, **more)


@pytest.mark.parametrize("into_pipe", [True, False], ids=["into the pipe", "out of the pipe"])
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("code", sorted(UNSPLICEABLE), ids=lambda code: errno.errorcode[code])
def test_where_splice_fails_bulk_goes_on_by_copy(
    make_drive: Make, monkeypatch: pytest.MonkeyPatch, code: int, at: int, *, into_pipe: bool
) -> None:
    drive = make_drive(splice=True)
    client, server = drive.session(rcvbuf=16384)
    splice = Splice(drive, code, at, into_pipe=into_pipe)
    monkeypatch.setattr(os, "splice", splice)
    client.reading = server.reading = False
    client.say(DATA)
    server.say(DATA[::-1])
    drive.run_until_quiet()
    client.reading = server.reading = True
    client.finish()
    server.finish()
    drive.run_until(lambda: client.eof and server.eof)
    assert server.got == DATA
    assert client.got == DATA[::-1]
    assert drive.record().code == "--"
    if splice.failed:
        assert splice.failed <= 2, "once for each direction"
        assert drive.engine.counters.pipe_fallbacks == splice.failed
    assert not drive.faults


@pytest.mark.parametrize("code", [errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EIO])
@pytest.mark.parametrize("into_pipe", [True, False])
def test_what_splice_says_of_the_connection_is_a_reset_and_never_a_fin(
    make_drive: Make, monkeypatch: pytest.MonkeyPatch, code: int, *, into_pipe: bool
) -> None:
    drive = make_drive(splice=True)
    client, server = drive.session()
    splice = Splice(drive, code, 2, into_pipe=into_pipe)
    monkeypatch.setattr(os, "splice", splice)
    server.say(DATA)
    drive.run_until(lambda: splice.failed)
    drive.pass_time(90, step=1.0)  # what a real error would say of the client at the next read; here timeouts.flush is the end
    drive.run_until(lambda: client.error or client.eof)
    assert client.error == "ECONNRESET"
    assert splice.failed == 1
    assert drive.record().code in ("SD", "CD")
