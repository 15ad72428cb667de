"""pylb/app/app.py as a process: its start, its signals, its end."""

import os
import pty
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pylb.app.tokens import TOKEN_FILE
from pylb.config.source import LAST_GOOD
from tests.app.instance import Instance, connected, echo, fetch
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually

NOBODY = 65534

# ------------------------------------------------------------ what ends a start: exit code 2 and one line that helps


def test_a_taken_webhook_port_ends_the_start_and_says_who_has_it_is_to_be_found_out(pylb: Instance) -> None:
    with socket.create_server(("127.0.0.1", pylb.webhook)):
        process = pylb.launch()
        assert process.wait() == 2
    assert f"the webhook address 127.0.0.1:{pylb.webhook} cannot be bound: Address already in use" in process.text()
    assert f"ss -ltnp 'sport = :{pylb.webhook}'" in process.text()
    assert not pylb.state_dir.exists()  # nothing was touched


def test_an_address_of_another_machine_ends_the_start(pylb: Instance) -> None:
    pylb.configure(admin={"listen": f"192.0.2.77:{pylb.admin}"})
    process = pylb.launch()
    assert process.wait() == 2
    assert "This machine has no such address" in process.text()


def test_a_second_pylb_on_the_same_state_directory_does_not_start(pylb: Instance) -> None:
    pylb.start()
    pylb.webhook, pylb.admin = free_port(), free_port()
    pylb.configure()
    second = pylb.processes.start("second", pylb.command("run"))
    assert second.wait() == 2
    assert f"another pylb uses the state directory {pylb.state_dir}" in second.text()


def test_without_a_place_for_the_generated_token_there_is_no_start(pylb: Instance) -> None:
    pylb.configure(tokens=None, state_dir="/proc/nowhere")  # not even root can make a directory there
    process = pylb.launch()
    assert process.wait() == 2
    assert "none can be kept in /proc/nowhere" in process.text()
    assert "set state_dir, or configure tokens" in process.text()


def test_a_config_that_was_never_good_is_refused_with_all_its_mistakes(pylb: Instance) -> None:
    pylb.file.write_text(f"state_dir: {pylb.state_dir}\nwebhok: 3\nadmin: 4\n")
    process = pylb.launch()
    assert process.wait() == 2
    assert f"{pylb.file}:2:1: error: unknown key 'webhok'" in process.text()
    assert "pylb did not start: 2 mistakes in the config" in process.text()


# ------------------------------------------------------------ the first run


def test_the_first_run_shows_its_token_on_a_terminal(pylb: Instance) -> None:
    pylb.configure(tokens=None)
    main, side = pty.openpty()
    try:
        environ = {"PATH": os.environ["PATH"], "HOME": str(pylb.folder)}
        with subprocess.Popen(
            pylb.command("run"), stdin=side, stdout=side, stderr=side, env=environ, start_new_session=True
        ) as process:
            seen = b""
            while b"PYLB_FRONTENDS" not in seen:
                seen += os.read(main, 4096)  # pytest's timeout bounds it
            process.terminate()
            assert process.wait(10) == 0
    finally:
        os.close(main)
        os.close(side)
    kept = (pylb.state_dir / TOKEN_FILE).read_text().strip()
    assert f"PYLB_TOKEN={kept}" in seen.decode()


@pytest.mark.parametrize("nohup", [False, True])
def test_closing_the_terminal_ends_a_pylb_that_was_started_on_it(pylb: Instance, nohup: bool) -> None:
    """An orphan would keep its ports, and nobody would see it. SIGHUP is a reload as long as the terminal is there."""
    main, side = pty.openpty()
    said = pylb.folder / "said"
    ignore = signal.signal(signal.SIGHUP, signal.SIG_IGN) if nohup else None
    try:
        with said.open("wb") as sink:
            process = subprocess.Popen(
                pylb.command("run"), stdin=side, stdout=sink, stderr=sink, env={"HOME": "/"}, start_new_session=True
            )
    finally:
        os.close(side)
        if nohup:
            signal.signal(signal.SIGHUP, ignore)

    def reloads(number: int) -> bool:
        return said.read_text().count("info pylb: reloaded: ") == number

    try:
        eventually(lambda: "serving: 0 frontends" in said.read_text(), within=20, what="it serves")
        process.send_signal(signal.SIGHUP)
        eventually(lambda: reloads(1), what="a reload")
        os.close(main)
        process.send_signal(signal.SIGHUP)
        if nohup:
            eventually(lambda: reloads(2), what="another reload")
            process.terminate()
        else:
            process.send_signal(signal.SIGHUP)  # as the kernel and a shell may both send it
        assert process.wait(10) == 0
        assert reloads(2 if nohup else 1)
    finally:
        process.kill()
        process.wait(10)


def test_elsewhere_the_token_stays_in_its_file_and_the_printed_curl_line_works_as_it_is(pylb: Instance, echo_port: int) -> None:
    pylb.configure(tokens=None)
    process = pylb.start()
    process.has_said("PYLB_FRONTENDS")
    kept = pylb.state_dir / TOKEN_FILE
    assert kept.read_text().strip() not in process.text()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    printed = re.search(r"^  curl -X PUT .*?\}'$", process.text(), re.MULTILINE | re.DOTALL)
    assert printed is not None
    line = printed[0].replace("8443", str(pylb.port)).replace("8000", str(echo_port))
    answer = subprocess.run(("sh", "-c", line), capture_output=True, text=True, check=True, timeout=20).stdout
    assert '"result":"created"' in answer
    with socket.create_connection(("127.0.0.1", pylb.port), 5) as client:
        assert echo(client) == b"ping"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_are_no_reason_not_to_serve(closed: str, pylb: Instance) -> None:
    process = pylb.start(argv=("sh", "-c", f'exec "$@" {closed}', "sh", *pylb.command("run")))
    assert process.terminate() == 0


def test_a_reader_of_its_output_that_goes_away_does_not_end_it(pylb: Instance, echo_port: int) -> None:
    broken_pipe = (
        "import os, sys; read, write = os.pipe(); os.close(read);"
        "os.dup2(write, 1); os.dup2(write, 2); os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = pylb.start(argv=(sys.executable, "-c", broken_pipe, *pylb.command("run")))
    assert pylb.register(pylb.port, echo_port).status == 201
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", pylb.port), 5) as client:
            assert echo(client) == b"ping"
    assert process.terminate() == 0


# ------------------------------------------------------------ SIGTERM


def test_a_stop_closes_the_doors_gives_live_sessions_their_time_and_then_resets_them(pylb: Instance, echo_port: int) -> None:
    pylb.configure(defaults={"bind": "127.0.0.1", "timeouts": {"shutdown": "1s"}})
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connected(pylb) as client:
        begin = time.monotonic()
        process.signal(signal.SIGTERM)
        process.has_said("stopping: 1 live session has 1 s")
        with pytest.raises(ConnectionRefusedError):
            fetch(("127.0.0.1", pylb.webhook), "GET", "/v1/whoami")
        assert echo(client, b"still alive") == b"still alive"
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert 0.9 < time.monotonic() - begin < 5
    assert process.wait() == 0


def test_a_stop_without_sessions_takes_no_time(pylb: Instance) -> None:
    process = pylb.start()
    begin = time.monotonic()
    assert process.terminate() == 0
    assert time.monotonic() - begin < 3  # of 5 s for live sessions


def test_a_session_that_ends_by_itself_ends_the_waiting(pylb: Instance, echo_port: int) -> None:
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connected(pylb):
        begin = time.monotonic()
        process.signal(signal.SIGTERM)
        process.has_said("stopping: 1 live session has 5 s")
    assert process.wait() == 0
    assert time.monotonic() - begin < 4


def test_a_second_signal_ends_live_sessions_now(pylb: Instance, echo_port: int) -> None:
    pylb.configure(defaults={"bind": "127.0.0.1", "timeouts": {"shutdown": "1h"}})
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    with connected(pylb) as client:
        process.signal(signal.SIGTERM)
        process.has_said("a second signal ends them now")
        process.signal(signal.SIGINT)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert process.wait() == 0
    assert "stopping at once" in process.text()


def test_signals_during_the_start_are_kept_for_its_end(pylb: Instance) -> None:
    process = pylb.launch()
    eventually((pylb.state_dir / "lock").exists, within=15, what="the start has come to the state directory")
    process.signal(signal.SIGHUP)
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


def test_a_part_that_fails_by_a_bug_ends_pylb_with_1_so_that_it_is_started_again(pylb: Instance) -> None:
    # The bug is put in from outside: there is no known one to use.
    code = (
        "import sys; from pylb.control.registry import Registry\n"
        "async def run(self): raise RuntimeError('a bug')\n"
        "Registry.run = run\n"
        "from pylb.cli.main import main; main()"
    )
    process = pylb.launch(argv=(sys.executable, "-c", code, *pylb.command("run")[3:]))
    assert process.wait() == 1
    assert "critical pylb: pylb ends: a part of it failed\n  Traceback" in process.text()
    assert "pylb ended: a part of it failed" in process.text()


# ------------------------------------------------------------ the last good config


@pytest.mark.parametrize("damage", ["admin: [\nstate_dir: {state}\n", "state_dir: {state}\nwebhok: 3\n"])
def test_a_start_with_a_broken_file_uses_the_last_good_one_and_says_so(damage: str, pylb: Instance, echo_port: int) -> None:
    assert pylb.start().terminate() == 0
    assert (pylb.state_dir / LAST_GOOD).exists()
    good = pylb.file.read_text()
    pylb.file.write_text(damage.format(state=pylb.state_dir))
    process = pylb.start()
    process.has_said("the config is broken, the last good one is in force:\n")
    assert f"{pylb.file}:" in process.text()
    assert pylb.register(pylb.port, echo_port).status == 201
    assert "pylb_config_last_reload_successful 0.0" in pylb.get("/metrics").body.decode()

    pylb.file.write_text(good)
    pylb.reload("reloaded")
    assert "pylb_config_last_reload_successful 1.0" in pylb.get("/metrics").body.decode()


def test_a_secret_file_that_is_gone_costs_its_token_and_not_the_ports(pylb: Instance, echo_port: int, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a-token-of-more-than-22-characters\n")
    secret.chmod(0o600)
    static = [{"name": "web", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}]
    pylb.configure(tokens=[{"name": "t", "secret_file": str(secret), "ports": [pylb.port]}], frontends=static)
    assert pylb.start().terminate() == 0
    secret.unlink()
    process = pylb.start()
    process.has_said(f"{secret} cannot be read")
    with socket.create_connection(("127.0.0.1", pylb.port), 10) as client:
        client.sendall(b"hello")
        assert client.recv(5) == b"hello"
    assert pylb.register(free_port(), echo_port).status == 401


def test_a_start_with_a_file_that_is_gone_uses_the_last_good_one_of_the_default_directory(pylb: Instance) -> None:
    environ = {"STATE_DIRECTORY": str(pylb.state_dir)}
    pylb.configure(state_dir=None)
    assert pylb.start(env=environ).terminate() == 0
    pylb.file.unlink()
    pylb.start(env=environ).has_said("cannot be read: No such file or directory")


# ------------------------------------------------------------ listeners


def test_two_webhooks_one_with_its_own_certificate_and_one_plain_for_old_containers(pylb: Instance) -> None:
    plain = free_port()
    secure = {"listen": f"127.0.0.1:{pylb.webhook}", "tls": "self-signed", "legacy": False}
    pylb.configure(webhook=[secure, {"listen": f"127.0.0.1:{plain}"}])
    pylb.start()
    context = ssl.create_default_context(cafile=str(pylb.state_dir / "tls" / "cert.pem"))
    with (
        socket.create_connection(("127.0.0.1", pylb.webhook), 10) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as client,
    ):
        client.sendall(b"POST /hooks/update-haproxy HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 404")
    assert fetch(("127.0.0.1", plain), "POST", "/hooks/update-haproxy", "{}").status == 401
    assert re.search(r"^pylb_certificate_expiry_timestamp_seconds \d", pylb.get("/metrics").body.decode(), re.MULTILINE)


def test_a_metrics_listener_serves_its_allow_list_only_and_nothing_else(pylb: Instance) -> None:
    port = free_port()
    pylb.configure(metrics={"listen": f"*:{port}", "allow": ["127.0.0.1/32"]})
    pylb.start()
    assert pylb.get("/metrics", port).status == 200
    assert pylb.get("/readyz", port).status == 200
    assert pylb.get("/v1/table", port).status == 404
    assert pylb.get("/metrics", port, host="::1").status == 403


def test_listeners_on_ipv6_alone(pylb: Instance, echo_port: int) -> None:
    pylb.configure(
        webhook={"listen": f"[::1]:{pylb.webhook}"},
        admin={"listen": f"[::1]:{pylb.admin}"},
        frontends=[{"name": "echo", "listen": f"[::1]:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}],
    )
    pylb.launch()
    eventually(lambda: pylb.get("/readyz", host="::1").status == 200, within=15)
    with socket.create_connection(("::1", pylb.port), 5) as client:
        assert echo(client) == b"ping"
    for port in (pylb.webhook, pylb.admin, pylb.port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)


def test_a_name_of_our_own_that_does_not_resolve_delays_nothing_for_long(pylb: Instance) -> None:
    pylb.configure(advertise="no-such-name.invalid")
    assert pylb.start().terminate() == 0


def test_an_admin_address_beyond_loopback_is_warned_about(pylb: Instance) -> None:
    pylb.configure(admin={"listen": f"0.0.0.0:{pylb.admin}"})
    pylb.start().has_said("warning")
    assert re.search(r"warning.*admin", pylb.running.text())


def test_a_frontend_that_cannot_be_opened_is_kept_and_shown_and_the_rest_serves(pylb: Instance, echo_port: int) -> None:
    with socket.create_server(("127.0.0.1", pylb.port)):
        pylb.configure(frontends=[{"name": "taken", "listen": f"127.0.0.1:{pylb.port}", "servers": [f"127.0.0.1:{echo_port}"]}])
        pylb.start()
        assert "\n0 ports served from" in pylb.running.text()
        assert pylb.get("/readyz").json["status"] == "degraded"
        assert "PORT NOT OPEN: " in pylb.ask("routes").stdout


@pytest.mark.root
def test_it_runs_as_somebody_without_any_privilege(processes: Processes, echo_port: int) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to others
        pylb = Instance(processes, Path(folder))
        for path in (folder, pylb.file):
            os.chown(path, NOBODY, NOBODY)
        process = pylb.start(argv=(need("setpriv"), f"--reuid={NOBODY}", "--clear-groups", *pylb.command("run")))
        assert pylb.register(pylb.port, echo_port).status == 201
        with connected(pylb):
            pass
        assert pylb.register(80, echo_port).status == 403
        assert process.terminate() == 0
        assert (pylb.state_dir / "state.json").stat().st_uid == NOBODY
