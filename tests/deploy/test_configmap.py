"""The phone-home as a ConfigMap: what is committed is what the sources give, and it runs."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT, parse, validate

COMMITTED = ROOT / "phonehome-configmap.yaml"
CONTROLLER = ROOT / "controller" / "configmap.yaml"
SCRIPT = ROOT / "make_configmap.py"


def generate(*targets: Path, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, *targets], capture_output=True, text=True, check=False, timeout=30)


def test_the_committed_config_map_is_what_the_sources_give(tmp_path: Path) -> None:
    fresh = {tmp_path / "phonehome.yaml": COMMITTED, tmp_path / "controller.yaml": CONTROLLER}
    result = generate(*fresh)
    assert result.returncode == 0, result.stderr
    same = all(committed.read_bytes() == made.read_bytes() for made, committed in fresh.items())
    assert same, "phonehome/ changed: run python3 deploy/kubernetes/make_configmap.py"  # a diff of base64 takes minutes


def test_generating_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.yaml", "two.yaml"):
        assert generate(tmp_path / name).returncode == 0
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()


def test_the_config_map_follows_the_schema_and_fits_the_annotation_of_kubectl_apply() -> None:
    (document,) = parse(COMMITTED.read_text())
    validate(document, "1.25")
    assert "namespace" not in document["metadata"]  # chosen by kubectl apply -n
    assert COMMITTED.stat().st_size < 256 * 1024


def test_the_zipapp_inside_runs_and_names_what_is_missing(tmp_path: Path) -> None:
    (document,) = parse(COMMITTED.read_text())
    zipapp = tmp_path / "phonehome.pyz"
    zipapp.write_bytes(base64.b64decode(document["binaryData"]["phonehome.pyz"]))
    result = subprocess.run(
        [sys.executable, "-I", zipapp], env={}, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert result.returncode != 0
    for variable in ("PYLB_URL", "PYLB_NAME", "PYLB_FRONTENDS"):
        assert variable in result.stdout + result.stderr


@pytest.mark.parametrize(("zipapp", "message"), [("raise SystemExit(3)", "exit status 3"), ("", "No such file")])
def test_a_zipapp_that_cannot_be_built_leaves_the_old_file_and_says_why(tmp_path: Path, zipapp: str, message: str) -> None:
    (tmp_path / "kubernetes").mkdir()
    script = tmp_path / "kubernetes/make_configmap.py"
    script.write_text(SCRIPT.read_text())
    (tmp_path / "zipapp.py").write_text(zipapp)
    target = tmp_path / "kept.yaml"
    target.write_text("old")
    result = generate(target, script=script)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert target.read_text() == "old"
