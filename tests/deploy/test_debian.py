"""deploy/debian: what can be said of it without building it. tests/system/test_packages.py builds and installs the package."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY

DEBIAN = DEPLOY / "debian"
SCRIPTS = ("preinst", "postinst", "prerm", "postrm", "build")
UNIT = (DEPLOY / "systemd/pylb.service").read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_one_and_stops_at_its_first_failure(name: str) -> None:
    subprocess.run(["sh", "-n", DEBIAN / name], check=True, timeout=10)
    text = (DEBIAN / name).read_text()
    assert text.startswith("#!/bin/sh\n")
    assert re.search(r"^set -eu?$", text, re.MULTILINE)
    assert name == "build" or "#DEBHELPER#" in text


def test_package_and_install_service_recognise_each_other() -> None:
    [pattern] = set(re.findall(r"grep -qs '([^']+)'", (DEBIAN / "preinst").read_text() + (DEBIAN / "postrm").read_text()))
    assert re.search(pattern, UNIT, re.MULTILINE)
    rules = (DEBIAN / "rules").read_text()
    [folder] = re.findall(r"^LIB +:= (.+)$", rules, re.MULTILINE)
    source = (DEPLOY.parent / "pylb/cli/install.py").read_text()
    assert f'prefix / "{folder}/bin/pylb"' in source
    replaced = re.findall(r"s#(/opt/[^#]+)#([^#]+)#", rules)
    assert replaced == [("/opt/pylb/bin/pylb", "/usr/bin/pylb")]
    assert not re.search(pattern, UNIT.replace(*replaced[0]), re.MULTILINE)


def test_the_build_says_what_is_missing(tmp_path: Path) -> None:
    for name in ("dirname", "realpath"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    environ = {"PATH": str(tmp_path)}
    done = subprocess.run(
        ["/bin/sh", DEBIAN / "build", tmp_path], env=environ, capture_output=True, text=True, timeout=10, check=False
    )
    assert done.returncode == 1
    assert "sudo apt install dpkg-dev debhelper" in done.stderr
