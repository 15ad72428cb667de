"""Two TLS servers behind one port of a real pylb: from the config and by registrations, with real TLS clients."""

import csv
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.app.instance import SECRET, Answer, Instance, fetch, token
from tests.support.baseline import IDLE_CPU, idle_cpu
from tests.support.certificate import self_signed
from tests.support.hellos import asking_for
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.waiting import eventually


@contextmanager
def tls_server(folder: Path, name: str) -> Iterator[int]:
    """A server whose certificate is for `name`, and which says so to each client."""
    folder.mkdir()
    made = self_signed(folder, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    listener = socket.create_server(("127.0.0.1", free_port()))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:  # the end of the test has shut the listener down
                return
            with sock:
                try:
                    sock.settimeout(10)
                    with context.wrap_socket(sock, server_side=True) as tls:
                        tls.sendall(name.encode())
                except OSError:
                    pass  # a probe, or a client that does not like the certificate

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def reached(port: int, asked: str | None) -> str:
    """Which server answers a TLS client that asks for this name; or the alert that it gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        try:
            with context.wrap_socket(sock, server_hostname=asked) as tls:
                return tls.recv(100).decode()
        except ssl.SSLError as error:
            return error.reason or ""


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, int]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(tls_server(tmp_path / name, name)) for name in ("git", "apps", "default")}


def rows_of(text: str) -> list[dict[str, str]]:
    """Of `show stat`."""
    return list(csv.DictReader(text.removeprefix("# ").strip().split("\n")))


def put(pylb: Instance, who: str, *frontends: object) -> Answer:
    body = json.dumps({"frontends": frontends, "ttl": None, "address": "127.0.0.1"})
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    return fetch(("127.0.0.1", pylb.webhook), "PUT", f"/v1/registrations/{who}", body, headers)


@pytest.mark.parametrize("workers", [0, 2])
def test_routes_of_the_config(pylb: Instance, servers: dict[str, int], workers: int) -> None:
    at = {name: [f"127.0.0.1:{port}"] for name, port in servers.items()}
    routes = [
        {"server_names": ["git.example.net"], "servers": at["git"]},
        {"server_names": ["*.apps.example.net", "apps.example.net"], "servers": at["apps"]},
    ]
    frontend = {"name": "https", "listen": f"127.0.0.1:{pylb.port}", "routes": routes}
    pylb.configure(workers=workers, frontends=[{**frontend, "servers": at["default"]}])
    pylb.start()
    names = ("git.example.net", "GIT.example.net", "a.apps.example.net", "apps.example.net", "a.b.apps.example.net", None)
    assert [reached(pylb.port, name) for name in names] == ["git", "git", "apps", "apps", "default", "default"]
    pylb.configure(workers=workers, frontends=[frontend])
    pylb.reload("reloaded")
    assert [reached(pylb.port, name) for name in ("git.example.net", "other.net")] == ["git", "TLSV1_UNRECOGNIZED_NAME"]


def test_clients_that_say_a_part_of_a_hello_cost_nothing_until_they_say_more(pylb: Instance, echo_port: int) -> None:
    """pylb has to look at what it may not take, so what is there keeps the socket readable all the time."""
    route = {"server_names": ["git.example.net"], "servers": [f"127.0.0.1:{echo_port}"]}
    frontend = {"name": "https", "listen": f"127.0.0.1:{pylb.port}", "routes": [route], "timeouts": {"hello": "60s"}}
    pylb.configure(frontends=[frontend])
    pylb.start()
    hello = asking_for("git.example.net")
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", pylb.port), timeout=10)) for _ in range(100)]
        first = [1 + number % (len(hello) - 1) for number in range(len(clients))]  # a byte, two, …
        for size, client in zip(first, clients, strict=True):
            client.sendall(hello[:size])
        eventually(lambda: pylb.get("/v1/sessions").json["open"] == len(clients))
        assert idle_cpu(pylb.running.pid) < IDLE_CPU
        for size, client in zip(first, clients, strict=True):
            client.sendall(hello[size:])
        for client in clients:
            with client.makefile("rb") as answer:
                assert answer.read(len(hello)) == hello


def test_names_that_are_registered_with_their_owner_and_a_move(pylb: Instance, servers: dict[str, int]) -> None:
    pylb.configure(tokens=[token(names=["git", "apps", "web"], server_names=["**.example.net"])])
    pylb.start()
    git = {"port": pylb.port, "target_port": servers["git"], "server_names": ["git.example.net"]}
    assert put(pylb, "git/one", git).status == 201
    assert [reached(pylb.port, name) for name in ("git.example.net", "www.example.net")] == ["git", "TLSV1_UNRECOGNIZED_NAME"]
    # That nobody wants the other names is no fault.
    assert pylb.get("/v1/health").json["sentence"] == "all 2 frontends healthy"
    assert json.loads(pylb.ask("routes", "--json").stdout)[0]["state"] == "routes only"
    usable = [line for line in pylb.get("/metrics").body.decode().splitlines() if line.startswith("pylb_frontend_usable")]
    assert usable == [f'pylb_frontend_usable_servers{{frontend="git-{pylb.port}:git.example.net"}} 1.0']
    denied = [line for line in pylb.get("/metrics").body.decode().splitlines() if line.startswith("pylb_frontend_denied")]
    assert [line.partition("reason=")[2] for line in denied][:2] == ['"hello"} 0.0', '"server_name"} 1.0']
    refused = put(pylb, "apps/one", git)
    assert refused.status == 409
    assert "the name git.example.net on port" in refused.json["detail"]
    assert put(pylb, "apps/one", git | {"server_names": ["git.example.org"]}).status == 403
    refused = put(pylb, "web/one", {"port": pylb.port, "target_port": servers["default"]})
    assert (refused.status, '"names": "allowed"' in refused.json["hint"]) == (409, True)
    assert put(pylb, "web/one", {"port": pylb.port, "target_port": servers["default"], "names": "allowed"}).status == 201
    assert [reached(pylb.port, name) for name in ("git.example.net", "www.example.net")] == ["git", "default"]
    assert put(pylb, "git/one", git | {"target_port": servers["apps"]}).json["result"] == "moved"
    assert reached(pylb.port, "git.example.net") == "apps"
    pylb.running.kill()
    pylb.start()
    assert [reached(pylb.port, name) for name in ("git.example.net", "www.example.net")] == ["apps", "default"]


def test_the_name_that_a_client_asked_for_is_shown_and_explain_says_its_route(pylb: Instance, servers: dict[str, int]) -> None:
    routes = [{"server_names": ["git.example.net"], "servers": [f"127.0.0.1:{servers['git']}"]}]
    pylb.configure(frontends=[{"name": "https", "listen": f"127.0.0.1:{pylb.port}", "routes": routes}])
    pylb.start()
    assert reached(pylb.port, "git.example.net") == "git"
    assert reached(pylb.port, "other.net") == "TLSV1_UNRECOGNIZED_NAME"
    for name in ("{git.example.net}", "{other.net}"):
        eventually(lambda name=name: name in pylb.running.text(), what=f"{name} is in the log")
    assert "other.net" not in pylb.get("/metrics").body.decode()  # what clients say is no label: anybody could make millions
    ended = json.loads(pylb.ask("sessions", "--ended", "--json").stdout)
    assert {(one["frontend"], one["server_name"], one["code"]) for one in ended} == {
        ("https:git.example.net", "git.example.net", "--"),
        ("https", "other.net", "PR"),
    }
    explained = pylb.ask("explain", str(pylb.port), "--name", "git.example.net").stdout
    assert f"git.example.net: route 127.0.0.1:{pylb.port} git.example.net" in explained
    explained = pylb.ask("explain", str(pylb.port), "--name", "other.net").stdout
    assert "no route, and no default route: the alert unrecognized_name" in explained
    rows = [(row["pxname"], row["svname"]) for row in rows_of(pylb.runtime("show stat\n"))]
    assert [name for name in rows if name[1] in ("FRONTEND", "BACKEND")] == [
        ("https", "FRONTEND"),
        ("https:git.example.net", "BACKEND"),
    ]


NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/nginx; proxy_temp_path {folder}/nginx; fastcgi_temp_path {folder}/nginx;
  uwsgi_temp_path {folder}/nginx; scgi_temp_path {folder}/nginx;
  ssl_certificate {certificate}; ssl_certificate_key {key};
  {servers}
}}
"""
ONE, TWO = "git.one.example.net", "wiki.two.example.net"


def nginx(pylb: Instance, folder: Path, host: str, *ports: int) -> Path:
    """With a certificate for `host`, whose path is returned. It says on which port it was asked."""
    folder.mkdir()
    made = self_signed(folder, host)
    config = folder / "nginx.conf"
    servers = "\n".join(f'server {{ listen 127.0.0.1:{port} ssl; return 200 "{host} {port}"; }}' for port in ports)
    config.write_text(NGINX.format(folder=folder, certificate=made.certificate, key=made.key, servers=servers))
    pylb.processes.start(host, (need("nginx"), "-e", "stderr", "-c", str(config)))
    for port in ports:
        eventually(lambda port=port: not socket.create_connection(("127.0.0.1", port), 1).close(), what=f"nginx at {port}")
    return made.certificate


def register(pylb: Instance, who: str, host: str, target: int) -> Answer:
    """`host`, and all names beside it."""
    names = [f"*.{host.partition('.')[2]}"]
    return put(pylb, f"{who}/one", {"port": pylb.port, "target_port": target, "server_names": names})


def test_curl_and_openssl_reach_two_clusters_behind_one_port_and_one_of_them_moves(pylb: Instance, tmp_path: Path) -> None:
    here, there, other = free_port(), free_port(), free_port()
    certificates = {
        ONE: nginx(pylb, tmp_path / "one", ONE, here, there),
        TWO: nginx(pylb, tmp_path / "two", TWO, other),
    }
    pylb.configure(tokens=[token(names=["one", "two"], server_names=["**.example.net"])])
    pylb.start()

    def curl(host: str) -> str:
        to, ca = f"{host}:{pylb.port}:127.0.0.1", str(certificates[host])
        command = (need("curl"), "-sS", "--cacert", ca, "--resolve", to, f"https://{host}:{pylb.port}/")
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout

    def subject(host: str) -> str:
        to = ("-connect", f"127.0.0.1:{pylb.port}", "-servername", host)
        command = (need("openssl"), "s_client", *to, "-verify_return_error", "-CAfile", str(certificates[host]))
        return subprocess.run(command, input="", capture_output=True, text=True, timeout=20, check=True).stdout

    assert register(pylb, "one", ONE, here).status == 201
    assert register(pylb, "two", TWO, other).status == 201
    assert [curl(host) for host in (ONE, TWO)] == [f"{ONE} {here}", f"{TWO} {other}"]
    assert all(f"CN={host}" in subject(host).replace(" ", "") for host in (ONE, TWO))  # OpenSSL 3.2 writes no spaces
    assert register(pylb, "one", ONE, there).json["result"] == "moved"
    assert [curl(host) for host in (ONE, TWO)] == [f"{ONE} {there}", f"{TWO} {other}"]
