"""deploy/compose: docker-compose reads it, and it says of the container what the image and the unit say of pylb."""

import re
import subprocess
from typing import Any

import pytest
import yaml

from pylb import config
from pylb.control.storage.places import SYSTEM_FILE
from tests.deploy.manifests import DEPLOY
from tests.support.peers import need

FOLDER = DEPLOY / "compose"
DOCKERFILE = (DEPLOY.parent / "Dockerfile").read_text()


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    """As docker-compose understands it: paths are absolute, short forms are written out."""
    argv = [need("docker-compose"), "-f", str(FOLDER / "compose.yaml"), "config"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]["pylb"]
    return found


def test_it_is_built_from_this_checkout(service: dict[str, Any]) -> None:
    assert service["build"]["context"] == str(DEPLOY.parent)
    assert f" AS {service['build']['target']}\n" in DOCKERFILE


def test_what_is_mounted_exists_and_is_where_pylb_looks_for_it(service: dict[str, Any]) -> None:
    mounts = {one["target"]: one for one in map(volume, service["volumes"])}
    assert mounts["/etc/pylb"]["source"] == str(FOLDER / "config")
    assert mounts["/etc/pylb"]["mode"] == "ro"
    [state] = [target for target, mount in mounts.items() if mount["mode"] == "rw"]
    assert f"\nVOLUME {state}\n" in DOCKERFILE
    verb, flag, path = service["command"]
    assert (verb, flag, path) == ("run", "-c", str(SYSTEM_FILE))  # so that `exec pylb pylb VERB` finds it by itself
    assert (FOLDER / "config/pylb.yaml").is_file()


def volume(entry: str | dict[str, Any]) -> dict[str, str]:
    """docker-compose 1 prints SOURCE:TARGET:MODE, later ones a mapping."""
    if isinstance(entry, str):
        source, target, mode = entry.split(":")
        return {"source": source, "target": target, "mode": mode}
    return {"source": entry["source"], "target": entry["target"], "mode": "ro" if entry.get("read_only") else "rw"}


def test_it_has_what_the_unit_has(service: dict[str, Any]) -> None:
    unit = (DEPLOY / "systemd/pylb.service").read_text()
    assert service["network_mode"] == "host"
    assert f"LimitNOFILE={service['ulimits']['nofile']}:" in unit
    assert f"TimeoutStopSec={service['stop_grace_period']}\n" in unit
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_pylb_accepts_its_config_without_a_warning() -> None:
    loaded = config.load(FOLDER / "config/pylb.yaml", {})
    assert loaded.warnings == ()
    assert str(loaded.state_dir) == "/var/lib/pylb"


def test_the_commands_of_its_page_are_verbs_that_take_them() -> None:
    """`exec pylb pylb VERB …`: the service, the program, and a verb of it."""
    verbs = set(re.findall(r"^## `pylb (\w+)`$", (DEPLOY.parent / "docs/cli.md").read_text(), re.MULTILINE))
    text = (FOLDER / "README.md").read_text() + (FOLDER / "compose.yaml").read_text()
    used = set(re.findall(r"exec pylb pylb (\w+)", text))
    assert {"token", "reload", "routes"} <= used
    assert used <= verbs
    assert re.findall(r"exec pylb pylb .*? -c", text) == []
