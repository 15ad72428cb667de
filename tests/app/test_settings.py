"""What a running pylb makes of settings that only its composition root hands on (tests/config/test_effects.py names all)."""

import json
import select
import socket
from contextlib import ExitStack
from typing import Any
from urllib.request import urlopen

import pytest

from tests.app.instance import SECRET, Instance, fetch
from tests.support.ports import free_port, refusing_port
from tests.support.waiting import eventually

BEARER = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}


def webhook(pylb: Instance, **limits: int) -> dict[str, Any]:
    return {"listen": f"127.0.0.1:{pylb.webhook}", "limits": limits}


def changes(pylb: Instance, count: int) -> list[int]:
    """The answers to so many calls in a row, each of which changes something."""
    found = []
    for number in range(count):
        body = {"frontends": [{"port": pylb.port, "target_port": 1 + number}], "address": "127.0.0.1"}
        path = "/v1/registrations/app/one"
        found.append(fetch(("127.0.0.1", pylb.webhook), "PUT", path, json.dumps(body), BEARER).status)
    return found


@pytest.mark.parametrize(
    ("limits", "slowed"),
    [({"burst": 1, "rate": 1}, True), ({"burst": 1000, "rate": 1}, False), ({"burst": 1, "rate": 1_000_000}, False)],
    ids=["both", "burst", "rate"],
)
def test_burst_and_rate_say_how_many_changes_a_token_may_make(pylb: Instance, limits: dict[str, int], slowed: bool) -> None:
    pylb.configure(webhook=webhook(pylb, **limits))
    pylb.start()
    found = changes(pylb, 12)
    assert found[0] == 201
    assert set(found[1:]) <= {200, 429}
    assert (429 in found) == slowed


@pytest.mark.parametrize(("lockout", "last"), [(3, 429), (1000, 401)])
def test_lockout_says_how_many_guesses_an_address_has(pylb: Instance, lockout: int, last: int) -> None:
    pylb.configure(webhook=webhook(pylb, lockout=lockout))
    pylb.start()
    place, path = ("127.0.0.1", pylb.webhook), "/v1/registrations/app/one"
    guesses = [BEARER | {"Authorization": f"Bearer guess-number-{number}-of-many"} for number in range(8)]
    found = [fetch(place, "PUT", path, "{}", guess) for guess in guesses]
    assert [answer.status for answer in found[:3]] == [401] * 3
    assert found[-1].status == last


@pytest.mark.parametrize("limit", ["connections", "per_address"])
def test_of_connections_beyond_the_webhooks_limits_one_that_waits_is_cut(pylb: Instance, limit: str) -> None:
    """Before its deadline: the others of the same age are served."""
    pylb.configure(webhook=webhook(pylb, **{limit: 4}))
    pylb.start()

    def cut() -> list[socket.socket]:
        assert pylb.get("/v1/whoami", pylb.webhook).status == 200  # one connection more
        return select.select(idle, (), (), 0)[0]

    def others_are_served() -> bool:
        [one] = eventually(cut, within=20, what="one is cut")
        assert one.recv(1) == b""
        other = next(client for client in idle if client is not one)
        other.sendall(b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return other.recv(4096).startswith(b"HTTP/1.1 200 ")

    def tried() -> bool:
        nonlocal idle
        with ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(("127.0.0.1", pylb.webhook), 10)) for _ in range(4)]
            return others_are_served()

    idle: list[socket.socket] = []
    eventually(tried, within=40, what="one is cut, and the others are served")


def test_the_word_of_trusted_proxies_is_believed_and_a_reload_changes_whose(pylb: Instance) -> None:
    def seen() -> str:
        headers = {"X-Forwarded-For": "198.51.100.1"}
        return str(fetch(("127.0.0.1", pylb.webhook), "GET", "/v1/whoami", headers=headers).json["address"])

    pylb.configure(trusted_proxies=["127.0.0.1"])
    pylb.start()
    assert seen() == "198.51.100.1"
    pylb.configure(trusted_proxies=["192.0.2.1"])
    pylb.reload("reloaded: ")
    assert seen() == "127.0.0.1"


def test_other_pylbs_are_asked_for_the_page_and_a_reload_changes_which(pylb: Instance) -> None:
    """This one stands for the others: by its metrics port, and by a name that it was not called by in its config."""
    metrics = free_port()
    again = {"name": "itself", "url": f"http://127.0.0.1:{metrics}", "page": "https://lb-2.example.net"}
    gone = {"name": "gone", "url": f"http://127.0.0.1:{refusing_port()}"}
    faces: dict[str, Any] = {"metrics": {"listen": f"127.0.0.1:{metrics}", "allow": ["127.0.0.1"]}}
    admin = {"listen": f"127.0.0.1:{pylb.admin}"}
    pylb.configure(admin=admin | {"peers": [again]}, **faces)
    pylb.start()
    with urlopen(f"http://127.0.0.1:{pylb.admin}/v1/stream", timeout=10) as stream:

        def shown(wanted: int) -> list[dict[str, Any]]:
            """The next list of so many peers whose answers, or reasons for none, are there."""
            for raw in stream:
                found: list[dict[str, Any]] = json.loads(raw[6:]).get("peers", []) if raw.startswith(b"data: ") else []
                if len(found) == wanted and all("error" in one for one in found):
                    return found
            raise AssertionError("the stream ended")

        [peer] = shown(1)
        assert (peer["name"], peer["page"], peer["error"]) == ("itself", "https://lb-2.example.net", "")
        assert (peer["health"], peer["sentence"]) == ("unknown", "no frontends yet")
        pylb.configure(admin=admin | {"peers": [again, gone]}, **faces)
        pylb.reload("reloaded: ")
        assert [(peer["name"], peer["page"], peer["error"]) for peer in shown(2)] == [
            ("itself", "https://lb-2.example.net", ""),
            ("gone", gone["url"], "refused"),
        ]


def test_the_level_of_its_own_messages(pylb: Instance, echo_port: int) -> None:
    pylb.configure(log={"level": "warning"})
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    assert process.terminate() == 0
    assert " warning pylb: " in process.text()  # of the secret in the file
    assert " info pylb" not in process.text()


@pytest.mark.parametrize(("calls", "lines"), [("changes", 0), ("all", 1)])
def test_calls_says_whether_beats_are_lines(pylb: Instance, echo_port: int, calls: str, lines: int) -> None:
    pylb.configure(log={"calls": calls})
    process = pylb.start()
    pylb.register(pylb.port, echo_port)
    assert pylb.register(pylb.port, echo_port).json["result"] == "unchanged"
    assert process.terminate() == 0
    assert process.text().count("with token 'app': created") == 1
    assert process.text().count("with token 'app': unchanged") == lines


def test_compat_puts_the_names_of_haproxys_exporter_into_every_scrape(pylb: Instance) -> None:
    pylb.configure(metrics={"compat": "haproxy"})
    pylb.start()
    eventually(lambda: b"\nhaproxy_process_" in pylb.get("/metrics").body, what="they are there")


def test_the_bounds_of_leases_and_of_what_registrations_add_up_to(pylb: Instance, echo_port: int) -> None:
    pylb.configure(leases={"min_ttl": "30s", "max_ttl": "40s"}, bounds={"servers_per_frontend": 1, "ports_per_token": 1})
    pylb.start()
    assert [pylb.register(pylb.port, echo_port, ttl=ttl).status for ttl in (29, 41, 30)] == [422, 422, 201]
    body = {"frontends": [{"port": pylb.port, "target_port": 1}], "ttl": 30, "address": "127.0.0.1"}
    other = fetch(("127.0.0.1", pylb.webhook), "PUT", "/v1/registrations/app/two", json.dumps(body), BEARER)
    assert (other.status, "bounds." in other.json["detail"]) == (429, True)
