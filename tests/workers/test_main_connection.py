"""A worker's session lines and counts: made together at its tick, bounded when main does not take them, never forgotten."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from pylb.core.address import Listen
from pylb.core.log import Selection
from pylb.core.session import SessionRecord
from pylb.forward.counters import FrontendCounters
from pylb.forward.engine import Engine
from pylb.logs.formats import BURST, LineBatch, tcplog
from pylb.workers.channel import BadFrame, Channel
from pylb.workers.main_connection import MainConnection
from pylb.workers.messages import VERSION, FaultReport, Hello, LogLines, Report, Request, Response, decoded, encoded

RECORD = SessionRecord("web", "a", "203.0.113.7", 51234, 443, 0.0, 0, 1, 2, 10, 20, "--", 0, False, 1, 1, 0)


class Worker:
    """A link with an engine that has nothing to do; `main` is the other end of its channel."""

    def __init__(self, selection: Selection) -> None:
        self.main, own = map(Channel, socket.socketpair())
        self.link = MainConnection(
            own, Hello(VERSION, 1, 1, 10, 1, 1 << 20, "tcplog", log_selection=selection), LineBatch("tcplog", selection)
        )
        self.engine = Engine(observer=self.link, max_connections=10, on_fault=self.link.fault)
        self.link.begin(self.engine)
        self._own = own

    def said(self) -> list[LogLines]:
        self.link.tick(time.monotonic(), 0.0)
        return [one for frame in self.main.receive() if isinstance(one := decoded(frame), LogLines)]

    def close(self) -> None:
        self.engine.close()
        self.main.close()
        self._own.close()


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    made = Worker(getattr(request, "param", Selection()))
    yield made
    made.close()


def test_the_lines_of_a_tick_are_one_message(worker: Worker) -> None:
    assert worker.said() == []
    records = [RECORD._replace(client_port=port) for port in range(1, 4)]
    for record in records:
        worker.link.session_ended(record)
    assert worker.said() == [LogLines("\n".join(map(tcplog, records)), 3, 0)]
    assert worker.said() == []


@pytest.mark.parametrize("worker", [Selection(dontlognull=True)], indirect=True)
def test_what_gets_no_line_is_never_sent(worker: Worker) -> None:
    worker.link.session_ended(RECORD._replace(bytes_in=0))
    assert worker.said() == []
    worker.link.session_ended(RECORD)
    assert worker.said() == [LogLines(tcplog(RECORD), 1, 0)]


def test_more_than_may_wait_is_dropped_and_told(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylb.workers.main_connection.MOST_LINES", BURST)
    for _ in range(3 * BURST):
        worker.link.session_ended(RECORD)
    assert [(said.lines, said.dropped) for said in worker.said()] == [(BURST, 2 * BURST)]
    worker.link.session_ended(RECORD)
    assert [(said.lines, said.dropped) for said in worker.said()] == [(1, 0)]


def test_what_is_no_frame_is_met_after_the_batch_and_ends_the_worker(worker: Worker) -> None:
    worker.main._sock.send(b"no frame of ours, whatever it is")
    worker.engine.on_ready()
    assert worker.engine.counters.faults == 0
    assert worker.link.has_work
    with pytest.raises(BadFrame, match="not the head of a frame"):
        worker.link.work()


def reported(worker: Worker) -> list[int]:
    """The totals of sessions that main has heard of, one for each time that the frontend was in a report."""
    said = [decoded(frame) for frame in worker.main.receive()]
    return [one.sessions_total for message in said if isinstance(message, Report) for one in message.frontends]


@pytest.mark.parametrize("then", [MainConnection.close, lambda link: link.tick(1e9, 0.0), MainConnection._begin_report])
def test_what_waits_to_be_reported_is_not_forgotten_when_another_report_begins(
    worker: Worker, then: Callable[[MainConnection], None]
) -> None:
    """The last second of a worker was lost if its end came when a report was due: 32 of 1,104 sessions in an upgrade."""
    listen = Listen("tcp", "127.0.0.1", 443)
    worker.engine.counters.frontends[listen] = counters = FrontendCounters("web")
    counters.sessions_total = 32
    worker.link._begin_report()  # it is due, and begins
    then(worker.link)
    while worker.link.has_work:
        worker.link.work()
    assert reported(worker) == [32]
    counters.sessions_total = 33
    worker.link._report_at = 0.0  # due in the tick of the end
    worker.link.close()
    assert reported(worker) == [33]


def test_a_question_that_fails_is_a_fault_and_the_worker_goes_on(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def boom(*_args: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(worker.engine, "trace", boom)
    monkeypatch.setattr(worker.link, "_report_some", boom)
    for what in ("trace", "counters", "sessions"):
        worker.main.send(*encoded(Request(1, what, None, None, None, 7)))
    worker.engine.on_ready()
    for _ in range(20):
        worker.link.work()
    assert not worker.link.has_work
    assert worker.engine.counters.faults == 2
    said = [decoded(frame) for frame in worker.main.receive()]
    assert [one.what for one in said if isinstance(one, FaultReport)] == ["an answer to main failed", "a report failed"]
    assert any(isinstance(one, Response) for one in said), "the third question has its answer"
