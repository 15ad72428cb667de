"""haproxy.cfg as pylb.yaml: what is translated means the same, what is not is named with its line, nothing raises."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pylb.config import ConfigErrors, parse
from pylb.config.yamlplace import MAX_CHARACTERS
from pylb.haproxy.servers import plain_name
from pylb.haproxy.translate import Translation, translate


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


def differences(text: str) -> list[str]:
    return [str(note).removeprefix("haproxy.cfg:") for note in read(text).differences]


def notes(text: str) -> list[str]:
    return [str(note).removeprefix("haproxy.cfg:") for note in read(text).notes]


NONE_WRITTEN = {"connect": "366d", "half_close": "366d", "idle": "0s"}  # HAProxy has no timeout then


def timeouts(**written: str) -> dict[str, Any]:
    return {"timeouts": NONE_WRITTEN | written}


def test_a_frontend_with_its_backend() -> None:
    text = "frontend https\n bind *:443\n default_backend apps\nbackend apps\n server a 192.0.2.7:30443\n"
    assert frontends(text) == [
        {
            "name": "https",
            "listen": "0.0.0.0:443",  # their * is IPv4
            "balance": "roundrobin",
            "retries": 0,  # without `option redispatch` no other server is tried
            "health": {"mode": "none"},  # whoever is not checked is never down
            "timeouts": NONE_WRITTEN,
            "servers": [{"name": "a", "address": "192.0.2.7:30443"}],
        }
    ]
    assert notes(text) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("balance leastconn", {"balance": "leastconn"}),
        ("balance static-rr", {"balance": "roundrobin"}),
        ("balance random(3)", {"balance": "random"}),
        ("maxconn 100", {"max_connections": 100}),
        ("retries 1", {"retries": 0}),
        ("option redispatch", {"retries": 3}),
        ("balance source\n  option redispatch", {"retries": 0}),
        ("balance leastconn\n  option redispatch", {"retries": 1}),
        ("option redispatch\n  no option redispatch", {"retries": 0}),
        ("timeout tunnel 0", timeouts()),
        ("timeout connect 0", timeouts()),
        ("rate-limit sessions 50", {"limits": {"rate": 50}}),
        ("timeout connect 4000", timeouts(connect="4s")),
        ("timeout tunnel 1h", timeouts(idle="1h", half_close="1h")),
        ("timeout client-fin 90s", timeouts()),  # after the client's FIN the server's side counts
        ("timeout client-fin 90s\n  timeout server-fin 5s", timeouts(half_close="90s")),
        ("timeout server-fin 90s\n  timeout client 9s", timeouts(half_close="90s", idle="9s")),
        ("timeout queue 1500us\n  default-server maxconn 5\n  server s2 192.0.2.8:1", timeouts(queue="2ms")),
        ("source 192.0.2.1", {"source_addresses": ["192.0.2.1"]}),
        ("balance hash src", {"balance": "source"}),
        ("tcp-request connection reject if { src 10.0.0.0/8 }", {"access": [{"deny": "10.0.0.0/8"}]}),
        ("tcp-request content reject if !{ src 10.0.0.0/8 }", {"access": [{"allow": "10.0.0.0/8"}]}),
        (
            "acl a src 10.0.0.0/8\n  tcp-request connection accept if a\n  tcp-request connection reject",
            {"access": [{"allow": "10.0.0.0/8"}]},
        ),
    ],
)
def test_settings(line: str, expected: dict[str, Any]) -> None:
    assert expected.items() <= one(line).items()


def test_tunnel_replaces_client_and_server_and_of_those_two_the_shorter_ends_a_silent_session() -> None:
    assert one("timeout client 30s", "timeout server 50s")["timeouts"] == NONE_WRITTEN | {"idle": "30s", "half_close": "50s"}
    assert one("timeout client 0", "timeout server 50s")["timeouts"] == NONE_WRITTEN | {"idle": "50s"}
    assert one("timeout client 30s", "timeout server 50s", "timeout tunnel 2h")["timeouts"]["idle"] == "2h"


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("s1 192.0.2.7:30443 weight 5", {"servers": [{"name": "s1", "address": "192.0.2.7:30443", "weight": 5}]}),
        (
            "s1 192.0.2.7:30443 backup maxconn 9",
            {"servers": [{"name": "s1", "address": "192.0.2.7:30443", "backup": True, "max_connections": 9}]},
        ),
        ("s1 192.0.2.7", {"servers": [{"name": "s1", "address": "192.0.2.7:443"}]}),
        ("s1 192.0.2.7:+1000", {"servers": [{"name": "s1", "address": "192.0.2.7:1443"}]}),
        ("s1 ipv4@192.0.2.7:1", {"servers": [{"name": "s1", "address": "192.0.2.7:1"}]}),
        ("s1 app.example.net:30443", {"servers": [{"name": "s1", "address": "app.example.net:30443"}]}),
        ("s1 ipv6@app.example.net:1", {"servers": [{"name": "s1", "address": "app.example.net:1", "resolve": "ipv6"}]}),
        ("s1 [2001:db8::7]:30443", {"servers": [{"name": "s1", "address": "[2001:db8::7]:30443"}]}),
        ("s1 2001:db8::7:30443", {"servers": [{"name": "s1", "address": "[2001:db8::7]:30443"}]}),
        ("s1 192.0.2.7:30443 disabled", {"servers": [{"name": "s1", "address": "192.0.2.7:30443", "weight": 0}]}),
        ("s1 192.0.2.7:30443 send-proxy-v2", {"proxy_protocol": {"send": "v2"}}),
        (
            "s1 192.0.2.7:30443 check inter 5s rise 1 fall 2",
            {
                "health": {
                    "mode": "active",
                    "timeout": "5s",
                    "interval": "5s",
                    "rise": 1,
                    "fall": 2,
                    "when_all_down": "refuse",
                }
            },
        ),
        (
            "s1 192.0.2.7:30443 check port 80",
            {"health": {"mode": "active", "check": {"port": 80}, "timeout": "2s", "when_all_down": "refuse"}},
        ),
        ("s1 192.0.2.7:30443 check on-marked-down shutdown-sessions", {"on_down": "close"}),
        ("s1 192.0.2.7:30443 check slowstart 30s", {"slow_start": "30s"}),
    ],
)
def test_servers(server: str, expected: dict[str, Any]) -> None:
    assert expected.items() <= one(server=server).items()


def test_a_default_server_counts_for_the_servers_behind_it() -> None:
    found = one("default-server weight 9", "server s2 192.0.2.8:1", top="defaults\n default-server weight 3")
    assert [server["weight"] for server in found["servers"]] == [3, 9]


@pytest.mark.parametrize(
    ("servers", "names"),
    [
        (("a 192.0.2.1:1 id 30", "b 192.0.2.2:1", "c 192.0.2.3:1 id 1"), ["c", "b", "a"]),
        (("a 192.0.2.1:1 id 30", "b 192.0.2.2:1 id 9 backup", "c 192.0.2.3:1 id 8 backup"), ["b", "c", "a"]),
    ],
)
def test_first_goes_by_the_ids_of_servers_and_one_backup_by_its_line(servers: tuple[str, ...], names: list[str]) -> None:
    text = "listen w\n bind *:1\n balance first\n" + "".join(f" server {each}\n" for each in servers)
    assert [server["name"] for server in frontends(text)[0]["servers"]] == names


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ("send-proxy-v2 send-proxy", {"send": "v2"}),
        ("send-proxy no-send-proxy-v2", {"send": "v1"}),
        ("no-send-proxy-v2", None),
        ("no-send-proxy", {"send": "v2"}),
    ],
)
def test_a_server_takes_back_one_header_or_the_other(options: str, sent: dict[str, str] | None) -> None:
    found = one(server=f"s1 192.0.2.7:1 {options}", top="defaults\n default-server send-proxy-v2")
    assert found.get("proxy_protocol") == sent


@pytest.mark.parametrize(
    "options", ["check send-proxy check-send-proxy", "check-send-proxy", "check check-send-proxy no-check-send-proxy"]
)
def test_check_send_proxy_changes_nothing_where_a_check_has_the_header_of_the_sessions_or_there_is_none(options: str) -> None:
    assert notes(f"{ONE} {options}") == []


@pytest.mark.parametrize(("lines", "backups"), [("", "first"), ("option allbackups", "all")])
def test_one_backup_serves_or_all_do(lines: str, backups: str) -> None:
    found = one(lines, "server s2 192.0.2.8:1 backup", "server s3 192.0.2.9:1 backup")
    assert found["backups"] == backups


def test_defaults_count_for_what_is_behind_them_and_what_all_share_stands_once() -> None:
    text = "defaults\n timeout connect 3s\n" + "".join(
        f"listen {name}\n bind *:{port}\n server s 192.0.2.7:{port}\n" for name, port in (("a", 81), ("b", 82))
    )
    assert yaml.safe_load(read(text).text)["defaults"] == {
        "balance": "roundrobin",
        "retries": 0,
        "timeouts": NONE_WRITTEN | {"connect": "3s"},
        "health": {"mode": "none"},
    }
    again = text + "defaults\n timeout connect 9s\nlisten c\n bind *:83\n server s 192.0.2.7:83\n"
    assert [found["timeouts"]["connect"] for found in frontends(again)] == ["3s", "3s", "9s"]


def test_each_place_of_a_bind_is_a_frontend() -> None:
    text = "listen web\n bind *:80,192.0.2.1:8080\n bind [2001:db8::1]:9100-9101\n server s 192.0.2.7:80\n"
    assert [(found["name"], found["listen"]) for found in frontends(text)] == [
        ("web", "0.0.0.0:80"),
        ("web-8080", "192.0.2.1:8080"),
        ("web-9100", "[2001:db8::1]:9100-9101"),
    ]


@pytest.mark.parametrize(
    ("binds", "listen"),
    [
        ("*:80", ["0.0.0.0:80"]),
        (":80", ["0.0.0.0:80"]),
        (":::80", ["*:80"]),
        ("[::]:80 v4v6", ["*:80"]),
        (":::80 v6only", ["[::]:80"]),
        ("0.0.0.0:80\n bind :::80 v6only", ["*:80"]),
        ("*:80\n bind :::80 v4v6", ["*:80"]),
        ("ipv4@192.0.2.1:80-81", ["192.0.2.1:80-81"]),
        ("ipv6@2001:db8::1:80", ["[2001:db8::1]:80"]),
    ],
)
def test_families(binds: str, listen: list[str]) -> None:
    assert [found["listen"] for found in frontends(f"listen w\n bind {binds}\n server s 192.0.2.7:1\n")] == listen


LISTEN = "listen w\n bind *:80\n server s 192.0.2.7:80\n server t 192.0.2.8:80\n"
SERVER = " server s 192.0.2.7:80\n"
ONE = f"listen w\n bind *:80\n{SERVER}".rstrip()
HTTP, TEXT = f"{ONE} check\n option httpchk GET /\n", f"{ONE} check\n option tcp-check\n"


@pytest.mark.parametrize(
    ("text", "difference"),
    [
        (f"{LISTEN} mode http", "1: listen w is left out: HAProxy would serve it in mode http"),
        ("listen w\n bind *:443 ssl crt x\n server s 192.0.2.7:80", "2: bind *:443 ssl: HAProxy would decrypt TLS there"),
        ("listen w\n bind /run/x.sock\n server s 192.0.2.7:80", "2: bind /run/x.sock: HAProxy would listen there"),
        ("listen w\n bind *:80 interface eth0\n server s 192.0.2.7:80", "2: bind *:80 interface eth0: HAProxy would listen on"),
        ("listen w\n bind *:80 accept-netscaler-cip 1\n server s 192.0.2.7:80", "2: bind *:80 accept-netscaler-cip"),
        (f"{ONE} ssl verify none", "3: server s: HAProxy would encrypt"),
        (f"{ONE} check check-ssl", "3: server s: check-ssl: HAProxy would check it over TLS"),
        (f"{ONE} check observe layer4", "3: server s: observe layer4"),
        (f"{ONE} track other/x", "3: server s: track other/x"),
        (f"{ONE} maxqueue 5", "3: server s: maxqueue 5"),
        (f"{ONE} unheard-of", "3: server s: unheard-of: pylb has nothing like it"),
        ("listen w\n bind *:80\n server s app.example.net:80", "3: server s: HAProxy would look the name up at its start"),
        ("listen w\n bind *:80\n server s /run/app.sock", "3: server s: HAProxy would use /run/app.sock"),
        ("listen w\n bind *:80\n server s 0.0.0.0:80", "3: server s: HAProxy would connect to where the client wanted"),
        ("listen w\n bind *:80\n server-template s 1-3 app.example.net:80 check", "3: server-template s 1-3: HAProxy would"),
        (f"{LISTEN} server u 192.0.2.8:80", "5: server u: HAProxy would use 192.0.2.8:80 twice"),
        (f"{LISTEN} server u 192.0.2.9:80 check", "3: server s: HAProxy would not check it"),
        (f"{LISTEN} server u 192.0.2.9:80 send-proxy", "5: server u: send-proxy differs from the first"),
        (f"{LISTEN} use_backend x if {{ req.ssl_sni -m reg a }}", "5: use_backend x if { req.ssl_sni -m reg a }: HAProxy"),
        (f"{LISTEN} use_backend x if {{ req.ssl_sni a.example }}", "1: listen w: the route to x is left out: it has no"),
        (f"{LISTEN} use_backend x if {{ src 10.0.0.1 }}", "5: use_backend x if { src 10.0.0.1 }: HAProxy would send some"),
        (f"{LISTEN} use_backend bk_%[req.ssl_sni]", "5: use_backend bk_%[req.ssl_sni]: HAProxy would send some"),
        (f"{LISTEN} use-server s if TRUE", "5: use-server s if TRUE: pylb has nothing like"),
        (f"{LISTEN} tcp-request connection reject if {{ src_conn_rate gt 10 }}", "5: tcp-request connection reject if"),
        (f"{LISTEN} tcp-request connection reject if {{ src -f /etc/bad }}", "5: tcp-request connection reject if { src -f"),
        (f"{LISTEN} tcp-request content set-dst str(1)", "5: tcp-request content set-dst str(1): pylb has nothing"),
        (f"{LISTEN} tcp-response content reject", "5: tcp-response content reject: pylb has nothing like"),
        (
            f"{LISTEN} stick-table type ip size 1m\n stick on dst",
            "6: stick on dst: HAProxy would remember each client's server",
        ),
        (f"{LISTEN} stick on src", "5: stick on src: HAProxy would remember each client's server"),
        (f"{LISTEN} balance uri", "5: balance uri: HAProxy would choose servers in this way"),
        (f"{LISTEN} balance source\n hash-balance-factor 150", "6: hash-balance-factor 150: HAProxy would send clients"),
        (f"{LISTEN} dispatch 192.0.2.1:1", "5: dispatch 192.0.2.1:1: pylb has nothing like dispatch"),
        (f"{LISTEN} option transparent", "5: option transparent: pylb has no option transparent"),
        (
            f"{LISTEN} source 0.0.0.0 usesrc clientip",
            "5: source 0.0.0.0 usesrc clientip: HAProxy would use the client's address",
        ),
        (f"{LISTEN} bind *:90\n maxconn 10", "6: listen w: maxconn 10: HAProxy would count all its places"),
        (f"listen w\n default-server maxconn 5\n bind *:80,*:90\n{SERVER}", "4: server s: maxconn: HAProxy would count"),
        (
            f"{ONE} check fastinter 1s",
            "3: server s: fastinter 1s: HAProxy would check it at that interval while its state changes",
        ),
        (
            f"{ONE} check inter 1s downinter 9s",
            "3: server s: downinter 9s: HAProxy would check it at that interval while it is down",
        ),
        (f"{ONE} send-proxy check port 1 check-send-proxy", "3: server s: check-send-proxy: HAProxy would begin its check"),
        (f"{ONE} check check-send-proxy", "3: server s: check-send-proxy: HAProxy would begin its check"),
        (f"{HTTP} http-check", "5: http-check: HAProxy would do this in its check"),
        (f"listen w 192.0.2.1:80\n{SERVER}", "1: listen w 192.0.2.1:80: HAProxy up to 1.8 would listen there"),
        (f"listen w\n bind *:80 transparent\n{SERVER}", "2: bind *:80 transparent: HAProxy would also take connections"),
        (f"listen w\n bind *:80\n mode http\n monitor-uri /up\n{LISTEN}", "1: listen w is left out: HAProxy would serve it"),
        (
            f"defaults\n mode http\n stats enable\nfrontend w\n bind *:80\n use_backend x if {{ path / }}\n{LISTEN} mode tcp",
            "4: frontend w is left out: HAProxy would serve it in mode http",  # although it has inherited a page
        ),
        (f"{ONE} check\n option mysql-check user x", "4: option mysql-check user x: HAProxy would check servers in that"),
        (f"{ONE} check\n option tcp-check\n tcp-check expect ! string x", "5: tcp-check expect ! string x: HAProxy would"),
        (f"{ONE} check\n option tcp-check\n tcp-check send-binary ff", "5: tcp-check send-binary ff: HAProxy would send"),
        (
            f"{ONE} check\n option httpchk\n http-check send meth HEAD uri / hdr X-A b",
            "5: http-check send meth HEAD uri / hdr X-A b: HAProxy would send this HEAD and judge its status, 200-399",
        ),
        (f"{HTTP} http-check expect rstatus 2", "5: http-check expect rstatus 2: HAProxy would judge the answer by"),  # 502
        (f"{HTTP} http-check expect rstatus ^2.$", "5: http-check expect rstatus ^2.$: HAProxy would judge the answer by"),
        (
            f"{HTTP} http-check expect status 200\n http-check expect string a",
            "6: http-check expect string a: HAProxy would do both",
        ),
        (f"{HTTP} http-check expect status 200\n http-check send uri /b", "6: http-check send uri /b: HAProxy would do both"),
        (
            f"defaults\n option httpchk GET /a\n{ONE} check\n http-check expect status 200",
            "6: http-check expect status 200: HAProxy would send nothing (option httpchk GET /a is in the defaults)",
        ),
        (
            f"{TEXT} tcp-check expect string a\n tcp-check expect string b",
            "6: tcp-check expect string b: HAProxy would search",
        ),
        (f"{TEXT} tcp-check expect min-recv 9 string a", "5: tcp-check expect min-recv 9 string a: HAProxy would judge"),
        (
            f"{TEXT} tcp-check expect ok-status L7OKC string a",
            "5: tcp-check expect ok-status L7OKC string a: HAProxy would keep",
        ),
        (f"{ONE} check\n option httpchk GET /\n http-check expect ! status 500", "5: http-check expect ! status 500"),
        ("frontend w\n bind *:80\n default_backend x", "1: frontend w is left out: it has no backend called x"),
        ("frontend w\n bind *:80", "1: frontend w is left out: it has no default_backend"),
        ("nonsense", "1: not understood: nonsense"),
        (f"global\n maxconnrate 5\n{LISTEN}", "2: global maxconnrate 5: HAProxy would take"),
        ("log-forward x\n bind *:514", "1: section log-forward x: HAProxy would take log messages"),
    ],
)
def test_what_would_change_who_gets_a_connection_is_a_difference(text: str, difference: str) -> None:
    assert any(found.startswith(difference) for found in differences(text)), differences(text)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("backend b\n server s 192.0.2.7:80", "1: backend b is left out: no frontend sends to it"),
        ("peers p\n peer a 192.0.2.7:80", "1: section peers p: not translated"),
        ("global\n maxconn 100", "2: global maxconn: pylb derives its limit"),
        ("listen w\n bind *:80 accept-proxy\n server s 192.0.2.7:80", "2: accept-proxy: accept_from is everybody"),
        (f"{ONE} disabled", "3: server s is disabled: weight 0"),
        ("listen stats\n mode http\n bind *:8404\n stats enable", "1: listen stats is left out: pylb has its status page"),
        (f"{LISTEN} disabled", "1: listen w is left out: it is disabled"),
        (f"{LISTEN} balance source", "5: balance source: each client always gets the same server, but by another hash"),
        ("program p\n command x", "1: section program p: not translated"),
    ],
)
def test_what_changes_nothing_for_clients_is_a_note(text: str, note: str) -> None:
    assert any(found.startswith(note) for found in notes(text)), notes(text)
    assert differences(text) == []


SAME = """
    log global|nbthread 4|option tcplog|hash-type consistent|fullconn 100|stick-table type ip size 1m store conn_rate(3s)
    tcp-request connection track-sc0 src|tcp-request inspect-delay 5s|tcp-request content accept if { req.ssl_hello_type 1 }
    acl unused req.ssl_sni a.example|no log|http-request deny|option forwardfor|cookie X insert|timeout http-request 5s|id 7
"""


@pytest.mark.parametrize("line", [one.strip() for one in SAME.replace("\n", "|").split("|") if one.strip()])
def test_what_says_nothing_about_connections_is_passed_over_in_silence(line: str) -> None:
    text = f"global\n {line}\n{LISTEN}" if line.startswith("nbthread") else f"{LISTEN} {line}\n"
    assert notes(text) == []


@pytest.mark.parametrize(
    "text",
    [
        f"{ONE}\n timeout queue 30s\n",
        f"{ONE} check slowstart 9s weight 7\n balance first\n",
        "listen web\n bind *:443 transparent\n server a 192.0.2.7:80\n",
    ],
)
def test_what_has_no_effect_in_pylb_is_not_written(text: str) -> None:
    assert parse(yaml.safe_dump({"frontends": frontends(text)}), "pylb.yaml").warnings == ()


def test_with_one_server_stickiness_changes_nothing() -> None:
    assert differences(f"{ONE}\n stick on src\n balance uri\n") == []


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


def test_what_would_be_larger_than_pylb_reads_is_noted_and_the_rest_translated() -> None:
    """A few hundred bytes asked for a hundred million lines."""
    servers = "".join(f" server s{number} 192.0.2.7:{number}\n" for number in range(1, 1001))
    text = f"listen small\n bind *:1\n server s 192.0.2.7:1\nlisten wide\n bind *:2-65535\n bind *:2-65535\n{servers}"
    found = translate([("haproxy.cfg", text)])
    assert "listen wide is not translated completely: pylb.yaml would have more than" in "\n".join(map(str, found.notes))
    assert len(found.text) < MAX_CHARACTERS
    assert [one["name"] for one in yaml.safe_load(found.text)["frontends"]][:1] == ["small"]


@pytest.mark.parametrize("line", ["listen " + "-" * (1 << 20), "listen a" + "-" * (1 << 20) + "a", "listen " + "a" * (1 << 20)])
def test_a_name_of_1_mib_is_read_in_one_pass(line: str) -> None:
    assert len(plain_name(line.partition(" ")[2])) <= 253


def test_a_note_is_not_searched_among_all_others() -> None:
    lines = "listen a\n bind *:1\n server s 192.0.2.7:1\n" + "".join(f" nonsense{number}\n" for number in range(20_000))
    assert len(translate([("haproxy.cfg", lines)]).notes) == 20_000


@pytest.mark.parametrize("line", ["use_backend x if { dst_port 1 }", "tcp-request connection reject if FALSE", "nonsense"])
def test_thousands_of_lines_for_thousands_of_ports_are_not_gone_through(line: str) -> None:
    """They took hours."""
    text = "listen w\n bind 192.0.2.1:1-9000\n server s 192.0.2.7\n" + f" {line}\n" * 20_000
    assert any("it has too many lines for its number of ports" in found for found in differences(text))
