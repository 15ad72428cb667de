"""The reader of ClientHellos beside HAProxy's req.ssl_sni and nginx's ssl_preread: 200 hellos, the same name from all three.

nginx answers with the name that it has read; HAProxy logs it. Where they differ, REASONS says why; a reason that is not needed
any more fails the test too.
"""

import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from pylb.core.client_hello import HelloReader
from tests.e2e.many_hellos import hellos
from tests.support.peers import need
from tests.support.ports import free_ports
from tests.support.processes import Processes
from tests.support.waiting import eventually

HAPROXY = """
global
  tune.bufsize 32768
  log 127.0.0.1:{log} format raw local0
defaults
  mode tcp
  timeout client 20s
  timeout server 20s
  timeout connect 1s
listen hellos
  bind 127.0.0.1:{port}
  log global
  log-format "client %cp asks for <%[var(sess.sni)]>"
  tcp-request inspect-delay 10s
  tcp-request content set-var(sess.sni) req.ssl_sni if {{ req.ssl_hello_type 1 }}
  tcp-request content reject if {{ req.ssl_hello_type 1 }}
  tcp-request content reject
"""
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr; worker_processes 1;
load_module {modules}/ngx_stream_module.so;
events {{ worker_connections 64; }}
stream {{
  ssl_preread on;
  preread_buffer_size 32k;
  server {{ listen 127.0.0.1:{port}; return "<$ssl_preread_server_name>"; }}
}}
"""
MODULES = Path("/usr/lib/nginx/modules")


class Names(NamedTuple):
    pylb: str
    haproxy: str
    nginx: str


class Oracles:
    """Both, on ports of their own. HAProxy's answer comes as a datagram of its log."""

    def __init__(self, processes: Processes, folder: Path, log: socket.socket) -> None:
        self.haproxy_at, self.nginx_at = free_ports(2)
        self._log = log
        self._log.bind(("127.0.0.1", 0))
        self._log.settimeout(10)
        self._logged: dict[int, str] = {}
        haproxy, nginx = folder / "haproxy.cfg", folder / "nginx.conf"
        haproxy.write_text(HAPROXY.format(port=self.haproxy_at, log=self._log.getsockname()[1]))
        nginx.write_text(NGINX.format(folder=folder, modules=MODULES, port=self.nginx_at))
        processes.start("haproxy", (need("haproxy"), "-db", "-f", str(haproxy)))
        processes.start("nginx", (need("nginx"), "-e", "stderr", "-c", str(nginx)))
        for port in (self.haproxy_at, self.nginx_at):
            eventually(lambda port=port: not socket.create_connection(("127.0.0.1", port), 1).close(), what=f"{port} listens")

    def ask(self, data: bytes) -> Names:
        reader = HelloReader()
        reader.feed(data)
        ours, answer = _answer(self.haproxy_at, data)
        assert not answer, "HAProxy only logs"
        while ours not in self._logged:
            found = re.fullmatch(rb"client (\d+) asks for <(.*)>\n?", self._log.recv(65536), re.DOTALL)
            assert found is not None
            self._logged[int(found[1])] = "" if found[2] == b"-" else _lower(found[2])
        _, answer = _answer(self.nginx_at, data)
        return Names(reader.name, self._logged.pop(ours), _lower(answer[1:-1]))


def _answer(port: int, data: bytes) -> tuple[int, bytes]:
    """(our port, the answer to the hello and a FIN): whoever waits for more of the hello gives up at that."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        ours = sock.getsockname()[1]
        with suppress(OSError):  # it may have decided, and closed, before all of it came
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):
            while piece := sock.recv(65536):
                found += piece
    return ours, found


def _lower(name: bytes) -> str:
    return name.lower().decode("latin-1")


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracles]:
    folder = tmp_path_factory.mktemp("hellos")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log, Processes(folder) as processes:
        yield Oracles(processes, folder, log)


ONE_RECORD = "HAProxy reads one record and takes what follows for the message"
NOT_SO_STRICT = (
    "HAProxy looks only at the lengths on the way to the name, and takes what stands behind the hello for a part of it"
)
REASONS = {
    "two extensions": "nginx reads the second one, too, and is not content with two; RFC 8446 forbids them (4.2)",
    "hello version 0300": "HAProxy looks for extensions only from TLS 1.0 on",
    **dict.fromkeys(("two records", "type alone", "one-byte records", "in the name"), ONE_RECORD),
    "empty record": "nginx skips it; RFC 8446 forbids it (5.1), and any number of them could come",
    "record too long": "HAProxy does not look at its length; RFC 8446 allows 16 KiB (5.1)",
    "list shorter than its extension": NOT_SO_STRICT,
    "name longer than its list": NOT_SO_STRICT,
    "extensions shorter than the hello": NOT_SO_STRICT,
}


def test_200_hellos_have_the_name_that_haproxy_and_nginx_read(oracles: Oracles) -> None:
    """Among the hellos with bits turned over, and among the odd ones, HAProxy and nginx do not always agree: then one of them
    reads what pylb reads. Why they differ is written down for those that are made on purpose."""
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is too long for the path of Chromium's socket
        tried = hellos(Path(folder))
    assert len(tried) >= 200
    found = {what: oracles.ask(data) for what, data in tried.items()}
    assert {what: names for what, names in found.items() if names.pylb not in names[1:]} == {}
    differ = {what: names for what, names in found.items() if len(set(names)) > 1 and not what.startswith("noise")}
    assert differ.keys() == REASONS.keys(), differ
    assert sum(bool(names.pylb) for names in found.values()) > 60
