"""The certbot hook: what it copies is whole, readable for pylb's group alone, and what pylb then serves."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pylb.web.tls import Certificate
from tests.support.certificate import self_signed
from tests.support.peers import need_root

HOOK = Path(__file__).parents[2] / "deploy/certbot/pylb-deploy-hook.sh"


@pytest.fixture
def lineage(tmp_path: Path) -> Path:
    """As certbot leaves it: /etc/letsencrypt/live/NAME."""
    folder = tmp_path / "live/lb.example.net"
    folder.mkdir(parents=True)
    made = self_signed(folder, "lb.example.net")
    made.certificate.rename(folder / "fullchain.pem")
    made.key.rename(folder / "privkey.pem")
    return folder


def run(lineage: Path | None, to: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "PYLB_TLS_DIR": str(to), "PYLB_GROUP": "root"} | more
    if lineage is not None:
        environ["RENEWED_LINEAGE"] = str(lineage)
    return subprocess.run([str(HOOK)], check=False, env=environ, capture_output=True, text=True, timeout=20)


@pytest.mark.root
def test_the_pair_arrives_whole_and_for_the_group_alone(lineage: Path, tmp_path: Path) -> None:
    need_root()
    to = tmp_path / "tls"
    ended = run(lineage, to)
    assert ended.returncode == 0, ended.stderr
    assert sorted(path.name for path in to.iterdir()) == ["fullchain.pem", "privkey.pem"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in to.iterdir()} == {0o640}
    Certificate(to / "fullchain.pem", to / "privkey.pem")
    assert run(lineage, to).returncode == 0  # and again


@pytest.mark.root
def test_another_certificate_of_the_same_certbot_is_left_alone(lineage: Path, tmp_path: Path) -> None:
    need_root()
    assert run(lineage, tmp_path / "tls", PYLB_LINEAGE="other.example.net").returncode == 0
    assert not (tmp_path / "tls").exists()


def test_by_hand_without_the_variable_it_says_which(tmp_path: Path) -> None:
    ended = run(None, tmp_path / "tls")
    assert (ended.returncode != 0, "RENEWED_LINEAGE" in ended.stderr) == (True, True)


def test_the_shell_has_no_complaint() -> None:
    assert subprocess.run([shutil.which("sh") or "sh", "-n", str(HOOK)], check=False, timeout=10).returncode == 0
