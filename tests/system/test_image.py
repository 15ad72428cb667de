"""The Dockerfile, built and run: both images on a base of Debian's packages, read-only, without a capability."""

import os
import re
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.netns import LB, Lab
from tests.support.processes import Process, Processes, python
from tests.system.images import Builder, Image, beside, files, start

pytestmark = pytest.mark.timeout(600)  # the first one makes a Debian and builds
USER = 65532


@pytest.fixture(scope="module")
def builder(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    found = Builder(tmp_path_factory.mktemp("buildah"))
    found.base("localhost/base", debian)
    yield found
    found.remove()


@pytest.fixture(scope="module")
def pylb(builder: Builder) -> Image:
    return builder.build("pylb", "localhost/base")


@pytest.fixture(scope="module")
def phonehome(builder: Builder) -> Image:
    return builder.build("phonehome", "localhost/base")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "volume"
    folder.mkdir(mode=0o700)
    os.chown(folder, USER, USER)
    return folder


@pytest.fixture
def balancer(processes: Processes, lab: Lab, pylb: Image, state: Path) -> Process:
    """pylb as the image starts it, with nothing but a volume."""
    process = start(processes, "pylb", pylb, lab.lb, volume=state)
    process.has_said("pylb is up")
    return process


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def test_pylb_and_a_phone_home_from_the_images_serve_a_client(
    processes: Processes, lab: Lab, pylb: Image, phonehome: Image, balancer: Process
) -> None:
    create = ["pylb", "token", "create", "app", "--ports", "443-9000", "--host", LB]
    made = run(beside(balancer, pylb, create))
    assert made.returncode == 0, made.stderr
    join = made.stdout.strip().removeprefix("PYLB_JOIN=")
    app = processes.start("app", python("tests.support.pod", "app", "1883"), at=lab.a.pod)
    app.has_said("serving")
    lab.a.nodeport(30843, 1883)
    environ = {"PYLB_JOIN": join, "PYLB_NAME": "app", "PYLB_FRONTENDS": "8443:30843"}
    phone = start(processes, "phonehome", phonehome, lab.a.pod, environ=environ)
    phone.has_said("registered: ")
    with lab.client.inside():
        sock = socket.create_connection((LB, 8443), 10)
    with sock:
        assert sock.recv(100).startswith(b"app 1883 ")
    health = run(beside(phone, phonehome, phonehome.health, [f"{key}={value}" for key, value in environ.items()]))
    assert health.returncode == 0, health.stderr
    [inner] = phone.children()
    os.kill(inner, signal.SIGTERM)
    phone.wait()
    assert "draining" in phone.text()


def test_the_health_check_of_the_image_follows_the_running_pylb(pylb: Image, balancer: Process) -> None:
    assert run(beside(balancer, pylb, pylb.health)).returncode == 0
    [inner] = balancer.children()
    os.kill(inner, signal.SIGSTOP)
    assert run(beside(balancer, pylb, pylb.health)).returncode != 0
    os.kill(inner, signal.SIGCONT)


def test_process_1_reloads_and_stops_by_signals(balancer: Process) -> None:
    [inner] = balancer.children()
    os.kill(inner, signal.SIGHUP)
    balancer.has_said("reloaded: ")
    os.kill(inner, signal.SIGTERM)
    assert balancer.wait() == 0


def test_it_runs_as_its_user_without_a_capability_and_writes_to_its_volume_alone(balancer: Process, state: Path) -> None:
    [inner] = balancer.children()
    status = Path(f"/proc/{inner}/status").read_text()
    assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}\n" in status
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert re.search(rf"{kind}:\t0+\n", status), kind
    assert "NoNewPrivs:\t1\n" in status
    assert {path.name for path in state.iterdir()} >= {"processes", "token"}
    assert {path.stat().st_uid for path in state.iterdir()} == {USER}
    assert stat.S_IMODE((state / "token").stat().st_mode) == 0o600


def test_without_a_volume_a_read_only_root_is_no_reason_not_to_start_but_said(
    processes: Processes, lab: Lab, pylb: Image
) -> None:
    process = start(processes, "pylb", pylb, lab.lb)
    assert process.wait() == 2
    assert "Make the directory writable" in process.text()


def test_the_layers_hold_what_is_needed_and_nothing_of_the_tree(debian: Path, pylb: Image, phonehome: Image) -> None:
    base = set(files(debian))
    ours = {path for path in files(pylb.root) if path not in base}
    assert {"opt/pylb/bin/pylb", "var/lib/pylb"} <= ours
    assert {path for path in files(phonehome.root) if path not in base} == {"opt/phonehome", "opt/phonehome/phonehome.pyz"}
    strange = re.compile(r"(^|/)(\.git|\.venv|tests|bench|src|\.env|root/\..*|.*\.(key|pem))(/|$)")
    packages = re.compile(r"opt/pylb/lib/python3[^/]*/site-packages/")
    assert [path for path in ours if strange.search(packages.sub("", path)) and not packages.match(path)] == []
    assert [path for path in ours if path.startswith(("src/", "tmp/", "root/"))] == []
    for image in (pylb, phonehome):
        assert image.config["User"] == f"{USER}:{USER}"
        assert not [name for name in image.environ if re.search("TOKEN|SECRET|PASSWORD|PIP", name)]
