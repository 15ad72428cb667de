"""The service under a real systemd: every step of its life under a steady load of new connections (pytest -rP: the figures)."""

import json
import re
import shutil
import signal
import ssl
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.certificate import self_signed
from tests.support.load import Load
from tests.support.netns import LB, Lab
from tests.support.peers import need
from tests.support.processes import ROOT, Processes, python
from tests.support.waiting import eventually
from tests.system.machine import Machine, install
from tests.system.service import PORT, Service, commands, config, exchange, flows

pytestmark = pytest.mark.timeout(600)  # the first one makes a Debian, boots it and installs pylb
FIRST_STEPS = commands("docs/install.md", "pylb install-service")
AFTER_A_CHANGE = commands("docs/install.md", "pylb check")
OFF_THE_MACHINE = commands("docs/install.md", "uninstall-service")
UPGRADE = commands("docs/operations.md", "install-service")
WAY_BACK = commands("docs/operations.md", "versions/OLD")
ANOTHER = "\nfrontends:\n  - {name: another, listen: '*:2222', servers: ['203.0.113.10:30843']}\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as found:
        yield found


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("systemd")) as found:
        yield found


@pytest.fixture(scope="module")
def machine(debian: Path, lab: Lab, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    root = install(debian, tmp_path_factory.mktemp("machine") / "root")
    with Machine(root, lab.lb, processes) as found:
        yield found


@pytest.fixture(scope="module")
def installed(machine: Machine, lab: Lab, processes: Processes) -> Service:
    """By docs/install.md: a clone, install-service, the config, systemctl, a token; and an app that phones home with it."""
    service = Service(machine, lab.client)
    service.checkout()
    joins = []
    for line in FIRST_STEPS:
        if line.startswith("editor "):
            file = config(service)
            file.write_text(file.read_text().replace("# advertise: lb.example.net", f"advertise: {LB}"))
        else:
            joins += [word for word in service.do(line).split() if word.startswith("PYLB_JOIN=")]
    [service.good] = service.versions()
    app = processes.start("app", python("tests.support.pod", "app", "1883"), at=lab.a.pod)
    app.has_said("serving")
    lab.a.nodeport(30843, 1883)
    environ = {"PYLB_JOIN": joins[0].partition("=")[2], "PYLB_NAME": "mosquitto", "PYLB_FRONTENDS": f"{PORT}:30843"}
    processes.start("phonehome", python("phonehome"), at=lab.a.pod, env=environ).has_said("registered: ")
    return service


@pytest.fixture
def service(installed: Service) -> Iterator[Service]:
    """Active, as installed, and alone in its cgroup, whatever the test before did."""
    before = config(installed).read_text()
    yield installed
    installed.only_the_good_one()
    config(installed).write_text(before)
    installed.systemctl("restart", "pylb")
    installed.alone()


# ---------------------------------------------------------------- what is installed


def test_the_commands_of_the_readme_make_a_service_that_serves(service: Service) -> None:
    assert service.serves()
    assert service.show("ActiveState") == "active"
    assert service.systemctl("is-enabled", "pylb").stdout.strip() == "enabled"
    eventually(lambda: service.show("StatusText").startswith("1 port, "), within=60, what="status text")
    assert int(service.show("NFileDescriptorStore")) >= 3  # webhook, admin and the port
    assert [line for line in service.journal().splitlines() if line.startswith(("warning", "error", "critical"))] == []
    service.alone()


def test_systemd_finds_the_running_service_well_locked_in(service: Service) -> None:
    assert service.machine.run("systemd-analyze", "security", "--no-pager", "--threshold=17", "pylb").returncode == 0


# ---------------------------------------------------------------- its life, without a failed connection


def test_a_reload_needs_no_program_but_pylb_and_fails_where_it_is_refused(service: Service) -> None:
    assert not service.machine.file("/bin/kill").exists()  # procps
    main, file = service.main, config(service)
    with service.under_load("reload") as load:
        file.write_text(file.read_text() + ANOTHER)
        for line in AFTER_A_CHANGE:
            service.do(line)
        assert service.serves(2222)
        file.write_text(file.read_text() + "balance: fastest\n")
        refused = service.systemctl("reload", "pylb", check=False)
        assert refused.returncode == 1
        assert "unknown key 'balance'" in service.journal()
        assert service.serves(2222)
    assert load.failed == []
    assert (service.main, service.show("ActiveState")) == (main, "active")


def test_a_restart_fails_no_connection(service: Service) -> None:
    main = service.main
    with service.under_load("restart") as load:
        service.systemctl("restart", "pylb")
    assert load.failed == []
    assert service.main != main
    service.alone()


def test_who_connects_during_a_restart_waits_in_the_fd_store_and_is_served(service: Service) -> None:
    service.machine.sh("mkfifo /etc/gate")
    with service.with_settings("ExecStartPre=/bin/sh -c 'read x < /etc/gate'"):
        service.systemctl("restart", "--no-block", "pylb")
        eventually(lambda: service.show("SubState") == "start-pre", within=60, what="the old one has ended")
        waiting = [service.connect() for _ in range(20)]
        with service.machine.file("/etc/gate").open("w") as gate:
            gate.write("\n")
        for sock in waiting:
            with sock:
                assert exchange(sock)
        service.systemctl("start", "pylb")  # returns when it is ready
    service.machine.sh("rm /etc/gate")


def test_an_upgrade_and_a_restart_behind_it_fail_no_connection(service: Service) -> None:
    first = service.main
    with service.under_load("upgrade") as load:
        service.do(UPGRADE[-1])
        second = service.main
        service.alone()
    assert load.failed == []
    with service.under_load("restart after an upgrade") as load:
        service.systemctl("restart", "pylb")
        service.alone()
    assert load.failed == []
    assert len({first, second, service.main}) == 3


def test_install_service_once_more_is_the_next_version_and_there_is_a_way_back(service: Service) -> None:
    source = service.machine.file("/srv/pylb/pylb/__init__.py")
    text, token = source.read_text(), service.machine.file("/etc/pylb/tokens/default").read_text()
    source.write_text(re.sub('__version__ = "(.*)"', '__version__ = "99.0.0"', text))
    before = config(service).read_text()
    try:
        with service.under_load("the next version and back") as load:
            for line in UPGRADE:
                service.do(line)
            assert service.version() == "99.0.0"
            for line in WAY_BACK:
                service.do(line.replace("OLD", service.good))
            assert service.version() != "99.0.0"
        assert load.failed == []
        assert len(service.versions()) == 2
        assert config(service).read_text() == before
        assert service.machine.file("/etc/pylb/tokens/default").read_text() == token
        service.alone()
    finally:
        source.write_text(text)


def test_a_stop_ends_everything_also_what_an_upgrade_left(service: Service) -> None:
    old = service.main
    with service.connect() as live:
        assert exchange(live)
        service.do(UPGRADE[-1])
        service.alone(old)  # for its one session
        service.systemctl("stop", "pylb")
        assert service.pids() == []
        with pytest.raises(ConnectionResetError):
            live.recv(1)
    with pytest.raises(ConnectionRefusedError):
        service.connect()


# ---------------------------------------------------------------- faults


def only_live_ones(load: Load, at: float) -> None:
    """Whoever had a session at that moment was reset; nobody who came later failed."""
    assert len(load.failed) <= load.THREADS
    assert [one for one in load.failed if one.began > at] == []


def test_a_main_that_is_killed_costs_its_live_sessions_and_no_new_one(service: Service) -> None:
    main = service.main
    with service.under_load("kill -9 of main") as load:
        at = service.kill(signal.SIGKILL)
        eventually(lambda: service.main not in (0, main), within=60, what="systemd starts another")
    only_live_ones(load, at)
    service.alone()


def test_with_workers_sessions_outlive_main_and_a_stop_ends_them(service: Service) -> None:
    file = config(service)
    file.write_text(file.read_text() + "\nworkers: 1\n")
    service.do(UPGRADE[-1])
    main = service.main
    with service.connect() as live:
        assert exchange(live)
        service.kill(signal.SIGKILL)
        eventually(lambda: service.main not in (0, main), within=60, what="systemd starts another")
        assert service.serves()
        live.sendall(b"ping")
        assert live.recv(100) == b"ping"
        service.systemctl("stop", "pylb")
        assert service.pids() == []
        with pytest.raises(ConnectionResetError):
            live.recv(1)


def test_a_main_that_stands_still_is_replaced_by_the_watchdog(service: Service) -> None:
    with service.with_settings("WatchdogSec=3s"):
        service.systemctl("restart", "pylb")
        main = service.main
        with service.under_load("SIGSTOP until the watchdog") as load:
            at = service.kill(signal.SIGSTOP)
            eventually(lambda: service.main not in (0, main), within=60, what="systemd starts another")
        only_live_ones(load, at)
        assert "watchdog" in service.journal().lower()
    service.alone()


WAYS_TO_FAIL: dict[str, tuple[str, str, str]] = {
    "at once": ("pylb/__init__.py", '__version__ = "', 'raise SystemExit(3); __version__ = "'),
    "with everything in its hands": ("pylb/app/app.py", "await self._make_registry(stack)", "__import__('os')._exit(3)"),
}


@pytest.mark.parametrize("way", WAYS_TO_FAIL)
def test_a_successor_that_fails_leaves_the_old_one_in_charge(service: Service, way: str) -> None:
    main = service.main
    service.edited("broken", *WAYS_TO_FAIL[way])
    with service.under_load(f"a successor that fails {way}") as load:
        service.use("broken")
        failed = service.upgrade()
        assert failed.returncode == 1
        assert "stays in charge" in failed.stderr
        service.alone()
    assert load.failed == []
    assert (service.main, service.show("ActiveState")) == (main, "active")


MOMENTS: dict[str, tuple[str, str]] = {
    "everything was handed over": ("pylb/upgrade/handover.py", 'await conversation.expect("serving", SERVING)'),
    "the successor serves": ("pylb/upgrade/handover.py", "await _tell_systemd(introduce, successor)"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_when_main_dies_during_an_upgrade_exactly_one_pylb_goes_on(service: Service, moment: str) -> None:
    good = service.good
    file, statement = MOMENTS[moment]
    service.edited("mortal", file, statement, f"os.kill(os.getpid(), 9); {statement}")
    service.use("mortal")
    service.do(UPGRADE[-1])
    main = service.main
    service.use(good)
    with service.under_load(f"main dies when {moment}") as load:
        assert service.upgrade().returncode != 0
        eventually(lambda: service.main not in (0, main), within=60, what="systemd starts another")
        service.alone()
        at = time.monotonic()
        flows(load)
    assert [one for one in load.failed if one.began > at] == []
    assert service.serves()


# ---------------------------------------------------------------- what goes with it


def test_a_certificate_that_certbots_hook_brings_is_served_without_a_reload(service: Service, tmp_path: Path) -> None:
    """certbot itself is not run: it needs an authority. The commands are those of the hook's header."""
    header = (ROOT / "deploy/certbot/pylb-deploy-hook.sh").read_text().partition("set -eu")[0]
    install_hook, run_hook = (line.partition("    #")[0] for line in re.findall(r"#   sudo (.*)", header))
    lineage = service.machine.file("/etc/letsencrypt/live/lb.example.net")
    lineage.mkdir(parents=True)
    service.machine.sh(f"mkdir -p /etc/letsencrypt/renewal-hooks/deploy; cd /srv/pylb/deploy/certbot; {install_hook}")

    def renewed() -> str:
        made = self_signed(tmp_path, "lb.example.net")
        shutil.copy(made.certificate, lineage / "fullchain.pem")
        shutil.copy(made.key, lineage / "privkey.pem")
        service.machine.sh(run_hook)
        return made.certificate.read_text()

    def served() -> str:
        with service.connect(9000) as plain, _any_certificate().wrap_socket(plain) as sock:
            return ssl.DER_cert_to_PEM_cert(sock.getpeercert(binary_form=True) or b"")

    first = renewed()
    [listener] = re.findall(r"webhook: (\{.*\})", header)
    file = config(service)
    file.write_text(file.read_text().replace('{listen: "*:9000", tls: self-signed}', listener))
    service.do(UPGRADE[-1])
    assert served() == first
    second = renewed()
    eventually(lambda: served() == second, within=30, what="the new certificate")


def _any_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def test_logrotate_as_the_docs_have_it_moves_the_sessions_away(service: Service) -> None:
    snippet = (ROOT / "docs/logs.md").read_text().partition("<!-- logrotate -->\n```\n")[2].partition("```")[0]
    service.machine.file("/etc/logrotate.d/pylb").write_text(snippet)
    file, lines = config(service), service.machine.file("/var/log/pylb/sessions.log")
    file.write_text(file.read_text() + "\nlog: {target: 'file:/var/log/pylb/sessions.log'}\n")
    service.do(UPGRADE[-1])
    service.alone()
    assert service.serves()
    eventually(lambda: "mosquitto" in lines.read_text(), within=30, what="a line")
    service.machine.run("logrotate", "--force", "/etc/logrotate.d/pylb")
    assert "mosquitto" in lines.with_name("sessions.log.1").read_text()
    eventually(lambda: "was opened again" in service.journal(), within=30, what="it is opened again")
    assert service.serves()
    eventually(lambda: "mosquitto" in lines.read_text(), within=30, what="a line in the new file")


def test_prometheus_scrapes_the_service_as_the_shipped_job_says(
    service: Service, lab: Lab, processes: Processes, tmp_path: Path
) -> None:
    job = (ROOT / "deploy/prometheus/scrape.yaml").read_text()
    [opened] = re.findall(r"#   (metrics: .*)", job)
    file = config(service)
    file.write_text(file.read_text() + "\n" + opened.replace("198.51.100.20", lab.b.address) + "\n")
    service.do(UPGRADE[-1])
    (tmp_path / "scrape.yaml").write_text(job.replace("lb.example.net", LB))
    shutil.copy(ROOT / "deploy/prometheus/rules.yaml", tmp_path)
    argv = [need("prometheus"), f"--config.file={tmp_path / 'scrape.yaml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    prometheus = processes.start("prometheus", [*argv, "--web.listen-address=127.0.0.1:9090"], at=lab.b)

    def is_up() -> bool:
        with lab.b.inside(), urllib.request.urlopen("http://127.0.0.1:9090/api/v1/query?query=up", timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return [one["value"][1] for one in found] == ["1"]

    eventually(is_up, within=90, what=f"the target is up\n{prometheus.text()}")
    prometheus.stop()


def test_it_is_found_through_a_damaged_config_by_a_command_without_options(service: Service) -> None:
    for damaged in ("webhook: [\n", ""):
        config(service).write_text(damaged)
        done = service.machine.run("pylb", "status")
        assert "asking the pylb that uses /var/lib/pylb, which was started with /etc/pylb/pylb.yaml" in done.stderr
        assert str(PORT) in done.stdout
    config(service).unlink()
    assert str(PORT) in service.machine.run("pylb", "routes").stdout


def test_off_the_machine_and_on_again_goes_on_where_it_stopped(service: Service) -> None:
    [line] = OFF_THE_MACHINE
    refused = service.machine.run("sh", "-c", f"{line} < /dev/null", check=False)
    assert (refused.returncode, service.show("ActiveState")) == (1, "active")
    service.do(f"{line} --yes")
    assert (service.show("LoadState"), service.pids()) == ("not-found", [])
    assert service.machine.sh("ls -d /opt/pylb /usr/local/bin/pylb", check=False) == ""
    assert service.machine.sh("ls -d /etc/pylb/pylb.yaml /var/lib/pylb/state.json").count("\n") == 2
    for line in FIRST_STEPS[:3]:
        if not line.startswith("editor "):
            service.do(line)
    [service.good] = service.versions()
    assert service.serves()
    service.alone()
