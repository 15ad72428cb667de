"""What a user reads who got it wrong: every mistake at once, each with its line, column and what to write instead.

After a wanted change of the texts: `PYLB_GOLDEN=write pytest tests/config/test_mistakes.py`, then read the diff.
"""

import os
from pathlib import Path

import pytest

from pylb.config import ConfigErrors, parse
from pylb.config.checks import findings
from pylb.config.entries import readable_parts
from pylb.config.yamlplace import read
from tests.fuzz.measures import events

GOLDEN = Path(__file__).parent / "golden"


def mistakes(text: str, filename: str = "pylb.yaml") -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        parse(text, filename)
    return [str(problem) for problem in caught.value.problems]


def test_a_file_full_of_mistakes_gets_all_of_them_in_the_order_of_its_lines() -> None:
    found = mistakes((GOLDEN / "mistakes.yaml").read_text())
    expected = GOLDEN / "mistakes.txt"
    if os.environ.get("PYLB_GOLDEN") == "write":
        expected.write_text("\n".join(found) + "\n")
    assert found == expected.read_text().splitlines()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('frontend:\n  - {name: a, listen: "*:1"}', "pylb.yaml:1:1: error: unknown key 'frontend' (did you mean 'frontends'?)"),
        ("xyzzy: 1", "pylb.yaml:1:1: error: unknown key 'xyzzy' (known here: webhook, advertise, public_addresses, "),
        (
            "log:\n  level: info\nlog:\n  level: warn\n",
            "pylb.yaml:3:1: error: duplicate key 'log', first written at pylb.yaml:1:1 (remove one of them)",
        ),
        ("- a\n- b", "pylb.yaml:1:1: error: the file is not a mapping of keys to values (key: value)"),
        ("log: info", "pylb.yaml:1:6: error: 'log' takes keys and values, not 'info' (see docs/config.md)"),
        (
            "frontends: {a: 1}",
            "pylb.yaml:1:12: error: 'frontends' is a list (begin each entry with '- ', or write frontends: [...])",
        ),
        ("log: {level: warn}", "pylb.yaml:1:14: error: 'warn' is not a value of 'level' (did you mean 'warning'?)"),
        (
            'frontends: [{name: a, listen: "*:1", routes: [{server_names: [b.net]}, {server_names: [c.net, b.net]}]}]',
            "pylb.yaml:1:95: error: b.net has two routes in frontend 'a' (remove one of them)",
        ),
        (
            'frontends: [{name: a, listen: "*:1-9", routes: [{server_names: [b.net]}]}]',
            "pylb.yaml:1:48: error: *:1-9 is a range of ports, which has no routes (a frontend for each port)",
        ),
        (
            'frontends: [{name: a, listen: "*:1", routes: [{server_names: [b.net, 192.0.2.7]}]}]',
            "pylb.yaml:1:70: error: '192.0.2.7' is an address: a client that connects to one sends no server name",
        ),
        ("admin: {listen: ~}", "pylb.yaml:1:17: error: 'listen' has no value (write one, or remove the line)"),
        (
            "webhook: []",
            (
                "pylb.yaml:1:10: error: pylb needs at least one webhook listener, or frontends that need none "
                '(webhook: {listen: "127.0.0.1:9000"})'
            ),
        ),
        ("tokens: [{name: a, ports: []}]", "pylb.yaml:1:27: error: token 'a' may open no port (ports: [443])"),
        ("leases: {min_ttl: 2h, max_ttl: 1h}", "pylb.yaml:1:19: error: min_ttl is longer than max_ttl (1h or less)"),
        ("metrics: {allow: [192.0.2.1]}", 'error: metrics.allow without metrics.listen has no effect (listen: "*:9404")'),
        (
            'frontends: [{name: a, listen: "*:8404"}]',
            "error: frontend 'a' cannot listen on *:8404: pylb's admin does on 127.0.0.1:8404",
        ),
        (
            "admin: {peers: [{name: b, url: 'javascript:alert(1)'}]}",
            "1:32: error: 'javascript:alert(1)' is not an http:// or https:// URL (as in \"http://192.0.2.7:8404\" or",
        ),
        ("admin: {peers: {name: b, url: 'http://me:hunter2@b'}}", "a URL with a user or password would show them to whoever"),
        ("admin: {peers: [{name: b, url: 'http://b/?x=1'}]}", "'http://b/?x=1' has more than a host, a port and a path"),
        ("admin: {peers: [{name: b, url: 'http://b/ c'}]}", "'http://b/ c' has more than a host, a port and a path"),
        ("admin: {peers: [{name: b, url: 'http://b:65536'}]}", "'http://b:65536' is not a URL"),
        ("admin: {peers: [{name: b, url: 'http://'}]}", "'' is not a host name"),
        ("admin: {peers: [{name: b, url: 'http://b', page: 'data:text/html,x'}]}", "is not an http:// or https:// URL"),
        ("admin: {peers: [{name: b, url: 'http://b'}, {name: b, url: 'http://c'}]}", "two peers have the name 'b'"),
        ("admin: {peers: [{name: b, url: 'http://b'}, {name: c, url: 'http://b/'}]}", "two peers have the url 'http://b'"),
        (
            f"admin: {{peers: [{', '.join(f'{{name: b{one}, url: http://b{one}}}' for one in range(17))}]}}",
            "error: 17 peers are more than 16",
        ),
        ('webhook: {listen: "0.0.0.0:1", insecure: yes, tls: self-signed}', "error: insecure: true contradicts tls"),
        (
            'webhook: {listen: "192.0.2.1:1"}',
            "error: 192.0.2.1:1 is reachable from outside and has no tls (tls: self-signed, or",
        ),
        (
            'webhook: {listen: "127.0.0.1:1", tls: {certificate: a}}',
            "a mapping is not a TLS setting (self-signed, or {certificate: ",
        ),
        (
            "workers: 65",
            "pylb.yaml:1:10: error: 65 is not a number of workers (0-64, or auto)",
        ),
        (
            "defaults: {balance: leastcon}",
            "pylb.yaml:1:21: error: 'leastcon' is not a way to balance (did you mean leastconn?)",
        ),
        ("defaults: {balance: xyz}", "'xyz' is not a way to balance (leastconn, roundrobin, random, source, first)"),
        ("defaults: {access: [{allow: 192.0.2.1/24}]}", "error: '192.0.2.1/24' is not a network"),
        ("defaults: {access: {permit: 192.0.2.0/24}}", "a mapping is not an access rule (as in {allow: 192.0.2.0/24}"),
        ("defaults: {access: [192.0.2.0/24]}", "'192.0.2.0/24' is not an access rule (as in {allow: 192.0.2.0/24}"),
        ("frontends: [{name: a, listen: '*:1', servers: ['nodes.example.net']}]", "'nodes.example.net' is not HOST:PORT"),
        ("frontends: [{name: a, listen: '*:1', servers: ['[2001:db8::7]']}]", "'[2001:db8::7]' has no port: [2001:db8::7]:443"),
        ("frontends: [{name: a, listen: '*:1', servers: ['http://a.example:80/']}]", "'http://a.example:80/' is a URL"),
        ("frontends: [{name: a, listen: '*:1', servers: ['1.2.3:80']}]", "'1.2.3' is not an IP address"),
        (
            "frontends: [{name: a, listen: '*:1', servers: ['b\u00fc.example:80']}]",
            "is not a DNS host name (write its xn-- form)",
        ),
        (
            "frontends: [{name: a, listen: '*:1', servers: ['b.example:80', 'B.example.:80']}]",
            "b.example:80 is in frontend 'a' twice",
        ),
        ("defaults: {resolve_interval: 500ms}", "500ms is too short an interval (at least 1s)"),
        ("defaults: {limits: {per_source: -1}}", "-1 is out of range (0 to 10000000)"),
        ("defaults: {limits: {ipv6_prefix: 0}}", "0 is out of range (1 to 128)"),
        ("defaults: {source_addresses: [lb.example.net]}", "'lb.example.net' is not an IP address"),
        ("defaults: {proxy_protocol: {accept_from: everybody}}", "'everybody' is not a network"),
        ("defaults: {health: {check: http}}", "'http' is not a check (tcp, {http: /health}, {send: TEXT, expect: TEXT}"),
        ("defaults: {health: {check: {}}}", "a mapping is not a check"),
        ("defaults: {health: {check: {htp: /up}}}", "'htp' is not a key of a check (tcp, {http: /health}"),
        ("defaults: {health: {check: {http: up}}}", "'up' is not a path (as in /health"),
        ("defaults: {health: {check: {http: /a b}}}", "'/a b' is not a path"),
        ("defaults: {health: {check: {http: /up, host: a b}}}", "'a b' is not a host name"),
        ("defaults: {health: {check: {http: /up, send: x}}}", "a check is http or send, not both"),
        ("defaults: {health: {check: {http: /up, expect: 99}}}", "99 is not an HTTP status"),
        ("defaults: {health: {check: {http: /up, expect: 300-200}}}", "'300-200' is not an HTTP status"),
        ("defaults: {health: {check: {http: /up, port: 0}}}", "0 is not a port (1 to 65535)"),
        ("defaults: {health: {check: {send: ''}}}", "a check that sends nothing and expects nothing (tcp)"),
        ("defaults: {health: {check: {send: x, host: y}}}", "host without http"),
        ("defaults: {on_down: closed}", "'closed' is not a value of 'on_down' (did you mean 'close'?)"),
        ("webhook: {listen: '127.0.0.1:1', limits: {rate: 0}}", "1:49: error: 0 is out of range (1 to 1000000)"),
        (
            "log: {target: stderr}",
            "1:15: error: 'stderr' is not a target for the log (stdout, file:/var/log/pylb/sessions.log, udp:192.0.2.1:514, or",
        ),
        ("log: {target: 'udp:192.0.2.1'}", "1:15: error: 'udp:192.0.2.1' is not a target for the log"),
        ("log: {target: 'udp:192.0.2.1:0'}", "1:15: error: '0' is not a port"),
        ("log: {target: 'udp:http//x:514'}", "1:15: error: 'http//x' is not a host name"),
        ("log: {target: 'file:~/x'}", "1:15: error: '~/x' is not a usable path (write it in full; ~ is not expanded)"),
        ("log: {sample: 0}", "1:15: error: 0 is out of range (1 to 1000000)"),
        ("log: {sample: 0.1}", "1:15: error: 0.1 is not a whole number (1 to 1000000)"),
        ("log: {dontlognull: yes please}", "'yes please' is not true or false"),
        ("log: {facility: local8}", "1:17: error: 'local8' is not a syslog facility (did you mean local"),
        ("log: {tag: 'a b'}", "1:12: error: 'a b' is not a name"),
        ("defaults: {health: {check: {htpp: /up}}}", "each may have a port; did you mean 'http'?)"),
        ("log: {format: logfm}", "1:15: error: 'logfm' is not a value of 'format' (did you mean 'logfmt'?)"),
    ],
)
def test_each_mistake_says_where_it_is_and_what_to_write(text: str, message: str) -> None:
    assert any(message in line for line in mistakes(text)), mistakes(text)


def test_of_thousands_the_first_are_printed_and_a_remedy_with_the_first_of_them() -> None:
    frontends = "".join(f'  - {{name: "a{number}", listen: "*:{number + 1}", xyzzy: 1}}\n' for number in range(3000))
    with pytest.raises(ConfigErrors) as caught:
        parse(f"frontends:\n{frontends}", "pylb.yaml")
    lines = str(caught.value).splitlines()
    assert len(caught.value.problems) == 3000
    assert len(lines) == 21
    assert "unknown key 'xyzzy' (known here: " in lines[0]
    assert lines[1] == "pylb.yaml:3:33: error: unknown key 'xyzzy'"
    assert lines[-1] == "pylb.yaml: and 2,980 more (pylb check --all)"


def test_tokens_without_a_webhook_are_worth_a_warning() -> None:
    text = 'webhook: []\nfrontends: [{name: a, listen: "*:443", servers: ["192.0.2.1:1"]}]\n'
    token = "tokens: [{name: t, secret_file: /run/t, ports: [443]}]\n"
    said = 'pylb.yaml:3:9: warning: without a webhook nobody can call with these tokens (webhook: {listen: "127.0.0.1:9000"})'
    assert [str(one) for one in parse(text + token, "pylb.yaml").all_warnings] == [said]
    assert not parse(text, "pylb.yaml").all_warnings


def test_warnings_are_as_many() -> None:
    server = '{address: "192.0.2.1:30443", health: {check: {http: /up}}}'
    frontends = "".join(f'  - {{name: "a{number}", listen: "*:{number + 1}", servers: [{server}]}}\n' for number in range(100))
    config = parse(f"frontends:\n{frontends}", "pylb.yaml")
    assert len(config.all_warnings) == 100
    assert len(config.warnings) == 21
    assert config.warnings[-1] == "pylb.yaml: and 80 more (pylb check --all)"
    assert sum("externalTrafficPolicy: Local, or a port" in line for line in config.warnings) == 1


@pytest.mark.parametrize(
    ("listen", "other", "clashes"),
    [
        ("*:443", "192.0.2.1:443", True),
        ("0.0.0.0:443", "192.0.2.1:443", True),
        ("[::]:443", "[2001:db8::1]:443", True),
        ("[::]:443", "192.0.2.1:443", False),
        ("192.0.2.1:443", "192.0.2.2:443", False),
        ("*:443", "*:444", False),
        ("*:443", "*:443", True),
        ("192.0.2.1:443", "*:443", True),
        ("192.0.2.1:443", "0.0.0.0:443", True),
        ("192.0.2.1:443", "[::]:443", False),
        ("0.0.0.0:443", "[::]:443", False),
        ("*:443", "[::]:443", True),
    ],
)
def test_two_frontends_clash_where_the_kernel_would_refuse_them(listen: str, other: str, clashes: bool) -> None:
    text = f'frontends:\n  - {{name: a, listen: "{listen}"}}\n  - {{name: b, listen: "{other}"}}\n'
    if clashes:
        assert mistakes(text) == [
            f"pylb.yaml:3:23: error: frontend 'b' cannot listen on {other}: frontend 'a' does on {listen} (see pylb.yaml:2:23)"
        ]
    else:
        assert len(parse(text, "pylb.yaml").frontends) == 2


def test_the_first_of_those_it_clashes_with_is_named() -> None:
    listens = ["192.0.2.1:443", "[2001:db8::1]:443", "192.0.2.2:443", "0.0.0.0:443", "192.0.2.2:443", "*:443"]
    text = "frontends:\n" + "".join(f'  - {{name: f{number}, listen: "{one}"}}\n' for number, one in enumerate(listens))
    found = [one.partition("error: ")[2].partition(" (")[0] for one in mistakes(text)]
    assert found == [
        "frontend 'f3' cannot listen on 0.0.0.0:443: frontend 'f0' does on 192.0.2.1:443",
        "frontend 'f4' cannot listen on 192.0.2.2:443: frontend 'f2' does on 192.0.2.2:443",
        "frontend 'f5' cannot listen on *:443: frontend 'f0' does on 192.0.2.1:443",
    ]


def test_each_address_is_looked_up_among_those_of_its_port() -> None:
    """A file of 1 MiB has room for 15,000 of them: each with each were a hundred million."""

    def work(many: int) -> int:
        entries = (
            f'{{name: a{n}, listen: "10.0.{n // 250}.{n % 250 + 1}:443", servers: ["10.1.0.1:443"]}}' for n in range(many)
        )
        document = read(f"frontends: [{', '.join(entries)}]", "pylb.yaml")
        parts = readable_parts(document, Path())
        return events(list, findings(parts))

    assert work(400) <= 2.6 * work(200)


@pytest.mark.parametrize("server", ["127.0.0.1:443", "[::1]:443", "203.0.113.9:443", "192.0.2.1:444"])
def test_a_static_server_that_is_pylb_itself_is_a_loop(server: str) -> None:
    text = (
        f'public_addresses: [203.0.113.9]\nfrontends:\n  - {{name: a, listen: "*:443", servers: ["{server}"]}}\n'
        '  - {name: b, listen: "192.0.2.1:444"}\n'
    )
    assert len(mistakes(text)) == 1
    assert "of pylb itself: a loop" in mistakes(text)[0]


def test_no_message_shows_a_secret() -> None:
    secret = "Tr0ub4dor"
    for written in (
        secret,
        f"!{secret} x",
        f"*{secret}",
        f"!{secret}!x y",
        f"[{secret}]",
        f'"{secret}\\n"',
        f"{{{secret}: 1}}",
        "01234567",
    ):
        text = f"tokens: [{{name: a, ports: [1], secret: {written}}}, {{name: b, ports: [1], secret: {written}}}]"
        assert secret not in "".join(mistakes(text))
        assert "01234567" not in "".join(mistakes(text))


def test_control_characters_of_the_file_never_reach_the_terminal() -> None:
    for line in mistakes('"\\e[31m": 1\nadvertise: "\\e[2J"\nlog: {format: "\\x9b"}\n'):
        assert line.isprintable()
