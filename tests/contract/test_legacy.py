"""The legacy protocol: each row of its table of answers, each of its rules."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.contract.instance import (
    Pylb,
    answers,
    banner,
    call,
    connect,
    echoes,
    is_open,
    secret,
    serving,
    token,
    wants,
)
from tests.support.ports import free_port, free_ports
from tests.support.processes import Processes
from tests.support.waiting import eventually

SECRET = secret("app")
UNAUTHORIZED = "Hook rules were not satisfied."


@pytest.fixture(scope="module")
def pylb(module_processes: Processes, module_folder: Path) -> Pylb:
    """`app` from a file with a trailing newline; `short` weak; `default` with its peer address only."""
    file = module_folder / "app.token"
    file.write_text(SECRET + "\n")
    file.chmod(0o600)
    scope = {key: value for key, value in token("x").items() if key not in {"name", "secret"}}
    tokens = [
        {"name": "app", "secret_file": str(file), **scope},
        token("other"),
        {"name": "short", "secret": "tiny", "allow_weak": True, **scope},
        {"name": "default", "secret": secret("default"), "ports": ["20000-29999"], "target_ports": ["1-65535"]},
        token("named", names=["only-this"]),
        token("nodes", targets=["127.0.0.0/8", "10.0.0.0/8"]),
    ]
    return Pylb(module_processes, module_folder, tokens=tokens).start()


def hook(port: Any, target: Any, **more: Any) -> dict[str, Any]:
    """The body of the shell client, in its order, every value a string."""
    body = {
        "dst-ip": "",
        "frontend-port": str(port),
        "backend-port": str(target),
        "action": "add",
        "name": "app",
        "send-proxy": "",
    }
    return body | {name.replace("_", "-"): value for name, value in more.items()}


def one_line(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text.strip()


def server(pylb: Pylb, port: int) -> dict[str, Any]:
    [found] = [each for f in pylb.get("/v1/table").json["frontends"] if f["port"] == port for each in f["servers"]]
    return dict(found)


# ---------------------------------------------------------------- answers


def test_an_accepted_call_is_200_with_one_line_and_is_in_force(pylb: Pylb) -> None:
    port, target = free_ports(2)
    with serving("node", target, "127.0.0.3"):
        answer = pylb.hook(hook(port, target), secret=SECRET, source="127.0.0.3")
        assert answer.status == 200
        assert one_line(answer.text)
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answers(port) == "node"
        assert str(port) in (pylb.state_dir / "state.json").read_text()


@pytest.mark.parametrize("bad", [None, "", "wrong", SECRET + "x", SECRET + " x"])
def test_a_bad_or_missing_token_is_401_with_the_words_of_old(pylb: Pylb, bad: str | None) -> None:
    port = free_port()
    answer = pylb.hook(hook(port, 30001), secret=bad)
    assert (answer.status, answer.text.strip()) == (401, UNAUTHORIZED)
    assert not is_open(port)


def test_a_get_is_401_with_a_bad_token_and_405_with_a_good_one(pylb: Pylb) -> None:
    bad = pylb.hook(None, secret="wrong", method="GET")
    assert (bad.status, bad.text.strip()) == (401, UNAUTHORIZED)
    good = pylb.hook(None, secret=SECRET, method="GET")
    assert good.status == 405
    assert good.headers["Allow"] == "POST"
    assert one_line(good.text)


@pytest.mark.parametrize("path", ["/hooks/", "/hooks/nothing", "/hooks/update-haproxy/", "/hooks/update-haproxy2"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_hook_is_404_with_the_words_of_old(pylb: Pylb, method: str, path: str) -> None:
    answer = call(pylb.webhook, method, path, headers={"X-Funkypenguin-Token": SECRET})
    assert (answer.status, answer.text.strip()) == (404, "Hook not found.")


def test_a_port_of_another_token_is_409_in_one_line(pylb: Pylb) -> None:
    port = free_port()
    pylb.hook(hook(port, 30001), secret=SECRET)
    answer = pylb.hook(hook(port, 30002), secret=secret("other"))
    assert answer.status == 409
    assert one_line(answer.text)
    assert "app" in answer.text
    assert server(pylb, port)["address"].endswith(":30001")


BAD_VALUES: list[dict[str, Any]] = [
    {"frontend_port": ""},
    {"frontend_port": "http"},
    {"frontend_port": "0"},
    {"frontend_port": "65536"},
    {"frontend_port": "-1"},
    {"frontend_port": "443 444"},
    {"frontend_port": 443.5},
    {"frontend_port": True},
    {"frontend_port": None},
    {"frontend_port": ["443"]},
    {"backend_port": ""},
    {"backend_port": "30001; rm -rf /"},
    {"action": "drop"},
    {"action": ""},
    {"send_proxy": "send-proxy-v3"},
    {"send_proxy": "check"},
    {"send_proxy": "send-proxy check"},
    {"send_proxy": "true"},
]


@pytest.mark.parametrize("bad", BAD_VALUES, ids=str)
def test_a_bad_value_is_422_in_one_line_and_changes_nothing(pylb: Pylb, bad: dict[str, Any]) -> None:
    before = pylb.get("/v1/table").json
    answer = pylb.hook(hook(free_port(), 30001, **bad), secret=SECRET)
    assert answer.status == 422
    assert one_line(answer.text)
    assert pylb.get("/v1/table").json == before


@pytest.mark.parametrize("key", ["frontend-port", "backend-port", "action"])
def test_a_missing_field_is_422_and_named(pylb: Pylb, key: str) -> None:
    body = hook(free_port(), 30001)
    del body[key]
    answer = pylb.hook(body, secret=SECRET)
    assert answer.status == 422
    assert key in answer.text


@pytest.mark.parametrize("port", ["443", "19999", "30000"])
def test_a_port_outside_the_tokens_ports_is_403(pylb: Pylb, port: str) -> None:
    answer = pylb.hook(hook(port, 30001), secret=SECRET)
    assert answer.status == 403
    assert one_line(answer.text)


@pytest.mark.parametrize("body", [b"", b"nothing", b"[]", b'"x"', b"{"], ids=repr)
def test_a_body_that_is_no_object_is_400_or_422_in_one_line(pylb: Pylb, body: bytes) -> None:
    answer = pylb.hook(body, secret=SECRET)
    assert answer.status in {400, 422}
    assert one_line(answer.text)


def test_a_body_over_4_kib_is_413_in_one_line(pylb: Pylb) -> None:
    answer = pylb.hook(hook(free_port(), 30001, name="x" * 5000), secret=SECRET)
    assert answer.status == 413
    assert one_line(answer.text)


# ---------------------------------------------------------------- what a body may look like


def test_numbers_and_unknown_keys_are_accepted(pylb: Pylb) -> None:
    port = free_port()
    body = hook(port, 30001) | {"frontend-port": port, "backend-port": 30001, "colour": "red", "nested": {"a": [1]}}
    assert pylb.hook(body, secret=SECRET).status == 200
    assert is_open(port)


def test_older_images_omit_send_proxy_and_dst_ip_may_be_missing(pylb: Pylb) -> None:
    port = free_port()
    body = hook(port, 30001)
    del body["send-proxy"], body["dst-ip"]
    assert pylb.hook(body, secret=SECRET).status == 200
    assert server(pylb, port)["proxy_protocol"] == "none"


@pytest.mark.parametrize("key", ["send-proxy", "send_proxy"])
@pytest.mark.parametrize(("keyword", "version"), [("", "none"), ("send-proxy", "v1"), ("send-proxy-v2", "v2")])
def test_send_proxy_carries_haproxys_keyword_in_both_spellings(pylb: Pylb, key: str, keyword: str, version: str) -> None:
    port = free_port()
    body = hook(port, 30001)
    del body["send-proxy"]
    assert pylb.hook(body | {key: keyword}, secret=SECRET).status == 200
    assert server(pylb, port)["proxy_protocol"] == version


@pytest.mark.parametrize(("name", "label"), [("mosquitto", "mosquitto"), ("", "legacy")])
def test_an_empty_name_becomes_legacy(pylb: Pylb, name: str, label: str) -> None:
    port = free_port()
    pylb.hook(hook(port, 30001, name=name), secret=SECRET)
    [frontend] = [each["name"] for each in pylb.get("/v1/table").json["frontends"] if each["port"] == port]
    assert frontend == f"{label}-{port}"
    assert server(pylb, port)["name"] == "legacy"


def test_the_names_of_the_token_do_not_apply(pylb: Pylb) -> None:
    assert pylb.hook(hook(free_port(), 30001, name="something else"), secret=secret("named")).status == 200


HTML = '<!DOCTYPE html>\n<html lang="en">\n<body class="x">\n  <p>203.0.113.9</p>\n\t"quoted"\n</body>\n</html>'


def test_html_as_dst_ip_is_salvaged_and_the_peer_address_is_the_target(pylb: Pylb) -> None:
    port, target = free_ports(2)
    broken = (
        f'{{"dst-ip":"{HTML}","frontend-port":"{port}","backend-port":"{target}",'
        '"action":"add","name":"mqtt","send-proxy":"send-proxy"}'
    ).encode()
    for _ in range(2):
        answer = pylb.hook(broken, secret=SECRET, source="127.0.0.9")
        assert answer.status == 200, answer.text
    assert server(pylb, port)["address"] == f"127.0.0.9:{target}"
    assert server(pylb, port)["proxy_protocol"] == "v1"
    pylb.running.has_said("legacy call from 127.0.0.9: dst-ip")
    lines = [line for line in pylb.running.text().splitlines() if "dst-ip" in line and "127.0.0.9" in line]
    assert len(lines) == 1, "once per client"


def test_broken_json_that_is_no_salvageable_dst_ip_is_refused(pylb: Pylb) -> None:
    broken = f'{{"dst-ip":"x"y","frontend-port":"{free_port()}","backend-port":"1;2","action":"add"}}'.encode()
    assert pylb.hook(broken, secret=SECRET).status in {400, 422}


def test_a_dst_ip_inside_targets_is_used(pylb: Pylb) -> None:
    port = free_port()
    assert pylb.hook(hook(port, 30001, dst_ip="127.0.0.8"), secret=SECRET).status == 200
    assert server(pylb, port)["address"] == "127.0.0.8:30001"


@pytest.mark.parametrize("dst_ip", ["203.0.113.9", "2001:db8::9"])
def test_a_dst_ip_merely_outside_targets_falls_back_to_the_peer_and_the_answer_says_so(pylb: Pylb, dst_ip: str) -> None:
    port = free_port()
    answer = pylb.hook(hook(port, 30001, dst_ip=dst_ip), secret=SECRET, source="127.0.0.8")
    assert answer.status == 200
    assert one_line(answer.text)
    assert dst_ip in answer.text
    assert server(pylb, port)["address"] == "127.0.0.8:30001"


@pytest.mark.parametrize("dst_ip", ["169.254.169.254", "::ffff:169.254.169.254", "0.0.0.0", "224.0.0.1", "fe80::1"])
def test_a_dst_ip_of_a_refused_class_is_422(pylb: Pylb, dst_ip: str) -> None:
    port = free_port()
    answer = pylb.hook(hook(port, 30001, dst_ip=dst_ip), secret=SECRET)
    assert answer.status == 422
    assert one_line(answer.text)
    assert not is_open(port)


def test_loopback_as_dst_ip_is_422_without_permission(pylb: Pylb) -> None:
    port = free_port()
    assert pylb.hook(hook(port, 30001, dst_ip="127.0.0.1"), secret=secret("default")).status == 422
    assert not is_open(port)


def test_a_dst_ip_with_white_space_around_it_is_an_address(pylb: Pylb) -> None:
    """curl ifconfig.co ends its line."""
    port = free_port()
    assert pylb.hook(hook(port, 30001, dst_ip="127.0.0.8\n"), secret=SECRET).status == 200
    assert server(pylb, port)["address"] == "127.0.0.8:30001"


def test_a_dst_ip_in_valid_json_that_is_no_address_falls_back_to_the_peer(pylb: Pylb) -> None:
    port = free_port()
    assert pylb.hook(hook(port, 30001, dst_ip=HTML), secret=SECRET, source="127.0.0.8").status == 200
    assert server(pylb, port)["address"] == "127.0.0.8:30001"


# ---------------------------------------------------------------- what it means


def test_the_last_writer_wins_whatever_the_name_and_live_sessions_stay(pylb: Pylb) -> None:
    port, target = free_ports(2)
    with serving("a", target, "127.0.0.2"), serving("b", target, "127.0.0.3"):
        pylb.hook(hook(port, target, name="a"), secret=SECRET, source="127.0.0.2")
        with connect(port) as live:
            assert banner(live) == "a"
            assert pylb.hook(hook(port, target, name="b"), secret=SECRET, source="127.0.0.3").status == 200
            assert [answers(port) for _ in range(3)] == ["b"] * 3
            assert echoes(live)
    assert server(pylb, port)["address"] == f"127.0.0.3:{target}"


def test_a_delete_releases_from_any_address_and_repeated_ones_are_200(pylb: Pylb) -> None:
    port = free_port()
    pylb.hook(hook(port, 30001), secret=SECRET, source="127.0.0.2")
    for _ in range(2):
        answer = pylb.hook(hook(port, 30001, action="delete"), secret=SECRET, source="127.0.0.3")
        assert answer.status == 200
        assert one_line(answer.text)
        assert not is_open(port)


def test_a_delete_by_another_token_releases_nothing(pylb: Pylb) -> None:
    port = free_port()
    pylb.hook(hook(port, 30001), secret=SECRET)
    pylb.hook(hook(port, 30001, action="delete"), secret=secret("other"))
    assert is_open(port)


def test_once_a_native_registration_has_the_port_legacy_adds_are_superseded(pylb: Pylb) -> None:
    port = free_port()
    pylb.hook(hook(port, 30001), secret=SECRET)
    assert pylb.put("modern/one", wants((port, 30002))).status == 201
    before = pylb.get("/v1/table").json
    answer = pylb.hook(hook(port, 30003), secret=SECRET)
    assert answer.status == 200
    assert "superseded" in answer.text
    assert pylb.get("/v1/table").json == before
    assert server(pylb, port)["address"].endswith(":30002")


def test_six_containers_of_one_pod_call_at_once_and_all_are_served(pylb: Pylb) -> None:
    pairs = [(free_port(), target) for target in (30025, 30110, 30465, 30587, 30993, 30995)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda pair: pylb.hook(hook(*pair, name="mail"), secret=SECRET), pairs))
    assert [each.status for each in found] == [200] * 6
    assert all(is_open(port) for port, _ in pairs)


def test_a_hot_loop_of_one_unchanged_call_is_limited_and_another_port_of_that_source_is_not(pylb: Pylb) -> None:
    port, other = free_ports(2)
    source = "127.0.0.77"
    pylb.hook(hook(port, 30001), secret=SECRET, source=source)
    generation = pylb.get("/v1/table").json["generation"]
    statuses = [pylb.hook(hook(port, 30001), secret=SECRET, source=source) for _ in range(200)]  # 100 at once, then 20/s
    assert {each.status for each in statuses} == {200, 429}
    assert int(next(each for each in statuses if each.status == 429).headers["Retry-After"]) >= 1
    assert pylb.get("/v1/table").json["generation"] == generation
    assert pylb.hook(hook(other, 30001), secret=SECRET, source=source).status == 200
    assert pylb.hook(hook(port, 30001), secret=SECRET, source="127.0.0.78").status == 200


def test_a_short_shared_token_is_accepted_with_a_warning(pylb: Pylb) -> None:
    assert pylb.hook(hook(free_port(), 30001), secret="tiny").status == 200
    assert any("warning" in line and "short" in line for line in pylb.running.text().splitlines())


def test_the_lease_of_a_once_call_never_starts(pylb: Pylb) -> None:
    port = free_port()
    pylb.hook(hook(port, 30001, name="once"), secret=SECRET)
    [found] = [
        each
        for each in pylb.get("/v1/registrations").json["registrations"]
        if each["legacy"] and each["frontends"][0]["port"] == port
    ]
    assert found["lease"] == {"ttl": None, "expires_in": None}
    assert (found["state"], found["name"]) == ("fresh", "once")


def test_pylb_release_removes_a_legacy_registration_by_port(pylb: Pylb) -> None:
    port = free_port()
    pylb.hook(hook(port, 30001), secret=SECRET)
    assert pylb.cli("release", str(port)).returncode == 0
    assert not is_open(port)


def test_no_secret_is_ever_logged(pylb: Pylb) -> None:
    for each in (SECRET, secret("other"), "wrong"):
        pylb.hook(hook(free_port(), 30001), secret=each)
    eventually(lambda: "refused" in pylb.running.text(), what="refusals are logged")
    assert SECRET not in pylb.running.text()
    assert secret("other") not in pylb.running.text()
    assert json.dumps(SECRET) not in pylb.get("/v1/events").text
