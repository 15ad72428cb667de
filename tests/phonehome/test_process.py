"""phonehome as a process: verbs, exit codes, signals, memory, and the one-file form."""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import os
import pty
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import phonehome
import pylb
from tests.phonehome.peer import ENVIRON, TOKEN, WAIT, Answer, LoadBalancer, accepted, refused
from tests.phonehome.tls import self_signed

ROOT = Path(__file__).resolve().parents[2]
MODULE = (sys.executable, "-m", "phonehome")
RSS_LIMIT = 25 * 1024  # KiB


def environment(url: str, **extra: str) -> dict[str, str]:
    return {**ENVIRON, "PATH": os.environ["PATH"], "PYLB_URL": url, "PYLB_INSTANCE": uuid.uuid4().hex, **extra}


class Process:
    """A running phonehome and the lines that it prints."""

    def __init__(self, command: tuple[str, ...], environ: Mapping[str, str]) -> None:
        self.popen = subprocess.Popen(
            command, env=dict(environ), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.output: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self.output.append(line)
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, text: str) -> str:
        while (line := self._lines.get(timeout=WAIT)) is not None:
            if text in line:
                return line
        raise AssertionError(f"ended without {text!r}: {self.output}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        return self.popen.wait(WAIT)

    def memory(self) -> dict[str, int]:
        """VmRSS and VmHWM in KiB."""
        lines = Path(f"/proc/{self.popen.pid}/status").read_text().splitlines()
        return {
            key: int(value.split()[0]) for key, _, value in (line.partition(":") for line in lines) if key in ("VmRSS", "VmHWM")
        }

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait(WAIT)
        self._reader.join(WAIT)
        assert self.popen.stdout is not None
        self.popen.stdout.close()


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[Process] = []

    def begin(environ: Mapping[str, str], command: tuple[str, ...] = MODULE) -> Process:
        processes.append(Process(command, environ))
        return processes[-1]

    yield begin
    for process in processes:
        process.close()


@pytest.fixture(scope="module")
def zipapp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist") / "phonehome.pyz"
    subprocess.run([sys.executable, "deploy/zipapp.py", str(out)], cwd=ROOT, check=True, capture_output=True)
    return out


def verb(environ: Mapping[str, str], *args: str, command: tuple[str, ...] = MODULE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *args], env=dict(environ), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )


# ------------------------------------------------------------------ run and signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_says_goodbye_and_ends_with_0(load_balancer: LoadBalancer, start: Start, number: int) -> None:
    process = start(environment(load_balancer.url))
    process.wait_for("registered: 443 -> 203.0.113.7:30443")
    assert load_balancer.next().state == "ready"

    assert process.end(number) == 0
    assert load_balancer.next().state == "draining"
    assert load_balancer.calls.empty()


def test_sigterm_during_a_call_that_hangs_still_says_goodbye(load_balancer: LoadBalancer, start: Start) -> None:
    load_balancer.answer = lambda call: load_balancer.hold(accepted()) if call.state == "ready" else accepted()
    process = start(environment(load_balancer.url))
    assert load_balancer.next().state == "ready"

    assert process.end() == 0
    assert load_balancer.next().state == "draining"


def test_sigterm_ends_in_time_when_no_load_balancer_answers(load_balancer: LoadBalancer, start: Start) -> None:
    load_balancer.answer = lambda _: load_balancer.hold(accepted())
    process = start(environment(load_balancer.url))
    load_balancer.next()
    assert process.end() == 0


def test_a_load_balancer_that_is_away_is_retried(load_balancer: LoadBalancer, start: Start) -> None:
    answers = iter([Answer(502, raw=b"<html>bad gateway"), refused(503, "starting", Retry_After="0")])
    load_balancer.answer = lambda _: next(answers, accepted("created"))
    process = start(environment(load_balancer.url))

    process.wait_for("refused: 502 not_pylb")
    process.wait_for("refused: 503 starting")
    process.wait_for("registered")


# ------------------------------------------------------------------ verbs


def test_drain_tells_the_running_process_which_stays_and_never_says_ready_again(
    load_balancer: LoadBalancer, start: Start
) -> None:
    environ = environment(load_balancer.url)
    process = start(environ)
    process.wait_for("registered")
    done = verb(environ, "drain")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"127.0.0.1:{load_balancer.port}: draining\n"
    assert [load_balancer.next().state for _ in range(2)] == ["ready", "draining"]
    assert process.popen.poll() is None
    assert process.end() == 0
    while not load_balancer.calls.empty():
        assert load_balancer.next().state == "draining"


def test_drain_by_a_neighbour_who_knows_name_and_instance_but_no_token_reaches_nobody(
    load_balancers: Callable[..., LoadBalancer], start: Start
) -> None:
    """Two pods with hostNetwork run as the same user in the same network namespace."""
    ours, theirs = load_balancers(), load_balancers()
    environ = environment(ours.url)
    process = start(environ)
    process.wait_for("registered")
    assert verb({**environ, "PYLB_URL": theirs.url, "PYLB_TOKEN": "a-token-of-another-app-altogether"}, "drain").returncode == 0
    assert theirs.next().state == "draining"  # where its own token counts

    assert verb(environ, "drain").returncode == 0  # the socket is bound, and nothing came before this
    assert [ours.next().state for _ in range(2)] == ["ready", "draining"]
    assert sum("draining on request" in line for line in process.output) == 1


def test_drain_without_a_running_process_says_goodbye_itself(load_balancer: LoadBalancer) -> None:
    done = verb(environment(load_balancer.url), "drain")
    assert (done.returncode, load_balancer.next().state) == (0, "draining")


def test_once_is_a_single_call_without_an_end_to_its_lease(load_balancer: LoadBalancer) -> None:
    for environ, args in (
        (environment(load_balancer.url), ("once",)),
        (environment(load_balancer.url, REPEAT_INTERVAL="once"), ()),
    ):
        done = verb(environ, *args)
        assert done.returncode == 0, done
        assert "registered: 443 -> 203.0.113.7:30443" in done.stdout
        assert load_balancer.next().body["ttl"] is None
        assert load_balancer.calls.empty()


@pytest.mark.parametrize("args", ["once", "release"])
@pytest.mark.parametrize("status", [401, 403, 409, 422])
def test_a_refused_call_ends_with_1_and_says_why(load_balancer: LoadBalancer, args: str, status: int) -> None:
    load_balancer.answer = lambda _: refused(status, "some_error", "because", "try this")
    done = verb(environment(load_balancer.url), args)
    assert done.returncode == 1
    assert f"refused: {status} some_error: because (try this)" in done.stdout


def test_once_waits_for_the_app_and_can_be_stopped_meanwhile(load_balancer: LoadBalancer, start: Start) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # bound without listen: refuses
        environ = environment(load_balancer.url, PYLB_WAIT=f"127.0.0.1:{silent.getsockname()[1]}")
        process = start(environ, (*MODULE, "once"))
        process.wait_for("waiting for 127.0.0.1:")
        assert process.end() == 1
    assert load_balancer.calls.empty()


def test_release_needs_no_frontends(load_balancer: LoadBalancer) -> None:
    load_balancer.answer = lambda _: Answer(200, {"result": "released"})
    environ = environment(load_balancer.url, PYLB_FRONTENDS="", PYLB_INSTANCE="pod-1")
    done = verb(environ, "release")

    assert (done.returncode, done.stdout) == (0, f"127.0.0.1:{load_balancer.port}: released\n")
    assert load_balancer.next()[:2] == ("DELETE", "/v1/registrations/mosquitto/pod-1")


def test_mistakes_in_the_environment_end_with_2_and_are_all_listed(load_balancer: LoadBalancer) -> None:
    done = verb(environment("nowhere", PYLB_TTL="soon", PYLB_FRONTENDS="443"))
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == ["PYLB_TTL", "PYLB_URL", "PYLB_FRONTENDS"]


def test_a_ca_without_a_certificate_in_it_ends_with_2() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----"
    done = verb(environment("https://lb.example.net", PYLB_CA=pem))
    assert (done.returncode, "PYLB_CA" in done.stderr) == (2, True)


@pytest.mark.parametrize("args", [("oncee",), ("once", "twice"), ("--verbose",)])
def test_an_unknown_verb_ends_with_2(args: tuple[str, ...]) -> None:
    done = verb(environment("http://127.0.0.1:1"), *args)
    assert (done.returncode, "phonehome --help" in done.stderr) == (2, True)


def test_help_names_every_variable_and_the_version_is_the_projects() -> None:
    text = verb(environment("x"), "--help").stdout
    assert all(name in text for name in (*ENVIRON, "PYLB_TTL", "PYLB_WAIT", "PYLB_CA", "PYLB_ADDRESS", "PYLB_TOKEN_FILE"))
    assert verb(environment("x"), "--version").stdout == f"phonehome {phonehome.__version__}\n"
    assert phonehome.__version__ == pylb.__version__


def test_the_token_is_never_printed(load_balancer: LoadBalancer, start: Start) -> None:
    load_balancer.answer = lambda _: refused(401, "bad_token", f"no such token: {TOKEN}")
    process = start(environment(load_balancer.url))
    process.wait_for("bad_token")
    process.end()
    process.close()
    assert TOKEN not in "".join(process.output)


# ------------------------------------------------------------------ memory and imports


def test_it_stays_below_25_mib_after_it_has_registered(load_balancer: LoadBalancer, start: Start) -> None:
    process = start(environment(load_balancer.url))
    process.wait_for("registered")
    memory = process.memory()
    assert memory["VmRSS"] <= memory["VmHWM"] <= RSS_LIMIT


def test_it_stays_below_25_mib_with_tls_and_the_systems_whole_store(
    load_balancers: Callable[..., LoadBalancer], start: Start, tmp_path: Path, zipapp: Path
) -> None:
    certificate, key = self_signed(tmp_path, ipaddress.ip_address("127.0.0.1"), dt.timedelta(days=1))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    load_balancer = load_balancers(context)
    store = tmp_path / "store.pem"
    system = ssl.get_default_verify_paths().cafile
    store.write_text((Path(system).read_text() if system else "") + "\n" + certificate.read_text())

    # The worst case: modules compiled at the start out of a zip, and every public CA in memory.
    process = start(environment(load_balancer.url, SSL_CERT_FILE=str(store)), (sys.executable, str(zipapp)))
    process.wait_for("registered")
    memory = process.memory()
    assert memory["VmRSS"] <= memory["VmHWM"] <= RSS_LIMIT


def test_a_running_phonehome_never_imports_asyncio_or_urllib_request(load_balancer: LoadBalancer) -> None:
    script = (
        "import sys; from phonehome.__main__ import main; code = main(['once']);"
        "print(sorted({'asyncio', 'urllib.request', 'dataclasses', 'inspect'} & set(sys.modules))); sys.exit(code)"
    )
    done = verb(environment(load_balancer.url), command=(sys.executable, "-S", "-c", script))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]")


def test_a_certificate_that_says_it_is_encrypted_asks_nobody_on_the_terminal(tmp_path: Path) -> None:
    certificate, _ = self_signed(tmp_path, ipaddress.ip_address("127.0.0.1"), dt.timedelta(days=1))
    first, rest = certificate.read_text().split("\n", 1)
    certificate.write_text(f"{first}\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,{'00' * 16}\n\n{rest}")
    environ = environment("https://127.0.0.1:9", PYLB_CA=str(certificate))
    main, terminal = pty.openpty()
    with subprocess.Popen(
        (*MODULE, "once"), env=environ, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    ) as process:
        os.close(terminal)
        said = b""
        try:
            while chunk := os.read(main, 4096):
                said += chunk
                assert b"pass phrase" not in said
        except OSError:
            pass  # how a terminal ends whose last user has gone
        finally:
            process.kill()
            os.close(main)
        assert process.wait(WAIT) == 2
    assert b"PYLB_CA: contains no usable certificate" in said


# ------------------------------------------------------------------ zipapp


def test_the_zipapp_is_the_same_file_each_time_it_is_built(zipapp: Path, tmp_path: Path) -> None:
    again = tmp_path / "deep" / "again.pyz"
    subprocess.run([sys.executable, "deploy/zipapp.py", str(again)], cwd=ROOT, check=True, capture_output=True)
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(zipapp.read_bytes()).digest()


def test_the_zipapp_fits_into_a_configmap(zipapp: Path) -> None:
    assert zipapp.stat().st_size * 4 / 3 < 1024 * 1024  # base64 in an object of at most 1 MiB


def test_the_zipapp_runs_alone_and_knows_its_verbs(
    load_balancer: LoadBalancer, start: Start, zipapp: Path, tmp_path: Path
) -> None:
    command = (sys.executable, "-I", "-S", str(zipapp))  # no site-packages, no PYTHON* variables, no current directory
    environ = environment(load_balancer.url)
    process = start(environ, command)
    process.wait_for("registered")

    assert verb(environ, "drain", command=command).returncode == 0
    assert [load_balancer.next().state for _ in range(2)] == ["ready", "draining"]
    assert process.end() == 0
    assert verb(environ, "release", command=command).returncode == 0
    assert verb({**environ, "PYLB_URL": ""}, command=command).returncode == 2


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_an_output_that_cannot_be_written_is_one_sentence(option: str) -> None:
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "phonehome", option]
        ended = subprocess.run(argv, check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=40)
    assert (ended.returncode, ended.stderr) == (1, "phonehome: the output could not be written: No space left on device\n")
