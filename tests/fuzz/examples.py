"""Valid examples for each parser, and the words of its grammar."""

import json
import socket
from typing import Any

from pylb.control.storage.store import _encode
from pylb.core.address import Address, parse_listen
from pylb.core.policy import ProxyProtocol
from pylb.core.proxy_protocol import header, local_header
from pylb.core.table import Server
from pylb.workers.channel import Channel
from pylb.workers.messages import Applied, ConnectEnded, LogLines, Ready, Report, Request, TableChange, encoded
from tests.support.hellos import GREASE, asking_for, hello, records

V4, V6 = Address("192.0.2.7", 50000), Address("2001:db8::7", 50001)
LISTEN = parse_listen("*:443")


def _framed(*messages: Any) -> bytes:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    for message in messages:
        channel.send(*encoded(message))
    data = theirs.recv(1 << 16)
    channel.close()
    theirs.close()
    return data


PROXY = (
    *(header(version, V4, Address("192.0.2.1", 443)) for version in (ProxyProtocol.V1, ProxyProtocol.V2)),
    *(header(version, V6, Address("2001:db8::1", 443)) for version in (ProxyProtocol.V1, ProxyProtocol.V2)),
    header(ProxyProtocol.V2, V4, Address("192.0.2.1", 443), crc32c=True, unique_id=b"id"),
    *(local_header(version) for version in (ProxyProtocol.V1, ProxyProtocol.V2)),
    b"PROXY TCP6 2001:db8::1 ::ffff:127.0.0.1 1 2\r\n",
)
PROXY_WORDS = (
    b"PROXY ",
    b"TCP4 ",
    b"TCP6 ",
    b"UNKNOWN",
    b"\r\n",
    PROXY[1][:12],
    b"\x21\x11",
    b"\x03\x00\x04",
    b"\x05\x00\x02",
    b"fe80::1%1",
)

HELLOS = (
    asking_for("git.example.net", GREASE),
    asking_for("a.example.net", (51, bytes(1200)), sizes=[1, 100]),
    records(hello(without_extensions=True)),
)
HELLO_WORDS = (
    b"\x16\x03\x01",
    b"\x01\x00",
    b"\x00\x00",
    b"\x00\x00\x00",
    b"\x0a\x0a\x00\x00",
    b"\xff\xff",
    b"\x16\x03\x01\x00\x01\x01",
)

_REPORT = Report(0.1, 1, 2, 3, 0, 0, {"EMFILE": 1}, (), 5, 6, 7)
_SAID = (
    Ready("1/3"),
    Applied(7),
    LogLines("a line\n", 1, 0),
    ConnectEnded(LISTEN, Server("one", V4), "refused"),
    TableChange(1, 2, (1,), (LISTEN,)),
    Request(1, "sessions", LISTEN, V6),
    _REPORT,
)
MESSAGES = tuple(bytes([kind]) + body for kind, body in map(encoded, _SAID))
FRAMES = (_framed(_SAID[0]), _framed(*_SAID))
UPGRADE = (
    b'{"say":"ready","protocol":1}',
    b'{"say":"yours","totals":{"calls":{"created":1}}}',
    b'{"say":"count","count":' + encoded(_REPORT)[1] + b"}",
)

_SNAPSHOT = """{"generation":7,"written_at":1700000000.0,"registrations":[
{"order":0,"token":"t","name":"web","instance":"pod-1","legacy_port":0,"address":"192.0.2.7","ttl":60.0,"state":"fresh",
"frontends":[{"port":443,"target_port":30443,"proxy_protocol":"v2","weight":3,"backup":true,
"health":{"http":"/health","expect":"200-399","port":8080}}],
"displaced":[{"listen":"*:443","server":"pod-0","address":"192.0.2.7:1","proxy_protocol":null,"weight":2,"health":"tcp"}]},
{"order":1,"token":"t","name":"mail","instance":"","legacy_port":25,"address":"2001:db8::7","ttl":null,"state":"stale",
"frontends":[{"port":25,"target_port":30025,"proxy_protocol":null,"weight":1,"backup":false,"health":null}],"displaced":[]}],
"leases":[{"token":"t","name":"","instance":"","legacy_port":25,"learned_ttl":300.0,"stale_for":12.5}],
"proven":["192.0.2.7:50000"],"resolved":{"app.example.net":["192.0.2.9"]},
"overrides":[{"listen":"*:443","address":"192.0.2.7:50000","state":"drain","weight":5}]}"""
SNAPSHOT = (_SNAPSHOT.encode(),)
STATE = (b"".join(_encode(json.loads(_SNAPSHOT))), b'{"version":1,"sha256":"","payload":{}}')
HISTORY = (
    b'{"generation":3,"time":1.5,"by":["admin"],"lines":[["opened","*:443","web-443","opened",null]]}\n',
    b'{"generation":4,"time":2,"by":[],"lines":[["moved","*:443","web-443","from x","192.0.2.7:30443"]]}\n',
)
MADE = (b'{"name":"web","secrets":["0123456789abcdefghijklmn"],"ports":["443","8883-8899"],"sources":["192.0.2.0/24"]}',)

CONFIG = (
    b"""webhook: {listen: "127.0.0.1:9000"}
log: {format: json, target: "udp:127.0.0.1:514"}
tokens:
  - {name: web1, secret: 0123456789abcdefghijklmn, ports: [443, "8883-8899"], targets: ["192.0.2.0/24"]}
defaults: {balance: leastconn, timeouts: {connect: 5s, idle: 1h}, health: {check: {http: /health, expect: 200}}}
frontends:
  - {name: a1, listen: "127.0.0.1:8443", servers: ["192.0.2.7:30443", "app.example.net:1"]}
  - {name: b1, listen: "*:443", access: [{deny: "192.0.2.0/24"}], servers: [{address: "[2001:db8::7]:1", weight: 2}]}
""",
    b'frontends:\n  - name: c1\n    listen: "*:444"\n    servers:\n      - 192.0.2.7:30443\n',
    b'{"frontends": [{"name": "d1", "listen": "*:445", "servers": []}]}',
)
YAML_WORDS = (
    b"- ",
    b"  - {",
    b"frontends:\n",
    b"a: &x [*x]\n",
    b"*x",
    b"&x ",
    b"!t ",
    b"|\n",
    b">\n",
    b"? ",
    b"---\n",
    b"22:30",
    b"010",
    b"{a: ",
    b"[",
)

VALUES = tuple(
    bytes([number]) + one
    for number, some in enumerate(
        (
            (b"500ms", b"5s", b"10m", b"1h"),
            (b"*:443", b"[2001:db8::9]:443"),
            (b"192.0.2.7:30443", b"app.example.net:1"),
            (b"192.0.2.7", b"::ffff:192.0.2.7"),
            (b"*",),
            (b"lb.example.net", b"2001:db8::1"),
            (b"192.0.2.0/24", b"2001:db8::/32"),
            (b"443", b"8883-8899"),
            (b"web-1",),
            (b"0123456789abcdefghijklmn",),
            (b"local0",),
            (b"true",),
            (b'"tcp"', b'{"http":"/x"}'),
            (b'{"allow":"192.0.2.0/24"}',),
        )
    )
    for one in some
)
VALUE_WORDS = (b"ms", b"h", b":443", b"192.0.2.", b"/24", b"::", b"[", b"]", b".", b"-")

HAPROXY = (
    b"""global
  maxconn 100
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
frontend web1
  bind *:443,127.0.0.1:8443 accept-proxy
  default_backend pool1
backend pool1
  balance source
  option httpchk GET /health
  default-server inter 2s check
  server one1 192.0.2.7:30443 send-proxy-v2 weight 3
  server two1 app.example.net backup
listen mail1
  bind :25
  option tcp-check
  tcp-check send PING\\r\\n
  tcp-check expect string PONG
  server s1 192.0.2.7:30025
""",
    b"frontend a1\nbind *:1\ndefault_backend p1\nbackend p1\nserver s1 192.0.2.7:1\n",
)
OLD = (
    b"""### >> Used to run mqtt:8443
frontend 8443_frontend
  bind *:8443
  default_backend 8443_backend
backend 8443_backend
  server s1 203.0.113.7:30843 send-proxy
""",
    *HAPROXY[1:],
)
HAPROXY_WORDS = (
    *(
        b"frontend a\n",
        b"backend b\n",
        b"listen c\n",
        b"defaults\n",
        b"bind *:1-300\n",
        b"bind *:443\n",
        b" default_backend b\n",
    ),
    *(
        b"server s 192.0.2.7:1\n",
        b"default-server weight 3\n",
        b"tcp-check send x\n",
        b"# >> Used to run ",
        b":443 ",
        b"'",
        b'"',
        b"\\ ",
    ),
)

NATIVE = (
    b'{"frontends":[{"port":443,"target_port":30443,"proxy_protocol":"v2","weight":3,"backup":true}],"ttl":60}',
    b'{"frontends":[{"port":1,"target_port":2,"health":{"http":"/h","expect":200}}],"address":null,"state":"draining"}',
)
NATIVE_WORDS = (b'"frontends":[', b'{"port":', b'"health":', b'"ttl":', b'"a1":1,', b"[", b"]", b"}", b",", b'"send":"x"')
CHECKS = (
    b'"tcp"',
    b'{"http":"/health","expect":"200-399","host":"a","port":1}',
    b'{"send":"PING","expect":"PONG"}',
    b'{"port":1}',
)
_LEGACY = b'"frontend-port":"8443","backend-port":"30843","action":"add","name":"mqtt","send-proxy":"send-proxy"}'
LEGACY = (
    b'{"dst-ip":"192.0.2.7",' + _LEGACY,
    b'{"dst-ip":"<html lang="en">\n<body>no "address" here</body>\n",' + _LEGACY,
    b'{"dst-ip":"","frontend-port":8443,"backend-port":"","action":"delete","name":""}',
)
LEGACY_WORDS = (b'{"dst-ip":"', b'"frontend-port":"', b'"frontend-port"', b'"name" : "', b'","', b"<", b">", b'"', b" ")
PEERS = (b'{"health":"healthy","sentence":"all 3 frontends healthy","host":"lb-2","version":"0.2.0","sessions":17}',)
ACTIVE = (b'{"status":"standby","seconds":1800}', b'{"status":"active"}')
PEER_WORDS = (b'"health":"', b'"sentence":', b'"sessions":', b"1e9", b"{", b"}", b"[", b",", b"\\u001b")
REQUESTS = (
    b"/v1/registrations/web/pod-1\nauthorization:Bearer secret\nx-forwarded-for: 192.0.2.9, 192.0.2.1",
    b"/v1/sessions?ended=1&client=192.0.2.0/24&code=SC,sC&since=600&limit=5",
)
REQUEST_WORDS = (
    b"/v1/registrations/",
    b"x-forwarded-for:",
    b"192.0.2.1,",
    b"?",
    b"&limit=",
    b"&since=",
    b"&client=",
    b"%2f",
    b"%ff",
    b"/",
)
TARGETS = (b"stdout", b"file:/var/log/x", b"udp:[::1]:514", b"unix:/dev/log")
