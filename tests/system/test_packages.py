"""What `make dist` and `make deb` make, used where nothing of pylb was before (pytest -rP: lintian's notes, and figures)."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pylb import __version__
from tests.support.netns import LB, Lab
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import ROOT, Processes, python
from tests.support.waiting import eventually
from tests.system.machine import Machine, install
from tests.system.service import CONFIG, PORT, Service, exchange

pytestmark = pytest.mark.timeout(600)  # the first one makes the packages, another one a Debian
NEWER = "99.0.0-1"
ROLE = "/srv/ansible"
FRONTENDS = [{"name": "app", "listen": f"*:{PORT}", "servers": ["203.0.113.10:30843"]}]
SERVES = {"state_dir": "/var/lib/pylb", "webhook": {"listen": "*:9000", "tls": "self-signed"}, "frontends": FRONTENDS}


def run(*argv: str | Path, cwd: Path = ROOT, **environ: str) -> str:
    done = subprocess.run(argv, cwd=cwd, env=os.environ | environ, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `make dist deb` fills dist/."""
    for program in ("dpkg-buildpackage", "dh"):
        need(program)
    folder = tmp_path_factory.mktemp("dist")
    run("make", "dist", "deb", f"DIST={folder}")
    return folder


@pytest.fixture(scope="module")
def deb(made: Path) -> Path:
    [found] = made.glob("pylb_*.deb")
    return found


# ---------------------------------------------------------------- wheel, sdist, zipapp


@pytest.fixture(scope="module")
def clean(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and what the lock names, and nothing of this checkout."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", folder)
    pip = (folder / "bin/python", "-m", "pip", "install", "-q")
    run(*pip, "--require-hashes", "-r", ROOT / "requirements.lock")
    [wheel] = made.glob("*.whl")
    run(*pip, "--no-deps", wheel)
    run(*pip[:3], "check")
    return folder / "bin"


def test_the_checksums_are_those_of_wheel_sdist_and_phone_home(made: Path) -> None:
    run("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=made)
    named = {line.split()[1] for line in (made / "SHA256SUMS").read_text().splitlines()}
    stem = f"pylb_balancer-{__version__}"
    assert named == {f"{stem}-py3-none-any.whl", f"{stem}.tar.gz", "phonehome.pyz"}


def test_the_sdist_builds_to_the_same_wheel(made: Path, tmp_path: Path) -> None:
    [sdist], [wheel] = made.glob("*.tar.gz"), made.glob("*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    run(ROOT / ".venv/release/bin/python", "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", cwd=source)
    assert (tmp_path / "again" / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_wheel_runs_in_a_clean_environment_and_forwards(clean: Path, processes: Processes, tmp_path: Path) -> None:
    assert run(clean / "pylb", "--version", cwd=tmp_path).split()[-1] == __version__
    port, app = free_port(), free_port()
    file = tmp_path / "pylb.yaml"
    frontend = {"name": "app", "listen": f"127.0.0.1:{port}", "servers": [f"127.0.0.1:{app}"]}
    listeners = {
        "webhook": {"listen": f"127.0.0.1:{free_port()}", "insecure": True},
        "admin": {"listen": f"127.0.0.1:{free_port()}"},
    }
    file.write_text(json.dumps({**listeners, "state_dir": str(tmp_path / "state"), "frontends": [frontend]}))
    run(clean / "pylb", "check", "-c", file, cwd=tmp_path)
    assert "pylb.service" in run(
        clean / "pylb", "install-service", "--print", cwd=tmp_path
    )  # what the wheel brings beside code
    processes.start("app", python("tests.support.pod", "app", str(app))).has_said("serving")
    processes.start("pylb", [str(clean / "pylb"), "run", "-c", str(file)]).has_said("pylb is up")
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        assert exchange(sock)


# ---------------------------------------------------------------- the Debian package


def test_lintian_finds_no_fault(deb: Path, tmp_path: Path) -> None:
    environ = os.environ | {"TMPDIR": str(tmp_path)}  # it leaves a file behind
    done = subprocess.run(
        [need("lintian"), "--fail-on", "error", str(deb)], env=environ, capture_output=True, text=True, timeout=200, check=False
    )
    print(done.stdout)  # noqa: T201 - its warnings, for pytest -rP
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as found:
        yield found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("packages")) as found:
        yield found


@pytest.fixture(scope="module")
def service(
    debian: Path, deb: Path, lab: Lab, running: Processes, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A Debian with the package in /srv, not installed; an app on a node; and Ansible."""
    root = install(debian, tmp_path_factory.mktemp("machine") / "root", "ansible-core", "python3-apt")
    shutil.copy(deb, root / "srv/pylb.deb")
    newer(deb, root / "srv/newer.deb", tmp_path_factory.mktemp("newer"), '__version__ = "99.0.0"')
    newer(deb, root / "srv/broken.deb", tmp_path_factory.mktemp("broken"), "raise SystemExit(3)")
    shutil.copytree(ROOT / "deploy/ansible", root / ROLE.lstrip("/"))
    running.start("app", python("tests.support.pod", "app", "1883"), at=lab.a.pod).has_said("serving")
    lab.a.nodeport(30843, 1883)
    with Machine(root, lab.lb, running) as machine:
        yield Service(machine, lab.client)


@pytest.fixture
def nothing(service: Service) -> Service:
    """The machine as it was before any package."""
    service.machine.sh("dpkg --purge pylb; rm -rf /etc/pylb /var/lib/pylb; systemctl reset-failed")
    return service


@pytest.fixture
def installed(nothing: Service) -> Service:
    """With the package and a frontend of the administrator's."""
    apt(nothing, "install", "/srv/pylb.deb")
    configure(nothing, SERVES)
    nothing.systemctl("reload", "pylb")
    assert nothing.serves()
    return nothing


def newer(deb: Path, to: Path, folder: Path, version: str) -> None:
    """The same package as a later one; `version` is the line of pylb/__init__.py."""
    run("dpkg-deb", "-R", deb, folder)
    control = folder / "DEBIAN/control"
    control.write_text(re.sub("^Version: .*$", f"Version: {NEWER}", control.read_text(), flags=re.MULTILINE))
    [module] = (folder / "usr/lib/pylb").glob("lib/python3*/site-packages/pylb/__init__.py")
    module.write_text(module.read_text().replace(f'__version__ = "{__version__}"', version))
    run("dpkg-deb", "-Znone", "-b", folder, to)


def apt(service: Service, *words: str) -> str:
    return service.machine.sh(
        f"apt-get -y -q -o Dpkg::Options::=--force-confold {' '.join(words)} 2>&1",
        environ={"DEBIAN_FRONTEND": "noninteractive"},
    )


def configure(service: Service, settings: dict[str, object]) -> None:
    """In place, so that owner and mode stay."""
    service.machine.file(CONFIG).write_text(yaml.safe_dump(settings))


def modes(service: Service, *paths: str) -> list[str]:
    return service.machine.run("stat", "--format=%a %U:%G", *paths).stdout.splitlines()


def test_the_package_starts_a_service_with_a_token_of_its_own(nothing: Service) -> None:
    apt(nothing, "install", "/srv/pylb.deb")
    assert (nothing.show("ActiveState"), nothing.show("UnitFileState")) == ("active", "enabled")
    assert nothing.version() == __version__
    assert nothing.machine.sh("pylb --version").split()[-1] == __version__
    assert modes(nothing, "/etc/pylb", CONFIG, "/etc/pylb/tokens", "/etc/pylb/tokens/default") == [
        "750 root:pylb",
        "640 root:pylb",
        "750 root:pylb",
        "640 root:pylb",
    ]
    assert len(nothing.machine.file("/etc/pylb/tokens/default").read_text().strip()) == 32
    assert nothing.machine.run("stat", "--format=%U", f"/proc/{nothing.main}").stdout == "pylb\n"
    assert "PYLB_JOIN=" in nothing.machine.sh(f"pylb token create app --ports {PORT} --host {LB}")
    assert nothing.machine.sh("dpkg --verify pylb") == ""
    shipped = nothing.machine.sh("dpkg -L pylb").split()
    assert {"/usr/share/man/man1/pylb.1.gz", "/usr/share/bash-completion/completions/pylb"} <= set(shipped)


def test_installing_it_again_changes_nothing(installed: Service) -> None:
    before = installed.machine.sh(f"cat {CONFIG} /etc/pylb/tokens/default")
    main = installed.main
    apt(installed, "install", "--reinstall", "/srv/pylb.deb")
    assert installed.machine.sh(f"cat {CONFIG} /etc/pylb/tokens/default") == before
    assert installed.serves()
    assert installed.main != main  # as with any other package: what is installed now is what runs


def test_an_upgrade_of_the_package_fails_no_connection_and_ends_no_session(installed: Service) -> None:
    with installed.connect() as session:
        assert exchange(session)
        with installed.under_load("upgrade of the package") as load:
            apt(installed, "install", "/srv/newer.deb")
            assert installed.version() == "99.0.0"
        assert load.failed == []
        session.sendall(b"still here")
        assert session.recv(100) == b"still here"
    assert yaml.safe_load(installed.machine.file(CONFIG).read_text()) == SERVES


def test_an_upgrade_to_a_version_that_does_not_start_leaves_the_old_one_serving_and_says_so(installed: Service) -> None:
    main = installed.main
    with installed.under_load("upgrade to a broken version") as load:
        assert "the former version goes on serving" in apt(installed, "install", "/srv/broken.deb")
    assert load.failed == []
    assert installed.main == main


def test_removed_it_leaves_config_and_state_and_purged_nothing_but_the_user(installed: Service) -> None:
    token = installed.machine.file("/etc/pylb/tokens/default").read_text()
    apt(installed, "remove", "pylb")
    there = installed.machine.sh(f"ls -d {CONFIG} /var/lib/pylb/state.json /usr/lib/pylb /usr/bin/pylb 2>/dev/null || true")
    assert there.split() == [CONFIG, "/var/lib/pylb/state.json"]
    assert installed.pids() == []
    apt(installed, "install", "/srv/pylb.deb")
    assert installed.machine.file("/etc/pylb/tokens/default").read_text() == token
    eventually(installed.serves, within=30, what="it serves again")
    apt(installed, "purge", "pylb")
    left = installed.machine.sh("find / -xdev -path /proc -prune -o -path /srv -prune -o -iname '*pylb*' -print")
    assert [path for path in left.split() if not path.startswith(("/var/lib/systemd", "/var/cache"))] == []
    assert installed.machine.sh("id -u pylb").strip().isdigit()


def test_the_package_is_not_installed_beside_a_service_of_install_service(nothing: Service) -> None:
    unit = nothing.machine.file("/etc/systemd/system/pylb.service")
    unit.write_text("[Service]\nExecStart=/opt/pylb/bin/pylb run -c /etc/pylb/pylb.yaml\n")
    try:
        done = nothing.machine.run("dpkg", "-i", "/srv/pylb.deb", check=False)
        assert done.returncode != 0
        assert "pylb uninstall-service" in done.stderr
        assert not nothing.machine.file("/usr/bin/pylb").exists()
        assert not nothing.machine.file("/etc/pylb").exists()
    finally:
        unit.unlink()
    assert "Debian package" in refused(nothing)


def refused(service: Service) -> str:
    """What install-service says where the package is."""
    apt(service, "install", "/srv/pylb.deb")
    done = service.machine.run("pylb", "install-service", check=False)
    assert done.returncode == 1
    assert not service.machine.file("/opt/pylb").exists()
    return done.stderr


# ---------------------------------------------------------------- Ansible


def play(service: Service, settings: dict[str, object], *, check: bool = True) -> str:
    """The playbook of the page, on the machine itself, with a config of the test's."""
    variables = {
        "pylb_deb": "/srv/pylb.deb",
        "pylb_config": settings,
        "pylb_secrets": {"app": "a-token-with-more-than-22-letters"},
    }
    service.machine.file("/srv/variables.json").write_text(json.dumps(variables))
    command = f"cd {ROLE} && ansible-playbook -i localhost, -c local -e @/srv/variables.json site.yml"
    done = service.machine.run("sh", "-c", command, check=False, timeout=300)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_ansible_lint_finds_no_fault(tmp_path: Path) -> None:
    copy = tmp_path / "ansible"
    shutil.copytree(ROOT / "deploy/ansible", copy)  # it leaves a cache behind
    run(need("ansible-lint"), "--offline", "--nocolor", "-q", "--profile", "production", cwd=copy)


def test_the_ansible_role_installs_configures_and_then_changes_nothing(nothing: Service) -> None:
    token = {"name": "app", "secret_file": "/etc/pylb/tokens/app", "ports": [PORT]}
    first = play(nothing, {**SERVES, "tokens": [token]})
    assert "failed=0" in first
    assert nothing.serves()
    assert modes(nothing, CONFIG, "/etc/pylb/tokens/app") == ["640 root:pylb", "640 root:pylb"]
    main = nothing.main
    assert "changed=0" in play(nothing, {**SERVES, "tokens": [token]})
    another = {"name": "another", "listen": "*:2222", "servers": ["203.0.113.10:30843"]}
    play(nothing, {**SERVES, "tokens": [token], "frontends": [*FRONTENDS, another]})
    assert nothing.serves(2222)
    assert nothing.main == main  # reloaded
    before = nothing.machine.file(CONFIG).read_text()
    assert "unknown key 'balance'" in play(nothing, {**SERVES, "balance": "fastest"}, check=False)
    assert nothing.machine.file(CONFIG).read_text() == before
    play(nothing, {**SERVES, "tokens": [token], "webhook": {"listen": "*:9100", "tls": "self-signed"}})
    assert nothing.serves()
    assert nothing.main != main  # upgraded, because a reload cannot change the webhook
