"""pylb/app/tokens.py: the token of a first run."""

import stat
from pathlib import Path

import pytest

from pylb.app.tokens import TOKEN_FILE, generated_secret


def test_the_token_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    first = generated_secret(tmp_path)
    assert len(first) == 32
    assert generated_secret(tmp_path) == first
    assert stat.S_IMODE((tmp_path / TOKEN_FILE).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [TOKEN_FILE]  # no temporary file is left


def test_a_token_file_that_was_cut_short_is_replaced(tmp_path: Path) -> None:
    (tmp_path / TOKEN_FILE).write_text("short\n")
    assert len(generated_secret(tmp_path)) == 32


def test_a_token_that_cannot_be_kept_is_an_error_of_its_directory(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        generated_secret(tmp_path / "missing")
