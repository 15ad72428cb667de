"""Session lines: HAProxy's format to the letter, and a reader that stalls or goes away."""

import json
import os
import re
import select
import time
from collections.abc import Iterator

import pytest

from pylb.core.log import Selection
from pylb.core.session import SessionRecord
from pylb.logs import formats as form
from pylb.logs.async_writer import LineWriter
from pylb.logs.formats import json_line, logfmt, syslog_date, tcplog
from pylb.logs.session_log import ConnectionLog
from pylb.logs.targets import Stream

# The field patterns of HAProxy's configuration manual, 8.2.2; the one thing every parser of its TCP log agrees on.
HAPROXY = re.compile(
    r"(?P<client>\S+):(?P<port>\d+) \[(?P<date>\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d\.\d{3})\] (?P<frontend>\S+) "
    r"(?P<backend>[^ /]+)/(?P<server>\S+) (?P<tw>-?\d+)/(?P<tc>-?\d+)/(?P<tt>\+?\d+) (?P<bytes>\+?\d+) (?P<state>\S\S) "
    r"(?P<ac>\d+)/(?P<fc>\d+)/(?P<bc>\d+)/(?P<sc>\d+)/(?P<rc>\+?\d+) (?P<sq>\d+)/(?P<bq>\d+)"
)

RECORD = SessionRecord(
    frontend="mqtt-8443",
    server="node-a",
    client="203.0.113.7",
    client_port=51234,
    listen_port=8443,
    accepted_at=1795419669.123,
    queue_ms=0,
    connect_ms=3,
    total_ms=5012,
    bytes_in=210,
    bytes_out=4096,
    code="--",
    retries=0,
    redispatched=False,
    active=12,
    frontend_active=5,
    server_active=2,
)


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_session_is_one_line_in_haproxys_order() -> None:
    assert tcplog(RECORD) == (
        "203.0.113.7:51234 [23/Nov/2026:07:41:09.123] mqtt-8443 mqtt-8443/node-a 0/3/5012 4096 -- 12/5/4/2/0 0/0"
    )
    assert HAPROXY.fullmatch(tcplog(RECORD)) is not None


def test_stages_that_were_not_reached_are_minus_one_and_no_server_is_nosrv() -> None:
    refused = RECORD._replace(server="", queue_ms=-1, connect_ms=-1, total_ms=7, bytes_out=0, code="SC", server_active=0)
    found = HAPROXY.fullmatch(tcplog(refused))
    assert found is not None
    assert (found["server"], found["tw"], found["tc"], found["state"]) == ("<NOSRV>", "-1", "-1", "SC")


def test_retries_that_went_to_another_server_carry_a_plus() -> None:
    assert tcplog(RECORD._replace(retries=2, redispatched=True)).endswith(" 12/5/4/2/+2 0/0")
    assert tcplog(RECORD._replace(retries=2)).endswith(" 12/5/4/2/2 0/0")
    assert tcplog(RECORD._replace(ahead=7)).endswith(" 12/5/4/2/0 0/7")


def test_who_waited_was_number_one_or_more() -> None:
    assert tcplog(RECORD._replace(queue_ms=12)).endswith(" 12/5/4/2/0 0/1")
    assert tcplog(RECORD._replace(queue_ms=12, ahead=7)).endswith(" 12/5/4/2/0 0/8")


def test_an_ipv6_client_is_written_as_haproxy_does() -> None:
    found = HAPROXY.fullmatch(tcplog(RECORD._replace(client="2001:db8::7")))
    assert found is not None
    assert (found["client"], found["port"]) == ("2001:db8::7", "51234")


def test_the_date_is_local_time_and_its_milliseconds_never_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1")
    time.tzset()
    form._local_second.cache_clear()  # it knows the second by the zone of an earlier test
    assert "[23/Nov/2026:08:41:09.999]" in tcplog(RECORD._replace(accepted_at=1795419669.9999))


def test_json_holds_the_same_session_with_numbers_as_numbers() -> None:
    parsed = json.loads(json_line(RECORD))
    assert parsed == {
        "time": "2026-11-23T07:41:09.123Z",
        "client": "203.0.113.7",
        "client_port": 51234,
        "frontend": "mqtt-8443",
        "listen_port": 8443,
        "server": "node-a",
        "queue_ms": 0,
        "connect_ms": 3,
        "total_ms": 5012,
        "bytes_in": 210,
        "bytes_out": 4096,
        "code": "--",
        "retries": 0,
        "redispatched": False,
        "active": 12,
        "frontend_active": 5,
        "server_active": 2,
        "ahead": 0,
        "unique_id": None,
    }
    assert json.loads(json_line(RECORD._replace(server="")))["server"] is None


def test_names_are_written_so_that_a_reader_gets_them_back() -> None:
    for name in ('say "hi"', "a=b", "back\\slash", "b\u00fccher", "tab\there", ""):
        assert json.loads(json_line(RECORD._replace(server=name)))["server"] == (name or None)
        [value] = re.findall(r' server=(".*?(?<!\\)"|\S*) queue_ms=', logfmt(RECORD._replace(server=name)))
        assert (json.loads(value) if value.startswith('"') else value) == name


def test_what_a_client_asked_for_is_at_the_end_of_a_line_only_where_it_asked() -> None:
    asked = RECORD._replace(asked="git.example.net")
    assert json.loads(json_line(asked)) == json.loads(json_line(RECORD)) | {"server_name": "git.example.net"}
    assert logfmt(asked) == f"{logfmt(RECORD)} server_name=git.example.net"
    assert tcplog(asked) == f"{tcplog(RECORD)} {{git.example.net}}"


def test_logfmt_has_the_keys_of_the_json_line_in_their_order() -> None:
    line = logfmt(RECORD._replace(unique_id="0a0b"))
    assert line == (
        "time=2026-11-23T07:41:09.123Z client=203.0.113.7 client_port=51234 frontend=mqtt-8443 listen_port=8443 server=node-a "
        "queue_ms=0 connect_ms=3 total_ms=5012 bytes_in=210 bytes_out=4096 code=-- retries=0 redispatched=false active=12 "
        "frontend_active=5 server_active=2 ahead=0 unique_id=0a0b"
    )
    assert [pair.partition("=")[0] for pair in line.split()] == list(json.loads(json_line(RECORD)))


def test_the_date_of_a_syslog_message_has_a_blank_before_a_small_day() -> None:
    assert (syslog_date(1795419669.9), syslog_date(1793605269)) == ("Nov 23 07:41:09", "Nov  2 07:41:09")


def test_nothing_is_written_before_the_tick_unless_it_becomes_too_much() -> None:
    reader, writer = os.pipe()
    log = ConnectionLog(Stream(writer), "tcplog")
    for _ in range(form.BURST - 1):
        log.session_ended(RECORD)
    assert not select.select([reader], [], [], 0.05)[0]
    log.session_ended(RECORD)
    assert select.select([reader], [], [], 5)[0]
    log.session_ended(RECORD)
    log.flush()
    assert log.close(5)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert len(file.readlines()) == form.BURST + 1


def test_a_session_that_gets_no_line_is_none_that_was_dropped() -> None:
    reader, writer = os.pipe()
    log = ConnectionLog(Stream(writer), "tcplog", Selection(sample=1_000_000, dontlognull=True))
    for record in (RECORD._replace(bytes_in=0), RECORD._replace(bytes_in=0, code="CD"), RECORD._replace(code="SD")):
        log.session_ended(record)
    assert log.close(5)
    os.close(writer)
    with os.fdopen(reader) as file:
        assert [line.split()[6] for line in file] == ["SD"]
    assert log.lines.dropped == 0


def test_lines_come_out_whole_and_in_order() -> None:
    reader, writer = os.pipe()
    log = ConnectionLog(Stream(writer), "tcplog")
    for number in range(300):
        log.session_ended(RECORD._replace(client_port=number))
    assert log.close(5)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        received = file.readlines()
    assert [line.split(b" ")[0] for line in received] == [b"203.0.113.7:%d" % number for number in range(300)]
    assert log.lines.dropped == 0


def test_a_line_put_later_wakes_the_writer_again() -> None:
    reader, writer = os.pipe()
    log: LineWriter = LineWriter(Stream(writer))
    for word in ("one", "two", "three"):
        log.put(word)
        assert os.read(reader, 100) == f"{word}\n".encode()
    assert log.close(1)
    os.close(reader)
    os.close(writer)


def test_a_stalled_reader_costs_lines_that_are_counted_and_never_time() -> None:
    reader, writer = os.pipe()
    _fill(writer)
    log = ConnectionLog(Stream(writer), "tcplog", limit=100)
    began = time.monotonic()
    for _ in range(20_000):
        log.session_ended(RECORD)
    assert not log.close(0.2)
    assert time.monotonic() - began < 5  # nobody reads: one blocked put would never have come back
    os.close(reader)  # the thread in write() gets EPIPE, counts its batch and ends
    log.lines._thread.join(5)
    assert not log.lines._thread.is_alive()
    assert log.lines.dropped == 20_000
    os.close(writer)


def _fill(pipe: int) -> None:
    os.set_blocking(pipe, False)
    try:
        while True:
            os.write(pipe, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(pipe, True)


def test_lines_for_a_reader_that_is_gone_are_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = ConnectionLog(Stream(writer), "json")
    for _ in range(10):
        log.session_ended(RECORD)
    log.close(5)
    assert log.lines.dropped == 10
    os.close(writer)


def test_a_non_blocking_descriptor_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    log: LineWriter = LineWriter(Stream(writer))
    for _ in range(200):
        log.put("x" * 999)
    received = 0
    while received < 200_000:
        received += len(os.read(reader, 65536))
    assert log.close(5)
    assert (received, log.dropped) == (200_000, 0)
    os.close(reader)
    os.close(writer)


def test_what_is_put_after_the_end_is_counted_as_dropped() -> None:
    reader, writer = os.pipe()
    log: LineWriter = LineWriter(Stream(writer))
    assert log.close(5)
    log.put("late")
    assert log.dropped == 1
    os.close(reader)
    os.close(writer)


def test_none_writes_no_line() -> None:
    reader, writer = os.pipe()
    log = ConnectionLog(Stream(writer), "none")
    log.session_ended(RECORD)
    assert log.close(5)
    os.close(writer)
    assert os.read(reader, 100) == b""
    os.close(reader)
