"""What a balancer remembers of the cluster over a restart: the file, and whose presence a start continues."""

import json
import shutil
from pathlib import Path

import pytest

from pylb.cluster import disk
from pylb.cluster.disk import Diary, Remembered
from pylb.cluster.sync import Presence
from pylb.core.merge.local import Memory

REMEMBERED = Remembered(Memory(begun=7, count=6), Presence("nonce", 42))


def test_the_first_start_knows_nothing(tmp_path: Path) -> None:
    assert Diary(tmp_path).read() == (Remembered(Memory()), "")


def test_a_restart_on_the_same_machine_continues_the_presence(tmp_path: Path) -> None:
    assert Diary(tmp_path).write(REMEMBERED, 1) == ""
    found, complaint = Diary(tmp_path).read()
    assert (found.memory.begun, found.memory.count, found.presence, complaint) == (7, 6, Presence("nonce", 42), "")
    assert (tmp_path / "cluster.json").stat().st_mode & 0o777 == 0o600


def test_a_copy_and_a_reboot_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "state").mkdir()
    Diary(tmp_path / "state").write(REMEMBERED, 1)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    assert Diary(tmp_path / "copy").read()[0].presence is None
    assert Diary(tmp_path / "copy").read()[0].memory.begun == 7
    other = tmp_path / "boot_id"
    other.write_text("another boot\n")
    monkeypatch.setattr(disk, "BOOT", other)
    assert Diary(tmp_path / "state").read()[0].presence is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"memory": {}}', '{"memory": null}', "[" * 100_000, "\0"])
def test_a_damaged_file_is_put_aside_and_said_to_be(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    found, complaint = Diary(tmp_path).read()
    assert found == Remembered(Memory())
    assert complaint.startswith(f"{tmp_path / 'cluster.json'} is not usable: ")
    assert complaint.endswith("; it is now cluster.json.bad-1")
    assert Diary(tmp_path).read()[1] == ""


@pytest.mark.parametrize("presence", [None, [], ["nonce", 1], ["nonce", "1", "x", "y"], 7])
def test_a_damaged_presence_is_a_new_one(tmp_path: Path, presence: object) -> None:
    Diary(tmp_path).write(REMEMBERED, 1)
    found = json.loads((tmp_path / "cluster.json").read_text())
    (tmp_path / "cluster.json").write_text(json.dumps({**found, "presence": presence}))
    kept, complaint = Diary(tmp_path).read()
    assert (kept.presence, complaint, kept.memory.begun) == (None, "", 7)


def test_of_two_writes_at_once_the_newer_one_stays(tmp_path: Path) -> None:
    diary = Diary(tmp_path)
    diary.write(Remembered(Memory(begun=2)), 2)
    assert diary.write(Remembered(Memory(begun=1)), 1) == ""
    assert diary.read()[0].memory.begun == 2


def test_a_directory_that_is_not_there_is_a_complaint(tmp_path: Path) -> None:
    assert "cannot be written: No such file or directory" in Diary(tmp_path / "gone").write(REMEMBERED, 1)
