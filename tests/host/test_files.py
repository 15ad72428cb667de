"""Files that are read again when they change."""

from pathlib import Path

import pytest

from pylb.host.files import Watch


async def test_a_file_that_changes_between_the_reading_at_the_start_and_the_first_look_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("first")
    read = [file.read_text()]

    async def reading() -> None:
        read.append(file.read_text())

    file.write_text("renewed")
    watch = Watch(lambda: [file], reading)
    await watch.look()
    assert read == ["first", "renewed"]
    await watch.look()
    assert read == ["first", "renewed"], "nothing has changed since"


@pytest.mark.parametrize("change", ["content", "disappears", "appears", "a link to another"])
async def test_each_kind_of_change_is_noticed_once(tmp_path: Path, change: str) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    other.write_text("one")
    if change == "a link to another":
        file.symlink_to(other)
    elif change != "appears":
        file.write_text("one")
    calls = []

    async def called() -> None:
        calls.append(file.exists())

    watch = Watch(lambda: [file], called)
    await watch.look()
    if change == "disappears":
        file.unlink()
    elif change == "a link to another":
        (tmp_path / "third").write_text("one")
        file.unlink()
        file.symlink_to(tmp_path / "third")
    else:
        file.write_text("three")
    await watch.look()
    await watch.look()
    assert calls == [change != "appears", change != "disappears"]


async def test_what_fails_is_tried_again_at_the_next_look(tmp_path: Path) -> None:
    calls = 0

    async def fails_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("not now")

    watch = Watch(lambda: [tmp_path / "file"], fails_once)
    with pytest.raises(OSError, match="not now"):
        await watch.look()
    await watch.look()
    await watch.look()
    assert calls == 2
