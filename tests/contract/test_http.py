"""What the webhook says to requests that are no honest calls: sizes, framings, deadlines."""

import json
import socket

import pytest

from tests.contract.instance import Pylb, call, raw, secret, split, wants
from tests.support.ports import free_port

PATH = "/v1/registrations/app/one"
BEARER = {"Authorization": f"Bearer {secret('app')}"}
LEGACY = {"X-Funkypenguin-Token": secret("app")}


def request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join((f"{line} HTTP/1.1", "Host: lb.example.net", *headers, "", "")).encode() + body


BEARER_LINE = f"Authorization: Bearer {secret('app')}"


def test_a_body_of_4_kib_is_read_and_one_byte_more_is_413(pylb: Pylb) -> None:
    body = json.dumps(wants((free_port(), 30001))).encode()
    assert pylb.put("fits/one", body + b" " * (4096 - len(body))).status == 201
    answer = pylb.put("fits/two", body + b" " * (4097 - len(body)))
    assert (answer.status, answer.error) == (413, "body_too_large")
    assert "fits/two" not in pylb.registrations()


def test_a_huge_announced_body_is_413_before_it_is_sent(pylb: Pylb) -> None:
    said = raw(pylb.webhook, request(f"PUT {PATH}", BEARER_LINE, "Content-Length: 1000000000"))
    status, headers, _ = split(said)
    assert status == 413
    assert headers["connection"].lower() == "close"


def test_an_expect_100_continue_of_a_huge_body_is_413_at_once(pylb: Pylb) -> None:
    said = raw(pylb.webhook, request(f"PUT {PATH}", BEARER_LINE, "Content-Length: 1000000000", "Expect: 100-continue"))
    assert split(said)[0] == 413


def test_a_chunked_body_is_411(pylb: Pylb) -> None:
    body = b"2\r\n{}\r\n0\r\n\r\n"
    status, _, rest = split(
        raw(pylb.webhook, request(f"PUT {PATH}", BEARER_LINE, "Transfer-Encoding: chunked", "Connection: close", body=body))
    )
    assert status == 411
    assert json.loads(rest)["error"] == "length_required"


def test_a_body_of_no_stated_length_is_no_body(pylb: Pylb) -> None:
    assert split(raw(pylb.webhook, request(f"PUT {PATH}", BEARER_LINE, "Connection: close")))[0] in {400, 411}


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_a_compressed_body_is_415(pylb: Pylb, coding: str) -> None:
    answer = call(pylb.webhook, "PUT", PATH, b"\x1f\x8b", BEARER | {"Content-Encoding": coding})
    assert (answer.status, answer.error) == (415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "", None])
def test_the_content_type_of_json_is_taken_and_may_be_left_out(pylb: Pylb, kind: str | None) -> None:
    headers = BEARER | ({} if kind is None else {"Content-Type": kind})
    answer = call(pylb.webhook, "PUT", "/v1/registrations/typed/one", json.dumps(wants((free_port(), 30001))).encode(), headers)
    assert answer.status in {200, 201}


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Length: 2", "Content-Length: 3"),
        ("Content-Length: -2",),
        ("Content-Length: +2",),
        ("Content-Length: two",),
        ("Content-Length: 2", "Transfer-Encoding: chunked"),
    ],
    ids=str,
)
def test_an_ambiguous_length_is_4xx_and_the_connection_ends(pylb: Pylb, headers: tuple[str, ...]) -> None:
    status = split(raw(pylb.webhook, request(f"PUT {PATH}", BEARER_LINE, "Connection: close", *headers, body=b"{}")))[0]
    assert status in {400, 411}


@pytest.mark.parametrize(
    "said", [b"\r\n\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"A" * 20000]
)
def test_what_is_no_http_is_ended_and_harms_nobody(pylb: Pylb, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", pylb.webhook), 10) as sock:
        sock.sendall(said)
        sock.shutdown(socket.SHUT_WR)
        try:
            while sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
    assert call(pylb.webhook, "GET", "/v1/whoami").status == 200


def test_a_slow_caller_is_cut_within_its_deadline_of_5_seconds_while_honest_ones_are_served(pylb: Pylb) -> None:
    beginnings = [b"PUT /v1/reg", request(f"PUT {PATH}", BEARER_LINE, "Content-Length: 20", body=b"{"), b""]
    slow = [socket.create_connection(("127.0.0.1", pylb.webhook), 8) for _ in beginnings]
    try:
        for sock, said in zip(slow, beginnings, strict=True):
            sock.sendall(said)
        assert call(pylb.webhook, "GET", "/v1/whoami").status == 200
        ends = [sock.recv(65536) for sock in slow]  # each within the 8 s of its socket
        assert all(split(end)[0] == 408 for end in ends if end)
        assert b"request_timeout" in ends[1]
    finally:
        for sock in slow:
            sock.close()


def test_a_thousand_wrong_tokens_do_not_refuse_an_honest_call_from_the_same_address(pylb: Pylb) -> None:
    port = free_port()
    pylb.put("honest/one", wants((port, 30001)))
    for _ in range(300):
        answer = call(pylb.webhook, "PUT", PATH, b"{}", {"Authorization": "Bearer wrong"})
        assert answer.status in {401, 429}
    again = pylb.put("honest/one", wants((port, 30001)))
    assert (again.status, again.json["result"]) == (200, "unchanged")
