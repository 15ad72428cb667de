"""A real pylb beside HAProxy and nginx with the same routes: each of 200 hellos reaches the same server through all three.

The server gets every byte of it, whichever of the three it came through. Where they differ, REASONS says why; a reason that is
not needed any more fails the test too.
"""

import http.client
import json
import select
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.e2e.many_hellos import hellos
from tests.e2e.test_hello_oracle import NOT_SO_STRICT, ONE_RECORD
from tests.support.peers import need
from tests.support.ports import free_ports
from tests.support.processes import Processes, python
from tests.support.waiting import eventually

HAPROXY = """
global
  tune.bufsize 32768
defaults
  mode tcp
  timeout client 20s
  timeout server 20s
  timeout connect 5s
frontend hellos
  bind 127.0.0.1:{port}
  tcp-request inspect-delay 10s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend git if {{ req.ssl_sni -i git.example.net }}
  use_backend one if {{ req.ssl_sni -i one.net }}
  use_backend two if {{ req.ssl_sni -i two.net }}
  use_backend any if {{ req.ssl_sni -i -m end .example.net }}
  default_backend default
{backends}
"""
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 1;
load_module {modules}/ngx_stream_module.so;
events {{ worker_connections 64; }}
stream {{
  map $ssl_preread_server_name $to {{
    hostnames;
    git.example.net 127.0.0.1:{git};
    one.net 127.0.0.1:{one};
    two.net 127.0.0.1:{two};
    *.example.net 127.0.0.1:{any};
    default 127.0.0.1:{default};
  }}
  server {{
    listen 127.0.0.1:{port};
    ssl_preread on;
    preread_buffer_size 32k;
    proxy_pass $to;
    proxy_half_close on;
  }}
}}
"""
ROUTES = {"git": "git.example.net", "one": "one.net", "two": "two.net", "any": "**.example.net"}  # and "default"
MODULES = Path("/usr/lib/nginx/modules")


class Outcomes(NamedTuple):
    """The name of the server that had the client; or "reset", or what it was sent."""

    pylb: str
    haproxy: str
    nginx: str


class Oracles:
    """The three, with the same five servers."""

    def __init__(self, processes: Processes, folder: Path, servers: Mapping[str, socket.socket]) -> None:
        self._servers = servers
        *self._ports, admin, webhook = free_ports(5)
        ports = {name: server.getsockname()[1] for name, server in servers.items()}
        pylb, haproxy, nginx = folder / "pylb.yaml", folder / "haproxy.cfg", folder / "nginx.conf"
        pylb.write_text(json.dumps(_config(folder, self._ports[0], admin, webhook, ports)))
        backends = "\n".join(f"backend {name}\n  server {name} 127.0.0.1:{port}" for name, port in ports.items())
        haproxy.write_text(HAPROXY.format(port=self._ports[1], backends=backends))
        nginx.write_text(NGINX.format(folder=folder, modules=MODULES, port=self._ports[2], **ports))
        processes.start("pylb", python("pylb", "run", "-c", str(pylb)))
        started = {
            self._ports[1]: processes.start("haproxy", (need("haproxy"), "-db", "-f", str(haproxy))),
            self._ports[2]: processes.start("nginx", (need("nginx"), "-e", "stderr", "-c", str(nginx))),
        }
        eventually(lambda: _is_ready(admin), within=20, what="pylb is ready")
        for port, process in started.items():
            eventually(lambda port=port: _listens(port), what=f"{process.name} listens")
        for server in servers.values():
            server.settimeout(20)
            server.accept()[0].close()  # pylb dials each new server once, to say whether it can be reached

    def ask(self, data: bytes) -> Outcomes:
        return Outcomes(*(self._outcome(port, data) for port in self._ports))

    def _outcome(self, port: int, data: bytes) -> str:
        """Of the hello and a FIN: whoever waits for more of the hello decides at that."""
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            with suppress(OSError):  # it may have decided, and closed, before all of it came
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
            ready, _, _ = select.select([*self._servers.values(), client], [], [], 10)
            reached = [name for name, server in self._servers.items() if server in ready]
            if not reached:
                assert ready, "neither a server nor the client has got anything"
                return _end(client)
            assert len(reached) == 1, reached
            [name] = reached
            sock, _ = self._servers[name].accept()
            with sock:
                sock.settimeout(10)
                assert b"".join(iter(lambda: sock.recv(65536), b"")) == data
            return name


def _config(folder: Path, port: int, admin: int, webhook: int, servers: Mapping[str, int]) -> dict[str, Any]:
    at = {name: [f"127.0.0.1:{server}"] for name, server in servers.items()}
    routes = [{"server_names": [name], "servers": at[server]} for server, name in ROUTES.items()]
    frontend = {"name": "hellos", "listen": f"127.0.0.1:{port}", "routes": routes, "servers": at["default"]}
    return {
        "state_dir": str(folder / "state"),
        "webhook": {"listen": f"127.0.0.1:{webhook}", "insecure": True},
        "admin": {"listen": f"127.0.0.1:{admin}"},
        "defaults": {"health": {"mode": "none"}},
        "frontends": [frontend],
    }


def _is_ready(admin: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _listens(port: int) -> bool:
    """By the kernel's list: a connection would be one that reaches a server."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(local.endswith(f":{port:04X}") and state == "0A" for _, local, _, state, *_ in sockets)


def _end(client: socket.socket) -> str:
    try:
        return client.recv(100).hex() or "closed"
    except ConnectionResetError:
        return "reset"


@pytest.fixture
def oracles(tmp_path: Path) -> Iterator[Oracles]:
    names = (*ROUTES, "default")
    with ExitStack() as stack:
        servers = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in names}
        yield Oracles(stack.enter_context(Processes(tmp_path)), tmp_path, servers)


CUT = "half a hello is of no use to any server: pylb resets, nginx closes, and HAProxy makes it the default server's problem"
PROMISES_MORE = "its length says that more of it follows: for pylb it is cut, for nginx malformed, and HAProxy does not look"
BEHIND_THE_NAME = "nginx reads on, ALPN too, and finds a wrong length; pylb and HAProxy are content with the name"
BEFORE_TLS_1 = "HAProxy looks for extensions only from TLS 1.0 on"
REASONS = {
    **dict.fromkeys(("byte 0x16 alone", *(f"cut at {end}" for end in range(1, 104, 6))), CUT),
    "nothing": "nginx closes a connection without a byte; a server of pylb's default route may be the one to speak first",
    **dict.fromkeys(("two records", "type alone", "one-byte records", "in the name"), ONE_RECORD),
    **dict.fromkeys(("list shorter than its extension", "extensions shorter than the hello"), NOT_SO_STRICT),
    "hello version 0300": BEFORE_TLS_1,
    "empty record": "nginx skips it; RFC 8446 forbids it (5.1), and any number of them could come",
    "record too long": "RFC 8446 allows 16 KiB (5.1): no TLS for pylb; nginx waits for the rest, HAProxy does not look",
    "trailing dot": "nginx's map takes it off; RFC 6066 forbids it (3), and no client sends it",
    "two extensions": "nginx is not content with two, which RFC 8446 forbids (4.2); pylb and HAProxy take the first",
    # Of the turned bits, by where they are.
    **dict.fromkeys(("noise 37", "noise 44", "noise 55"), PROMISES_MORE),
    **dict.fromkeys((f"noise {number}" for number in (11, 15, 20, 23, 47, 53, 77, 89)), BEHIND_THE_NAME),
    "noise 29": BEFORE_TLS_1,
}


def test_each_of_200_hellos_reaches_the_server_that_it_reaches_through_haproxy_and_nginx(oracles: Oracles) -> None:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for the path of Chromium's socket
        tried = hellos(Path(folder))
    assert len(tried) >= 200
    found = {what: oracles.ask(data) for what, data in tried.items()}
    differ = {what: outcomes for what, outcomes in found.items() if len(set(outcomes)) > 1}
    assert differ.keys() == REASONS.keys(), differ
    assert {outcomes.pylb for outcomes in found.values()} == {"git", "one", "any", "default", "reset"}
