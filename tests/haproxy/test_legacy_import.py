"""The old webhook's files as legacy registrations: the shape the script wrote, and whatever may have been pasted into it."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.address import Address
from pylb.core.legacy import LegacyCall, parse_legacy
from pylb.core.policy import ProxyProtocol
from pylb.haproxy.legacy_import import MAX_BYTES, MAX_NOTES, ImportResult, LegacyServer, parse_haproxy, read_files

LONG = 1 << 20


def stanza(name: str, port: int, server: str) -> str:
    """As the script wrote it."""
    return (
        f"### >> Used to run {name}:{port}\n"
        f"frontend {port}_frontend\n  bind *:{port}\n  mode tcp\n  default_backend {port}_backend\n\n"
        f"backend {port}_backend\n  mode tcp\n  balance roundrobin\n"
        "  stick-table type ip size 200k expire 30m\n  stick on src\n"
        f"  server s1 {server}\n"
        f"### << Used to run {name}:{port}\n"
    )


def parse(text: str) -> ImportResult:
    return parse_haproxy([("a.inc", text)])


def add(port: int, target_port: int, name: str, ip: str, send: ProxyProtocol = ProxyProtocol.NONE) -> LegacyServer:
    return LegacyServer(port, Address(ip, target_port), name, send)


def test_what_the_script_wrote_is_taken_over_without_a_note() -> None:
    assert parse(stanza("mqtt", 8443, "203.0.113.7:30843")) == ImportResult((add(8443, 30843, "mqtt", "203.0.113.7"),), ())


@pytest.mark.parametrize(
    ("keyword", "send"), [("send-proxy", ProxyProtocol.V1), ("send-proxy-v2", ProxyProtocol.V2), ("", ProxyProtocol.NONE)]
)
def test_the_proxy_keyword_of_the_mail_ports_is_kept(keyword: str, send: ProxyProtocol) -> None:
    assert parse(stanza("mail", 25, f"203.0.113.7:30025 {keyword}")).items == (add(25, 30025, "mail", "203.0.113.7", send),)


def test_an_item_prints_what_goes_where() -> None:
    (item,) = parse(stanza("mail", 25, "[2001:db8::7]:30025 send-proxy-v2")).items
    assert str(item) == "25 -> [2001:db8::7]:30025 (mail, send-proxy-v2)"


def test_files_of_a_directory_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    for port in (8443, 25, 443):
        (tmp_path / f"{port}.inc").write_text(stanza(f"app{port}", port, f"203.0.113.7:{30000 + port % 2768}"))
    (tmp_path / "global").write_text("global\n  daemon\n")
    (tmp_path / "pre_validate.cfg").write_text("would be everything twice")
    found = read_files([tmp_path])
    assert [item.port for item in found.items] == [25, 443, 8443]
    assert found.notes == ()


def test_a_whole_haproxy_cfg_works_too_with_listen_stanzas_and_several_binds() -> None:
    text = """
global
    log /dev/log local0
defaults
    mode tcp
    timeout connect 5000
listen web
    bind :80,:443
    server s1 [2001:db8::7]:30443 check inter 2s weight 5 cookie c
listen bare
    bind *:5222
    server s1 203.0.113.7
"""
    found = parse(text)
    assert found.items == (
        add(80, 30443, "web", "2001:db8::7"),
        add(443, 30443, "web", "2001:db8::7"),
        add(5222, 5222, "bare", "203.0.113.7"),
    )
    assert [str(note) for note in found.notes] == [
        "a.inc:9: server: the option cookie is not taken over",
        "a.inc:9: server: the option c is not taken over",
    ]


def test_a_frontend_may_use_a_backend_of_another_file() -> None:
    front = "frontend 443_frontend\n bind *:443\n default_backend b\n"
    back = "backend b\n server s1 203.0.113.7:30443\n"
    assert parse_haproxy([("1.inc", front), ("2.inc", back)]).items == (add(443, 30443, "legacy", "203.0.113.7"),)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (stanza("x", 443, "node1.example.net:30443"), "a.inc:12: server: 'node1.example.net' is not an IP address"),
        (stanza("x", 443, ":30443"), "a.inc:12: server: '' is not an IP address"),
        (stanza("x", 70000, "203.0.113.7:30443"), "a.inc:3: bind: '70000' is not a port (1-65535)"),
        (stanza("x", 443, "203.0.113.7:30443 ssl"), "a.inc:12: server with ssl: not taken over"),
        (stanza("x", 443, "203.0.113.7:30443 'open"), "a.inc:12: not understood: no closing quotation"),
        ("frontend f\n bind *:443\n default_backend nowhere\n", "a.inc:1: frontend f has no backend 'nowhere'"),
        ("frontend f\n bind *:443\n", "a.inc:1: frontend f has no backend ''"),
        ("listen f\n server s 203.0.113.7:1\n", "a.inc:1: listen f listens nowhere"),
        (
            "listen f\n bind *:443\n mode http\n server s 203.0.113.7:1\n",
            "a.inc:1: listen f is left out: mode http: pylb forwards TCP",
        ),
        (
            "listen f\n bind *:443 ssl crt x.pem\n server s 203.0.113.7:1\n",
            "a.inc:1: listen f is left out: bind with ssl: pylb passes TLS through to the server",
        ),
        ("<!DOCTYPE html>", "a.inc:1: not understood: <!DOCTYPE html>"),
    ],
)
def test_what_cannot_be_taken_over_is_named_with_file_and_line(text: str, note: str) -> None:
    found = parse(text)
    assert found.items == ()
    assert note in [str(each) for each in found.notes]


def test_a_partly_understood_stanza_is_taken_over_and_the_rest_is_noted() -> None:
    text = (
        "frontend f\n bind 203.0.113.9:443\n acl x src 192.0.2.0/24\n default_backend b\n"
        "backend b\n server s1 203.0.113.7:30443\n server s2 203.0.113.8:30443\n"
        "listen again\n bind *:443\n server s1 203.0.113.7:1\n"
    )
    found = parse(text)
    assert found.items == (add(443, 30443, "f", "203.0.113.7"),)
    assert [str(note) for note in found.notes] == [
        "a.inc:2: bind 203.0.113.9: registered ports listen on `defaults.bind`",
        "a.inc:3: not taken over: acl x src 192.0.2.0/24",
        "a.inc:7: only one server per port: 203.0.113.8:30443 is left out",
        "a.inc:9: port 443 was already seen: the first one counts",
    ]


def test_a_pasted_html_page_harms_no_other_file_and_floods_no_terminal() -> None:
    page = "<!DOCTYPE html>\n" + "<p class=\x1b[31m>\n" * 500
    found = parse_haproxy([("443.inc", stanza("web", 443, page)), ("8443.inc", stanza("mqtt", 8443, "203.0.113.7:30843"))])
    assert found.items == (add(8443, 30843, "mqtt", "203.0.113.7"),)
    assert len(found.notes) == MAX_NOTES + 1
    assert all("\x1b" not in str(note) for note in found.notes)
    assert "more lines" in found.notes[-1].message


def test_what_cannot_be_read_is_noted_and_the_rest_imported(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "1.inc")
    end = stanza("late", 9443, "203.0.113.7:30943")
    (tmp_path / "2.inc").write_text(end.rjust(MAX_BYTES + 1, "\n"))  # to read the beginning only would lose what follows
    (tmp_path / "8443.inc").write_text(stanza("mqtt", 8443, "203.0.113.7:30843"))
    found = read_files([tmp_path / "missing", tmp_path])
    assert [note.message for note in found.notes] == [
        "cannot be read: No such file or directory",
        "cannot be read: not a regular file",
        f"cannot be read: larger than {MAX_BYTES} bytes",
    ]
    assert [item.port for item in found.items] == [8443]


_KEYWORDS = ("frontend", "backend", "listen", "global", "bind", "server", "default_backend", "mode", "tcp", "ssl", "check")
_VALUES = (
    "s1",
    "f",
    "*:443",
    ":80",
    "203.0.113.7:80",
    "[::1]:5",
    "203.0.113.7",
    "send-proxy",
    "inter",
    "#",
    "'",
    '"',
    "\\",
    "\r",
)
_WORDS = st.sampled_from((*_KEYWORDS, *_VALUES, "\0", "### >> Used to run x:443", "### >> Used to run a:99999"))


@given(st.lists(st.lists(_WORDS, max_size=6).map(" ".join), max_size=12).map("\n".join) | st.text(max_size=300))
def test_no_text_makes_it_raise_and_every_note_has_a_line_of_the_file(text: str) -> None:
    found = parse(text)
    assert all(0 <= note.line <= text.count("\n") + 1 for note in found.notes)
    assert len({item.port for item in found.items}) == len(found.items)
    for item in found.items:
        call = parse_legacy(json.dumps(item.as_call()).encode())
        assert call == LegacyCall("add", item.port, item.address.port, item.name, item.send_proxy, item.address.ip)


@pytest.mark.parametrize(
    "line",
    [
        "server " + "a" * LONG,
        "server '" + "a" * LONG,
        'server "' + "\\" * LONG,
        "# >> Used to run " * (LONG // 17) + "x",
        "#" + ">> Used to run :1" * (LONG // 17),
    ],
    ids=["a word", "an open quote", "backslashes", "comments of the script", "and ports in them"],
)
def test_a_line_of_1_mib_is_read_in_one_pass(line: str) -> None:
    """Each took minutes to hours."""
    assert parse(stanza("x", 443, "203.0.113.7:30443") + "\n" + line).items


def test_servers_that_are_left_out_are_noted_once_however_many_frontends_use_them() -> None:
    frontends = "".join(f"frontend f{port}\n bind *:{port}\n default_backend b\n" for port in range(1000, 1010))
    found = parse(frontends + "backend b\n server a 203.0.113.7:1\n server b 203.0.113.8:1\n")
    assert [str(note) for note in found.notes] == ["a.inc:33: only one server per port: 203.0.113.8:1 is left out"]
    assert len(found.items) == 10


def test_each_port_of_a_frontend_gets_a_short_copy_of_its_name() -> None:
    binds = "".join(f" bind *:{port}\n" for port in range(1, 2001))
    found = parse(f"listen {'n' * LONG}\n{binds} server s 203.0.113.7:1\n")
    assert {item.name for item in found.items} == {"n" * 63}
