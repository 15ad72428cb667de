"""The record of generations: kept over restarts, bounded, and no fault of it is anybody's fault."""

from pathlib import Path

import pytest

from pylb.control import history
from pylb.control.history import History
from pylb.core.address import Address, Listen
from pylb.core.changes import Line, What

HTTPS = Listen("tcp", "*", 443)


def line(what: What = What.OPENED, port: int = 443, name: str = "web") -> Line:
    return Line(what, Listen("tcp", "*", port), name, f"{what} {port}", Address("192.0.2.7", 30443))


def record(path: Path) -> History:
    found = History(lambda: 1000.0, path)
    found.restore()
    return found


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first = record(path)
    first.note(1, ["token 'app' from 192.0.2.7"], [line()])
    first.note(2, ["health"], [line(What.STATE), line(What.STATE, 80, "other")])
    assert first.has_news
    first.write()
    assert not first.has_news
    assert path.stat().st_mode & 0o777 == 0o600
    again = record(path)
    assert again.generations() == first.generations()
    again.note(3, ["admin"], [line(What.CLOSED)])
    again.write()
    assert [one.number for one in record(path).generations()] == [1, 2, 3]
    assert [one.number for one in again.generations("80")] == [2]
    assert [one.number for one in again.generations("other")] == [2]


def test_moves_do_not_push_out_who_asked(tmp_path: Path) -> None:
    found = record(tmp_path / "history.jsonl")
    found.note(0, ["token"], [line()])
    for number in range(1, history.KEPT + 10):
        found.note(number, ["health"], [line(What.STATE)])
    numbers = [one.number for one in found.generations()]
    assert numbers[0] == 0
    assert len(numbers) == history.KEPT + 1


def test_garbage_costs_its_own_line_and_a_file_that_is_too_long_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "history.jsonl"
    first = record(path)
    first.note(1, ["admin"], [line()])
    first.write()
    path.write_bytes(path.read_bytes() + b'\xff{"generation":\n{}\n[1]\n{"generation":9,"time":1,"by":[],"lines":[["x"]]}\n')
    again = record(path)
    assert [one.number for one in again.generations()] == [1]
    monkeypatch.setattr(history, "MOST_BYTES", 10)
    again.note(2, ["admin"], [line()])
    again.write()
    monkeypatch.undo()
    assert path.read_bytes().count(b"\n") == 2
    assert [one.number for one in record(path).generations()] == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_stays_new(tmp_path: Path) -> None:
    found = record(tmp_path / "missing" / "history.jsonl")
    found.note(1, ["admin"], [line()])
    with pytest.raises(OSError, match="No such file"):
        found.write()
    assert found.has_news
    (tmp_path / "missing").mkdir()
    found.write()
    assert not found.has_news
