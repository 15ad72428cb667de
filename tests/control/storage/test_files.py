"""How files of the state directory are read."""

from pathlib import Path

import pytest

from pylb.control.storage.files import PIECE, read_regular
from tests.fuzz.measures import memory


def test_a_short_file_takes_no_memory_for_the_longest_one(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(b"{}")
    assert memory(read_regular, path, 64 << 20) < 4 * PIECE


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE])
def test_a_file_of_several_pieces_is_read_whole_and_a_longer_one_refused(size: int, tmp_path: Path) -> None:
    path, data = tmp_path / "state.json", bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    path.write_bytes(data)
    assert read_regular(path, size) == data
    path.write_bytes(data + b"x")
    with pytest.raises(ValueError, match="larger than"):
        read_regular(path, size)
