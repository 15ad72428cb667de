"""haproxy.cfg as pylb.yaml: what is translated means the same, what is not is named with its line, nothing raises."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pylb.config import ConfigErrors, parse
from pylb.config.yamlplace import MAX_CHARACTERS
from pylb.haproxy import Translation, _name, translate
from tests.app.instance import cli
from tests.support.drive import free_port
from tests.support.peers import need
from tests.support.processes import Processes, python
from tests.support.waiting import eventually


def read(text: str) -> Translation:
    return translate([("haproxy.cfg", text)])


def frontends(text: str) -> list[dict[str, Any]]:
    document = yaml.safe_load(read(text).text)
    parse(read(text).text, "pylb.yaml")  # pylb takes it
    shared = document.get("defaults", {})
    return [{**shared, **one} for one in document["frontends"]]


def one(*lines: str, server: str = "s1 192.0.2.7:30443", top: str = "") -> dict[str, Any]:
    """A listen section with these lines."""
    [found] = frontends(f"{top}\nlisten web\n  bind *:443\n  server {server}\n" + "".join(f"  {line}\n" for line in lines))
    return found


def notes(text: str) -> list[str]:
    return [str(note).removeprefix("haproxy.cfg:") for note in read(text).notes]


def test_a_frontend_with_its_backend() -> None:
    text = "frontend https\n bind *:443\n default_backend apps\nbackend apps\n server a 192.0.2.7:30443\n"
    assert frontends(text) == [{"name": "https", "listen": "*:443", "balance": "roundrobin", "servers": ["192.0.2.7:30443"]}]
    assert notes(text) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("balance leastconn", {"balance": "leastconn"}),
        ("balance static-rr", {"balance": "roundrobin"}),
        ("balance random(3)", {"balance": "random"}),
        ("maxconn 100", {"max_connections": 100}),
        ("retries 1", {"retries": 1}),
        ("rate-limit sessions 50", {"limits": {"rate": 50}}),
        ("timeout connect 4000", {"timeouts": {"connect": "4s"}}),
        ("timeout tunnel 1h", {"timeouts": {"idle": "1h"}}),
        ("timeout client-fin 90s", {"timeouts": {"half_close": "90s"}}),
        ("timeout queue 1500us", {"timeouts": {"queue": "2ms"}}),
        ("source 192.0.2.1", {"source_addresses": ["192.0.2.1"]}),
        ("stick on src", {"balance": "source"}),
    ],
)
def test_settings(line: str, expected: dict[str, Any]) -> None:
    assert expected.items() <= one(line).items()


def test_tunnel_replaces_client_and_server_and_of_those_two_the_longer_counts() -> None:
    assert one("timeout client 30s", "timeout server 50s")["timeouts"] == {"idle": "50s"}
    assert one("timeout client 30s", "timeout server 50s", "timeout tunnel 2h")["timeouts"] == {"idle": "2h"}


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("s1 192.0.2.7:30443 weight 5", {"servers": [{"address": "192.0.2.7:30443", "weight": 5}]}),
        (
            "s1 192.0.2.7:30443 backup maxconn 9",
            {"servers": [{"address": "192.0.2.7:30443", "backup": True, "max_connections": 9}]},
        ),
        ("s1 192.0.2.7", {"servers": ["192.0.2.7:443"]}),
        ("s1 app.example.net:30443", {"servers": ["app.example.net:30443"]}),
        ("s1 [2001:db8::7]:30443", {"servers": ["[2001:db8::7]:30443"]}),
        ("s1 192.0.2.7:30443 send-proxy-v2", {"proxy_protocol": {"send": "v2"}}),
        (
            "s1 192.0.2.7:30443 check inter 5s rise 1 fall 2",
            {"health": {"mode": "active", "interval": "5s", "rise": 1, "fall": 2}},
        ),
        ("s1 192.0.2.7:30443 check port 80", {"health": {"mode": "active", "check": {"port": 80}}}),
        ("s1 192.0.2.7:30443 on-marked-down shutdown-sessions", {"on_down": "close"}),
    ],
)
def test_servers(server: str, expected: dict[str, Any]) -> None:
    assert expected.items() <= one(server=server).items()


def test_checks_by_http_and_by_text() -> None:
    checked = "s1 192.0.2.7:30443 check"
    assert one("option httpchk GET /health", "http-check expect status 200", server=checked)["health"]["check"] == {
        "http": "/health",
        "expect": "200",
    }
    assert one("option tcp-check", "tcp-check send PING\\r\\n", "tcp-check expect string PONG", server=checked)["health"] == {
        "mode": "active",
        "check": {"send": "PING\r\n", "expect": "PONG"},
    }


def test_defaults_count_for_what_is_behind_them_and_what_all_share_stands_once() -> None:
    text = "defaults\n timeout connect 3s\n" + "".join(
        f"listen {name}\n bind *:{port}\n server s 192.0.2.7:{port}\n" for name, port in (("a", 81), ("b", 82))
    )
    assert yaml.safe_load(read(text).text)["defaults"] == {"balance": "roundrobin", "timeouts": {"connect": "3s"}}
    again = text + "defaults\n timeout connect 9s\nlisten c\n bind *:83\n server s 192.0.2.7:83\n"
    assert [found["timeouts"]["connect"] for found in frontends(again)] == ["3s", "3s", "9s"]


def test_each_place_of_a_bind_is_a_frontend() -> None:
    text = "listen web\n bind *:80,192.0.2.1:8080\n bind [2001:db8::1]:9100-9101\n server s 192.0.2.7:80\n"
    assert [(found["name"], found["listen"]) for found in frontends(text)] == [
        ("web", "*:80"),
        ("web-8080", "192.0.2.1:8080"),
        ("web-9100", "[2001:db8::1]:9100"),
        ("web-9101", "[2001:db8::1]:9101"),
    ]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("listen w\n bind *:80\n mode http\n server s 192.0.2.7:80", "1: listen w is left out: mode http"),
        (
            "listen w\n bind *:443 ssl crt x\n server s 192.0.2.7:80",
            "2: not translated: bind *:443 ssl (TLS ends in",
        ),
        ("listen w\n bind /run/x.sock\n server s 192.0.2.7:80", "2: not translated: bind /run/x.sock"),
        ("listen w\n bind *:80\n server s 192.0.2.7:80 ssl", "3: not translated: server s ssl"),
        (
            "listen w\n bind *:80\n use_backend x if { src 10.0.0.1 }\n server s 192.0.2.7:80",
            "3: not translated: use_backend x",
        ),
        ("listen w\n bind *:80\n server s 192.0.2.7:80 disabled", "3: server s is disabled there: `pylb ctl maint`"),
        ("frontend w\n bind *:80\n default_backend x", "1: frontend w is left out: it has no backend called x"),
        ("frontend w\n bind *:80", "1: frontend w is left out: it has no default_backend"),
        ("backend b\n server s 192.0.2.7:80", "1: backend b is left out: no frontend has it as its default"),
        ("peers p\n peer a 192.0.2.7:80", "1: section peers p: not translated"),
        ("global\n maxconn 100", "2: global maxconn: pylb derives its limit"),
        ("nonsense", "1: not understood: nonsense"),
        ("listen w\n bind *:80 accept-proxy\n server s 192.0.2.7:80", "2: accept-proxy: accept_from is everybody"),
        ("listen w\n bind *:80\n balance uri\n server s 192.0.2.7:80", "3: not translated: balance uri (pylb has"),
        (
            "listen w\n bind *:80\n source 0.0.0.0 usesrc clientip\n server s 192.0.2.7:80",
            "3: not translated: source 0.0.0.0",
        ),
    ],
)
def test_what_has_no_counterpart_is_named_with_its_line(text: str, note: str) -> None:
    assert any(found.startswith(note) for found in notes(text)), notes(text)


SOME = """
    global defaults listen frontend backend bind server balance mode timeout option check weight * : *:80 192.0.2.1:80 443
    default_backend source from tcp-check send expect string http-check status maxconn ssl port inter 5s x ' " \\ # -1
"""
WORDS = st.sampled_from(SOME.split())


@given(st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=12).map("\n".join) | st.text(max_size=200))
def test_nothing_raises_and_what_comes_out_is_yaml(text: str) -> None:
    document = yaml.safe_load(read(text).text)
    assert isinstance(document["frontends"], list)
    try:
        parse(read(text).text, "pylb.yaml")
    except ConfigErrors:
        pass  # two frontends on one port, a server that is none: the command says so


def test_the_command_prints_the_file_and_lists_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text("listen web\n  bind *:443\n  acl x src 10.0.0.1\n  server s1 192.0.2.7:30443\n")
    ended = cli(tmp_path, "import", str(file))
    assert ended.returncode == 0
    assert yaml.safe_load(ended.stdout)["frontends"][0]["listen"] == "*:443"
    assert f"{file}:3: not translated: acl x src 10.0.0.1" in ended.stderr
    assert "1 frontend translated, 1 note" in ended.stderr
    file.write_text("global\n")
    assert (cli(tmp_path, "import", str(file)).returncode) == 1


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as found:
        yield found


@pytest.mark.e2e
def test_pylb_serves_what_haproxy_served_from_the_same_file(processes: Processes, tmp_path: Path) -> None:
    ports, target, dead = [free_port() for _ in range(3)], free_port(), free_port()
    haproxy, mqtt, ranged = ports
    text = (
        "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 1m\n  timeout server 1m\n  option redispatch\n"
        f"frontend first\n  bind 127.0.0.1:{haproxy}\n  default_backend apps\n"
        f"backend apps\n  balance first\n  server dead 127.0.0.1:{dead}\n  server live 127.0.0.1:{target}\n"
        f"listen mqtt\n  bind 127.0.0.1:{mqtt}\n  server live 127.0.0.1:{target} check backup\n"
        f"listen third\n  bind 127.0.0.1:{ranged}\n  server live 127.0.0.1:{target} send-proxy\n"
    )
    file = tmp_path / "haproxy.cfg"
    file.write_text(text)
    with ExitStack() as stack:
        app = stack.enter_context(socket.create_server(("127.0.0.1", target)))
        app.settimeout(10)
        old = processes.start("haproxy", [need("haproxy"), "-f", str(file), "-db"])
        before = [_first_bytes(port, app) for port in ports]
        old.stop()
        ended = cli(tmp_path, "import", str(file))
        assert ended.returncode == 0, ended.stderr
        config = tmp_path / "pylb.yaml"
        faces = {"webhook": {"listen": f"127.0.0.1:{free_port()}"}, "admin": {"listen": f"127.0.0.1:{free_port()}"}}
        extra = yaml.safe_dump(faces | {"state_dir": "state"})
        config.write_text(extra + ended.stdout)
        processes.start("pylb", python("pylb", "run", "-c", str(config)))
        after = [_first_bytes(port, app) for port in ports]
    assert before[:2] == after[:2] == [b"hello", b"hello"]
    assert before[2].startswith(b"PROXY TCP4 127.0.0.1")
    assert after[2].startswith(b"PROXY TCP4 127.0.0.1")


def _first_bytes(port: int, app: socket.socket) -> bytes:
    """What the app gets when a client says hello at `port`."""

    def connected() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except ConnectionRefusedError:
            return None  # it is starting

    client = eventually(connected, what=f"port {port} is open")
    assert client is not None
    with client:
        client.sendall(b"hello")
        while True:
            session, _ = app.accept()
            with session:
                session.settimeout(10)
                if first := session.recv(100):  # a health check says nothing
                    return first


def test_what_would_be_larger_than_pylb_reads_is_noted_and_the_rest_translated() -> None:
    """A few hundred bytes asked for a hundred million lines."""
    servers = "".join(f" server s{number} 192.0.2.7:{number}\n" for number in range(1, 1001))
    text = f"listen small\n bind *:1\n server s 192.0.2.7:1\nlisten wide\n bind *:2-65535\n bind *:2-65535\n{servers}"
    found = translate([("haproxy.cfg", text)])
    assert "listen wide is not translated to its end: with it pylb.yaml has more than" in "\n".join(map(str, found.notes))
    assert len(found.text) < MAX_CHARACTERS
    assert [one["name"] for one in yaml.safe_load(found.text)["frontends"]][:1] == ["small"]


@pytest.mark.parametrize("line", ["listen " + "-" * (1 << 20), "listen a" + "-" * (1 << 20) + "a", "listen " + "a" * (1 << 20)])
def test_a_name_of_1_mib_is_read_in_one_pass(line: str) -> None:
    assert len(_name(line.partition(" ")[2])) <= 253


def test_a_note_is_not_searched_among_all_others() -> None:
    lines = "listen a\n" + "".join(f" nonsense{number}\n" for number in range(20_000))
    assert len(translate([("haproxy.cfg", lines)]).notes) == 20_001
