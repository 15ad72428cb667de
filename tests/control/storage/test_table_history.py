"""The record of generations: kept over restarts, bounded, and no fault of it is anybody's fault."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from pylb.control.storage import table_history as history
from pylb.control.storage.table_history import KEPT, TableHistory
from pylb.core.address import Address, Listen
from pylb.core.table_diff import ChangeKind, ChangeLine

HTTPS = Listen("tcp", "*", 443)


def line(what: ChangeKind = ChangeKind.OPENED, port: int = 443, name: str = "web") -> ChangeLine:
    return ChangeLine(what, Listen("tcp", "*", port), name, f"{what} {port}", Address("192.0.2.7", 30443))


def record(path: Path) -> TableHistory:
    found = TableHistory(lambda: 1000.0, path)
    found.restore()
    return found


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first = record(path)
    first.note(1, ["token 'app' from 192.0.2.7"], [line()])
    first.note(2, ["health"], [line(ChangeKind.STATE), line(ChangeKind.STATE, 80, "other")])
    assert first.has_news
    first.write()
    assert not first.has_news
    assert path.stat().st_mode & 0o777 == 0o600
    again = record(path)
    assert again.generations() == first.generations()
    again.note(3, ["admin"], [line(ChangeKind.CLOSED)])
    again.write()
    assert [one.number for one in record(path).generations()] == [1, 2, 3]
    assert [one.number for one in again.generations("80")] == [2]
    assert [one.number for one in again.generations("other")] == [2]


def test_a_line_about_udp_is_found_by_its_port_and_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first = record(path)
    tcp, udp = line(name="web-443"), line(name="web-443-udp")
    server = Address("192.0.2.7", 30443, "udp")
    first.note(1, ["admin"], [tcp, replace(udp, listen=HTTPS._replace(protocol="udp"), server=server)])
    first.write()
    again = record(path)
    assert again.generations() == first.generations()
    assert [[one.frontend for one in found.lines] for found in again.generations("443")] == [["web-443"]]
    assert [[one.frontend for one in found.lines] for found in again.generations("443/udp")] == [["web-443-udp"]]
    assert [[one.frontend for one in found.lines] for found in again.generations("web")] == [["web-443", "web-443-udp"]]


def test_what_is_asked_of_a_name_has_its_lines_alone_and_says_since_when(tmp_path: Path) -> None:
    found = record(tmp_path / "history.jsonl")
    assert found.since is None
    found.note(1, ["app from 192.0.2.1"], [line(), line(port=80, name="other")])
    [of_web] = found.generations("web")
    assert [one.frontend for one in of_web.lines] == ["web"]
    assert len(found.generations()[0].lines) == 2
    assert found.since == found.generations()[0].at
    for number in range(2, KEPT + 3):
        found.note(number, ["app from 192.0.2.1"], [line()])
    assert found.generations()[0].number == 3
    assert found.since is not None


def test_one_tokens_generations_do_not_push_out_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 10)
    found = record(tmp_path / "history.jsonl")
    for number in range(1, 4):
        found.note(number, ["token 'honest' from 192.0.2.7"], [line(port=number)])
    for number in range(4, 100):
        found.note(number, [f"token 'noisy' from 192.0.2.{number}"], [line(port=number)])
    assert [one.number for one in found.generations()] == [1, 2, 3, *range(93, 100)]


def test_moves_do_not_push_out_who_asked(tmp_path: Path) -> None:
    found = record(tmp_path / "history.jsonl")
    found.note(0, ["token"], [line()])
    for number in range(1, history.KEPT + 10):
        found.note(number, ["health"], [line(ChangeKind.STATE)])
    numbers = [one.number for one in found.generations()]
    assert numbers[0] == 0
    assert len(numbers) == history.KEPT + 1


BAD = (
    b"\xff",
    b'{"generation":',
    b"{}",
    b"[1]",
    b'{"generation":9,"time":1,"by":[],"lines":[["x"]]}',
    b'{"generation":1e999,"time":1,"by":[],"lines":[]}',
    b'{"generation":9,"time":NaN,"by":[],"lines":[]}',
    b"[" * 100_000,
)


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_garbage_costs_its_own_line_and_the_file_is_set_aside_and_written_anew(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "history.jsonl"
    first = record(path)
    first.note(1, ["admin"], [line()])
    first.note(2, ["admin"], [line()])
    first.write()
    one, two = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join((one, bad, two, b"")))
    again = TableHistory(lambda: 1000.0, path)
    (complaint,) = again.restore()
    assert complaint.startswith("1 line of history.jsonl cannot be read, the others count; it is now history.jsonl.bad-1")
    assert [found.number for found in again.generations()] == [1, 2]
    assert again.has_news
    again.write()
    assert record(path).restore() == []
    assert path.read_bytes().splitlines() == [one, two]


def test_a_line_that_a_crash_cut_is_no_garbage_and_the_next_one_does_not_stick_to_it(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first = record(path)
    first.note(1, ["admin"], [line()])
    first.note(2, ["admin"], [line()])
    first.write()
    path.write_bytes(path.read_bytes()[:-9])
    again = TableHistory(lambda: 1000.0, path)
    assert again.restore() == []
    again.note(3, ["admin"], [line()])
    again.write()
    assert [one.number for one in record(path).generations()] == [1, 3]
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_bounded_in_bytes_and_written_anew_only_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, anew = tmp_path / "history.jsonl", []
    real = history.write_private
    monkeypatch.setattr(history, "write_private", lambda *args, **more: (anew.append(args), real(*args, **more)))
    start = [line(port=port) for port in range(1, 1001)]
    found, sizes = record(path), []
    for number in range(300):  # each is a start with a thousand frontends
        found.note(number, ["start"], start)
        found.write()
        sizes.append(path.stat().st_size)
    assert max(sizes) <= history.MOST_FILE + sizes[0]
    assert sum(a > b for a, b in pairwise(sizes)) == len(anew) <= 300 * sizes[0] // (history.MOST_FILE // 2)
    many = len(anew)
    for number in range(300, 1000):
        found.note(number, ["admin"], [line()])
        found.write()
    assert len(anew) == many  # an event appends
    assert found.generations()[-1].number == 999
    assert sum(len(one.lines) for one in found.generations()) * 90 < 2 * history.MOST_BYTES


def test_what_is_no_file_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    os.mkfifo(path)
    found = TableHistory(lambda: 1000.0, path)
    (complaint,) = found.restore()
    assert "not a regular file; it is now history.jsonl.bad-1" in complaint
    found.note(1, ["admin"], [line()])
    found.write()
    assert [one.number for one in record(path).generations()] == [1]


def test_what_cannot_be_written_stays_new(tmp_path: Path) -> None:
    found = record(tmp_path / "missing" / "history.jsonl")
    found.note(1, ["admin"], [line()])
    with pytest.raises(OSError, match="No such file"):
        found.write()
    assert found.has_news
    (tmp_path / "missing").mkdir()
    found.write()
    assert not found.has_news
