"""Attacks that held when they were tried by hand: how a request is framed, who a page may be for, where a call may aim."""

import json
from pathlib import Path

import pytest

from tests.contract.instance import Pylb, raw, secret, token, wants
from tests.support.ports import free_port
from tests.support.processes import Processes

CLOSED = "Connection: close"
# Where the request ends for us, and for a proxy in front, may differ: each is refused, and nothing behind it is a request.
FRAMES = (
    ("Transfer-Encoding: chunked", "Content-Length: 5"),
    ("Content-Length: 5", "Transfer-Encoding: chunked"),
    ("Content-Length: 5", "Transfer-Encoding: xchunked"),
    ("Content-Length: 5", "Transfer-Encoding: chunked, identity"),
    ("Content-Length: 5", "Transfer-Encoding : chunked"),
    ("Content-Length: 5", "Transfer-Encoding:\tchunked"),
    ("Content-Length: 5", "Transfer-Encoding: \x0bchunked"),
    ("Content-Length: 5", "Transfer-Encoding:\r\n chunked"),
    ("Content-Length: 5", "X: y\r\n Transfer-Encoding: chunked"),
    ("Content-Length: 5\rTransfer-Encoding: chunked",),
    ("Content-Length: 5", "Transfer-Encoding: chunked\x00"),
    ("Content-Length: 5", 'Transfer-Encoding: "chunked"'),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    *(
        (f"Content-Length: {length}",)
        for length in ("+5", "-5", "0x5", "5, 5", "5_0", "5.0", "1e1", "\xb2", "9" * 30, "", "5 5")
    ),
    ("Content-Length: 5", "Content-Length: 6"),
    ("Content-Length : 5",),
    ("X\x00Y: 1", "Content-Length: 5"),
    (": x", "Content-Length: 5"),
    ("Content-Length 5",),
)
LEADS = (b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"hello")


@pytest.mark.parametrize("headers", FRAMES, ids=[repr(" | ".join(headers))[1:-1] for headers in FRAMES])
def test_no_framing_hides_a_request_in_the_body_of_another(pylb: Pylb, headers: tuple[str, ...]) -> None:
    body = json.dumps(wants((free_port(), 30001), address="127.0.0.9")).encode()
    to = f"Host: x\r\nAuthorization: Bearer {secret('app')}"
    hidden = (
        f"PUT /v1/registrations/hidden/one HTTP/1.1\r\n{to}\r\n{CLOSED}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    outer = "\r\n".join(["PUT /v1/registrations/app/one HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1")
    for lead in LEADS:
        answer = raw(pylb.webhook, outer + lead + hidden)
        assert answer.count(b"HTTP/1.") == 1
        assert answer.split(b" ", 2)[1] in {b"400", b"411", b"413"}
    assert not any(name.startswith("hidden/") for name in pylb.registrations())


STRANGE_HOSTS = (
    *("evil", "localhost.evil", "127.0.0.1.evil", "127.1", "0x7f.1", "2130706433", "localhost\\@evil", "evil#localhost"),
    *("evil/localhost", "", "localhost,evil", "0.0.0.0", "[::]", "127.0.0.1@evil", "[::1", "[::1%25lo]", "::1", "\xff"),
)


@pytest.mark.parametrize("host", STRANGE_HOSTS)
def test_no_spelling_of_a_host_or_origin_makes_a_stranger_this_machine(pylb: Pylb, host: str) -> None:
    for headers in (f"Host: {host}", f"Host: localhost\r\nOrigin: http://{host}"):
        answer = raw(pylb.admin, f"GET /v1/table HTTP/1.1\r\n{headers}\r\n{CLOSED}\r\n\r\n".encode("latin-1"))
        assert answer.split(b" ", 2)[1] == b"403"


# What Python, C or a resolver may take for loopback, or for an IPv4 address behind an IPv6 one.
FORMS = (
    *("0", "1", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.01", "127.0.0.1 ", "127.0.0.1\n", "127.0.0.1\x00"),
    *("127。0。0。1", "١٢٧.0.0.1", "localhost", "[::1]", "::0001", "0:0:0:0:0:0:0:1", "::1%lo", "::ffff:7f00:1"),
    *("::ffff:0:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1:ffff:ffff:ffff:7f00:1", "2002:7f00:1::1"),
    *("2001:0:7f00:1::", "FE80::1", "febf::1", "::ffff:a9fe:a9fe", "FD00:EC2:0:0::254", "1.2.3.4/32", "1.2.3.4:80", "a" * 3000),
)


@pytest.fixture(scope="module")
def wide(module_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Pylb:
    folder: Path = tmp_path_factory.mktemp("wide")
    return Pylb(module_processes, folder, tokens=[token("app", targets=["0.0.0.0/0", "::/0"])]).start()


@pytest.mark.parametrize("address", FORMS, ids=[ascii(form[:24])[1:-1] for form in FORMS])
def test_no_form_of_an_address_leads_to_loopback_or_around_the_refused_classes(wide: Pylb, address: str) -> None:
    """Nothing is dialled. Where the legacy route falls back to the caller's own address, that is loopback here, and refused."""
    answer = wide.put("app/one", wants((free_port(), 30001), address=address))
    assert answer.status == 422
    said = {"dst-ip": address, "frontend-port": str(free_port()), "backend-port": "30001", "action": "add", "name": "app"}
    assert wide.hook(said, secret=secret("app")).status == 422
