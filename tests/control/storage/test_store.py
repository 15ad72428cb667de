"""The snapshot on a real file system, whole and damaged."""

import errno
import json
import os
import stat
import threading
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import pytest

from pylb.control.storage import disk, files
from pylb.control.storage.disk import Unsynced
from pylb.control.storage.store import MAX_BYTES, VERSION, StateLocked, Store
from tests.control.harness import disk_full, until

Damage = Callable[[Path], object]


async def saved(state_dir: Path, *payloads: dict[str, object]) -> Store:
    store = Store(state_dir)
    store.open()
    for payload in payloads:
        await store.save(lambda payload=payload: payload)
    return store


async def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    store = await saved(tmp_path / "state", {"generation": 1}, {"generation": 2, "name": "Bärbel"})
    store.close()
    again = Store(tmp_path / "state")
    again.open()
    assert again.load() == ({"generation": 2, "name": "Bärbel"}, [])
    again.close()


async def test_only_the_owner_may_read_it_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    store = await saved(tmp_path / "state", {"a": 1}, {"a": 2})
    store.close()
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["lock", "state.json", "state.json.previous"]
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


async def test_the_file_is_plain_json_with_a_checksum_that_others_can_compute(tmp_path: Path) -> None:
    store = await saved(tmp_path, {"b": [{"y": 1, "x": None}, 2.5, "ä"], "a": {"d": [], "c": True}})
    store.close()
    outer = json.loads(store.path.read_bytes())
    canonical = json.dumps(outer["payload"], sort_keys=True, separators=(",", ":")).encode()
    assert (outer["version"], outer["sha256"]) == (VERSION, sha256(canonical).hexdigest())


def test_an_empty_directory_is_an_empty_state_and_no_complaint(tmp_path: Path) -> None:
    assert Store(tmp_path).load() == (None, [])


def _huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(MAX_BYTES + 1)


def _symlink(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _version(path: Path, version: object) -> None:
    outer = json.loads(path.read_bytes())
    path.write_text(json.dumps(outer | {"version": version}))


DAMAGES: dict[str, Damage] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "garbage": lambda path: path.write_bytes(os.urandom(300)),
    "one bit": lambda path: path.write_bytes(path.read_bytes().replace(b'"a":2', b'"a":3')),
    "no object": lambda path: path.write_bytes(b"[]"),
    "too deep": lambda path: path.write_bytes(b"[" * 100_000),
    "no payload": lambda path: path.write_bytes(b'{"version":1,"sha256":"","payload":7}'),
    "the version after next": lambda path: _version(path, VERSION + 2),
    "a version that is no number": lambda path: _version(path, "1"),
    "NaN": lambda path: path.write_bytes(b'{"version":1,"sha256":"","payload":{"a":NaN}}'),
    "no number": lambda path: path.write_bytes(b'{"version":1,"sha256":"","payload":{"a":1e999}}'),
    "not UTF-8": lambda path: path.write_bytes(b'{"version":1,"sha256":"\xff","payload":{}}'),
    "huge": _huge,
    "a symlink": _symlink,
    "a FIFO": _fifo,
    "a directory": _directory,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_file_gives_way_to_the_generation_before_and_is_kept_aside(tmp_path: Path, damage: Damage) -> None:
    store = await saved(tmp_path, {"a": 1}, {"a": 2})
    damage(store.path)
    payload, complaints = store.load()
    store.close()
    assert payload == {"a": 1}
    assert len(complaints) == 1
    assert "state.json.bad-1" in complaints[0]
    assert os.path.lexists(tmp_path / "state.json.bad-1")
    assert not os.path.lexists(store.path)


async def test_with_both_generations_damaged_the_start_is_empty_and_says_so(tmp_path: Path) -> None:
    store = await saved(tmp_path, {"a": 1}, {"a": 2})
    store.path.write_bytes(b"x")
    store.previous.write_bytes(b"y")
    payload, complaints = store.load()
    assert payload is None
    assert len(complaints) == 2
    assert {path.name for path in tmp_path.glob("*.bad-*")} == {"state.json.bad-1", "state.json.previous.bad-1"}
    await store.save(lambda: {"a": 3})
    assert store.load() == ({"a": 3}, [])
    store.close()


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
async def test_one_version_back_and_forth_can_be_read(tmp_path: Path, version: int) -> None:
    store = await saved(tmp_path, {"a": 1, "a key of the future": [1]})
    _version(store.path, version)
    payload, complaints = store.load()
    store.close()
    assert payload is not None
    assert payload["a"] == 1
    assert complaints == []


async def test_two_cannot_use_one_directory_at_a_time(tmp_path: Path) -> None:
    first, second = await saved(tmp_path), Store(tmp_path)
    with pytest.raises(StateLocked, match="another pylb"):
        second.open()
    first.close()
    second.open()
    second.close()
    second.close()


async def test_what_a_crash_left_in_mid_write_is_swept_at_the_next_start(tmp_path: Path) -> None:
    (await saved(tmp_path, {"a": 1})).close()
    (tmp_path / "state.json.new-123").write_bytes(b"half")
    store = await saved(tmp_path)
    assert not list(tmp_path.glob("state.json.new-*"))
    assert store.load()[0] == {"a": 1}
    store.close()


async def test_a_write_that_fails_leaves_both_generations_and_nothing_else(tmp_path: Path) -> None:
    store = await saved(tmp_path, {"a": 1}, {"a": 2})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with disk_full(), pytest.raises(OSError, match="File too large"):
        await store.save(lambda: {"a": 3})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    await store.save(lambda: {"a": 4})
    assert store.load()[0] == {"a": 4}
    store.close()


async def test_a_disk_that_hangs_is_a_disk_that_fails_and_its_late_write_is_called_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await saved(tmp_path, {"a": 1})
    hangs, real = threading.Event(), os.fsync

    def fsync(fd: int) -> None:
        hangs.wait(30)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(disk, "WRITE_TIMEOUT", 0.05)
    with pytest.raises(TimeoutError, match="in time"):
        await store.save(lambda: {"a": 2})
    monkeypatch.setattr(disk, "WRITE_TIMEOUT", 30.0)
    with pytest.raises(TimeoutError, match="has not answered yet"):
        await store.save(lambda: {"a": 3})  # at once: the test's own limit is sooner
    hangs.set()
    await until(lambda: all(job.ended for job in store._disk._late))
    await store.save(lambda: {"a": 3})
    assert store.load() == ({"a": 3}, [])
    assert json.loads(store.previous.read_bytes())["payload"] == {"a": 1}
    store.close()


async def test_a_file_that_is_missing_gives_way_to_the_generation_before_and_that_is_said(tmp_path: Path) -> None:
    store = await saved(tmp_path, {"a": 1}, {"a": 2})
    store.path.unlink()
    payload, complaints = store.load()
    assert payload == {"a": 1}
    assert complaints == ["state.json is missing: state.json.previous, the generation before it, is used"]
    store.close()


async def test_without_hard_links_the_generation_before_is_kept_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_args: object, **_more: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # of FAT

    monkeypatch.setattr(os, "link", link)
    store = await saved(tmp_path, {"a": 1}, {"a": 2}, {"a": 3})
    assert [json.loads(path.read_bytes())["payload"]["a"] for path in (store.path, store.previous)] == [3, 2]
    assert store.previous.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "state.json", "state.json.previous"]
    store.close()


@pytest.mark.parametrize(("code", "heard"), [(errno.EIO, True), (errno.EINVAL, False)])
async def test_what_only_the_directory_did_not_take_is_on_disk_and_said_to_be_unsynced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, heard: bool
) -> None:
    store = await saved(tmp_path, {"a": 1})
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(Unsynced) if heard else nullcontext():  # EINVAL: a file system that syncs no directory
        await store.save(lambda: {"a": 2})
    assert store.load() == ({"a": 2}, [])
    store.close()


async def test_a_write_that_hangs_behind_its_rename_is_unsynced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await saved(tmp_path, {"a": 1})
    hangs, real = threading.Event(), os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            hangs.wait(30)
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(disk, "WRITE_TIMEOUT", 0.2)
    with pytest.raises(Unsynced, match="in time"):
        await store.save(lambda: {"a": 2})
    assert store.load() == ({"a": 2}, [])
    hangs.set()
    store.close()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("elsewhere", path)])
def test_a_lock_that_is_no_file_is_set_aside(tmp_path: Path, make: Damage) -> None:
    make(tmp_path / "lock")
    first, second = Store(tmp_path), Store(tmp_path)
    first.open()
    with pytest.raises(StateLocked):
        second.open()
    assert os.path.lexists(tmp_path / "lock.bad-1")
    first.close()


def test_garbage_set_aside_is_bounded_and_the_oldest_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for number in range(files.MOST_ASIDE + 3):
        path.write_text(str(number))
        os.utime(path, (number, number))
        assert "it is now" in files.set_aside(path)
    found = sorted(int(one.read_text()) for one in tmp_path.iterdir())
    assert found == [*range(3, files.MOST_ASIDE + 3)]
