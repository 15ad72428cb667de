"""docs/pylb.1 has every verb and option, and formatters of manual pages find nothing wrong with it."""

import os
import subprocess
from pathlib import Path

from tests.cli.every_verb import verbs
from tests.support.peers import need

PAGE = Path(__file__).parents[2] / "docs" / "pylb.1"


def formatted(*command: str) -> subprocess.CompletedProcess[str]:
    need(command[0])
    environ = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    return subprocess.run([*command, str(PAGE)], check=False, capture_output=True, text=True, env=environ, timeout=30)


def test_mandoc_has_no_complaint() -> None:
    done = formatted("mandoc", "-T", "lint", "-W", "warning")
    found = [line for line in (done.stdout + done.stderr).splitlines() if "missing date" not in line]
    assert found == []  # a date would make the page differ from day to day


def test_man_renders_it_without_a_warning_and_it_has_every_verb_and_option() -> None:
    done = formatted("man", "--warnings", "-l")
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    for path, command in verbs():
        assert f"pylb {' '.join(path)} [OPTIONS]" in text, path
        for one in command.params:
            assert one.opts[-1].startswith("--") is False or one.opts[-1] in text, (path, one.opts)
    lines = text.splitlines()
    assert "         pylb explain 443            why this port does not answer" in lines  # examples keep their lines
    assert max(map(len, lines)) <= 85
