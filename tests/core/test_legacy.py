"""The legacy body, whole and broken."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylb.core.errors import Code, Refused
from pylb.core.legacy import LegacyCall, parse_legacy
from pylb.core.policy import ProxyProtocol

GOOD = {
    "dst-ip": "203.0.113.7",
    "frontend-port": "8443",
    "backend-port": "30843",
    "action": "add",
    "name": "mqtt",
    "send-proxy": "",
}
PAGE = '<!DOCTYPE html>\n<html lang="en"><a href="x">"frontend-port":"22"</a>\n</html>'


def parse(**changes: Any) -> LegacyCall:
    return parse_legacy(json.dumps({key: value for key, value in (GOOD | changes).items() if value is not ...}).encode())


def raw(dst_ip: str, tail: str | None = None) -> bytes:
    rest = '"frontend-port":"8443","backend-port":"30843","action":"add","name":"mqtt","send-proxy":"send-proxy-v2"}'
    return f'{{"dst-ip":"{dst_ip}",{rest if tail is None else tail}'.encode()


def refused(call: Any, *args: Any, **changes: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        call(*args, **changes)
    return caught.value


def test_the_clients_own_body_is_understood() -> None:
    assert parse() == LegacyCall("add", 8443, 30843, "mqtt", ProxyProtocol.NONE, "203.0.113.7")


def test_numbers_unknown_keys_and_missing_fields_are_accepted() -> None:
    call = parse(**{"frontend-port": 8443, "send-proxy": ..., "dst-ip": ..., "name": None, "extra": {"x": []}})
    assert call == LegacyCall("add", 8443, 30843, "legacy", ProxyProtocol.NONE, None)


@pytest.mark.parametrize("key", ["send-proxy", "send_proxy"])
def test_both_spellings_of_send_proxy_count(key: str) -> None:
    assert parse(**({"send-proxy": ...} | {key: "send-proxy"})).send_proxy is ProxyProtocol.V1


def test_a_delete_need_not_say_where_to() -> None:
    assert parse(action="delete", **{"backend-port": ""}).target_port == 0
    assert parse(action="delete").target_port == 30843


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "replace"},
        {"action": ""},
        {"frontend-port": "443 "},
        {"frontend-port": 443.0},
        {"frontend-port": True},
        {"frontend-port": -1},
        {"frontend-port": "0"},
        {"frontend-port": "65536"},
        {"frontend-port": ...},
        {"backend-port": ""},
        {"send-proxy": "check-send-proxy"},
        {"dst-ip": "999.1.1.1"},
        {"dst-ip": "203.0.113.7:443"},
        {"name": ["x"]},
    ],
)
def test_a_bad_value_is_refused_and_named(changes: dict[str, Any]) -> None:
    found = refused(parse, **changes)
    assert found.code is Code.INVALID
    assert found.detail.startswith(next(iter(changes)))


def test_an_address_is_canonical() -> None:
    assert parse(**{"dst-ip": " ::ffff:203.0.113.7\n"}).address == "203.0.113.7"


def test_what_a_web_site_said_instead_of_an_address_is_noted_and_not_used() -> None:
    call = parse(**{"dst-ip": "error code: 1015"})
    assert call.address is None
    assert "error code: 1015" in call.address_note


@pytest.mark.parametrize("page", [PAGE, 'a"b', "line\nbreak", '","frontend-port":"22","backend-port":"22","action":"add",'])
def test_a_page_that_breaks_the_json_costs_only_the_address(page: str) -> None:
    call = parse_legacy(raw(page))
    assert (call.port, call.target_port, call.name, call.send_proxy) == (8443, 30843, "mqtt", ProxyProtocol.V2)
    assert call.address is None
    assert "broke the JSON" in call.address_note


def test_a_broken_body_of_an_old_image_has_no_send_proxy() -> None:
    tail = ' "frontend-port" : "25", "backend-port":"30025" ,\n"action":"delete","name":"" }\n'
    call = parse_legacy(raw(PAGE, tail))
    assert (call.action, call.port, call.name, call.send_proxy) == ("delete", 25, "legacy", ProxyProtocol.NONE)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"frontend-port",
        b'"frontend-port":"1","backend-port":"2","action":"add","name":"x"}',
        raw(PAGE, '"frontend-port":"1","backend-port":"2","action":"add","name":"a"b"}'),
        raw(PAGE, '"frontend-port":"1","backend-port":"2","action":"add","name":"x"} trailing'),
        b"[" * 100_000,
    ],
)
def test_what_cannot_be_salvaged_is_refused(body: bytes) -> None:
    assert refused(parse_legacy, body).code is Code.INVALID_JSON


@pytest.mark.parametrize(
    "body",
    [
        b'{"frontend-port":"443","backend-port":"30443","action":"add","name":"a","frontend-port":"22"}',
        b'{"dst-ip":"203.0.113.7","frontend-port":"443","backend-port":"30443","action":"add","name":"a","dst-ip":"127.0.0.1"}',
        b'{"frontend-port":"443","backend-port":"30443","action":"add","x":{"y":1,"y":2}}',
    ],
)
def test_a_key_that_is_there_twice_is_refused_as_in_a_native_call(body: bytes) -> None:
    found = refused(parse_legacy, body)
    assert (found.code, "appears twice" in found.detail) == (Code.INVALID_JSON, True)


@pytest.mark.parametrize("number", [b"1" * 5000, b"1e999", b"NaN", b"-Infinity", b"1" * 4000, b'"\\ud800"'])
def test_a_number_that_is_none_is_refused(number: bytes) -> None:
    body = b'{"frontend-port":%s,"backend-port":"30443","action":"add","name":"a"}' % number
    assert refused(parse_legacy, body).code in {Code.INVALID, Code.INVALID_JSON}


def test_a_body_that_is_no_object_is_refused() -> None:
    assert refused(parse_legacy, b"[1]").code is Code.INVALID


@pytest.mark.parametrize(
    ("said", "name"),
    [("", "legacy"), ("../../etc", "etc"), ("a b\nc", "a-b-c"), ("-_.", "legacy"), ("x" * 62 + "-y", "x" * 62)],
)
def test_a_name_is_reduced_to_what_a_label_may_hold(said: str, name: str) -> None:
    assert parse(name=said).name == name


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_parse_or_be_refused(body: bytes) -> None:
    try:
        parse_legacy(body)
    except Refused:
        pass


@given(st.text(max_size=200).map(lambda text: text + '"\n'))
def test_whatever_dst_ip_holds_the_port_is_the_one_at_the_end(page: str) -> None:
    assert parse_legacy(raw(page)).port == 8443
