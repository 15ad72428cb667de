"""pylb/config/source.py: the last good config."""

import stat
from pathlib import Path

import pytest

from pylb.config import Config, parse
from pylb.config.source import LAST_GOOD, ConfigSource


def config(text: str, tmp_path: Path) -> Config:
    return parse(f"state_dir: {tmp_path}\n{text}", "pylb.yaml")


@pytest.mark.parametrize(
    "line",
    [
        "state_dir: DIR",
        "state_dir: 'DIR'   # where it is",
        '  "state_dir": "DIR",',
        '{"state_dir": "DIR",',
    ],
)
def test_a_broken_file_still_says_where_its_state_is(line: str, tmp_path: Path) -> None:
    path = tmp_path / "pylb.yaml"
    path.write_text(f"admin: [\n{line.replace('DIR', '/var/lib/other')}\nwebhook: }}\n")
    assert ConfigSource(path, {"HOME": "/home/x"}).state_dir() == Path("/var/lib/other")


def test_a_relative_state_dir_of_a_broken_file_is_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pylb.yaml"
    path.write_text("admin: [\nstate_dir: state\n")
    assert ConfigSource(path, {}).state_dir() == tmp_path / "state"


def test_without_such_a_line_or_a_file_it_is_the_default_directory(tmp_path: Path) -> None:
    path = tmp_path / "pylb.yaml"
    assert ConfigSource(path, {"STATE_DIRECTORY": "/var/lib/pylb"}).state_dir() == Path("/var/lib/pylb")
    path.write_text("admin: [\n")
    assert ConfigSource(path, {"HOME": "/home/x"}).state_dir() == Path("/home/x/.local/state/pylb")


def test_the_last_good_config_is_what_was_loaded_not_what_the_file_holds_now(tmp_path: Path) -> None:
    path = tmp_path / "pylb.yaml"
    path.write_text(f"state_dir: {tmp_path}\nadvertise: lb.example.net\n")
    source = ConfigSource(path, {})
    assert source.last_good() is None
    loaded = source.load()
    path.write_text(f"state_dir: {tmp_path}\nadvertise: [\n")  # somebody goes on writing while it is loaded
    source.keep(loaded)
    kept = source.last_good()
    assert kept is not None
    assert kept.advertise == "lb.example.net"
    assert stat.S_IMODE((tmp_path / LAST_GOOD).stat().st_mode) == 0o600  # it may hold secrets


def test_a_last_good_config_that_is_not_good_any_more_is_none(tmp_path: Path) -> None:
    path = tmp_path / "pylb.yaml"
    path.write_text(f"state_dir: {tmp_path}\n")
    source = ConfigSource(path, {})
    source.keep(source.load())
    (tmp_path / LAST_GOOD).write_text("workers: -1\n")
    assert source.last_good() is None


def test_the_embedded_defaults_are_not_kept(tmp_path: Path) -> None:
    source = ConfigSource(None, {"HOME": str(tmp_path)})
    source.keep(source.load())
    assert source.last_good() is None
    assert list(tmp_path.iterdir()) == []
