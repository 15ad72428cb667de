"""What pylb's answers become: events on the Service."""

from __future__ import annotations

from typing import Any

import pytest

from phonehome.controller import sets
from phonehome.controller.balancer import View
from phonehome.controller.controller import _events
from phonehome.controller.desired import Rules, plan
from phonehome.controller.events import ENSURED, FAILED
from phonehome.message import Reply
from tests.phonehome.controller.made import node, service

HTTPS, MAIL = ("TCP", 443), ("TCP", 25)
MADE = plan([service("web", (443, 30443), (25, 30025))], [node("a", "i:10.1.0.1")], Rules())


def events(*views: View) -> list[tuple[str, str]]:
    labelled = [(f"lb{number}", view) for number, view in enumerate(views)]
    return [(one.reason, one.text) for one in _events("default.web", MADE, labelled, [(HTTPS, ""), (MAIL, "")], ["192.0.2.1"])]


def view(**given: Any) -> View:
    return View(frozenset({HTTPS, MAIL}), {}, "", "", known=True)._replace(**given)


def test_all_is_well() -> None:
    assert events(view()) == [(ENSURED, "open on 192.0.2.1: 443/TCP, 25/TCP")]


def test_an_open_port_without_a_node_that_answers_is_no_success() -> None:
    hint = "a firewall drops it"
    assert events(view(silent={HTTPS: hint}), view()) == [
        (FAILED, f"lb0: port 443 is open, and no node accepts a connection at its nodePort 30443: {hint}")
    ]


def test_a_refused_change_of_what_is_open_is_said() -> None:
    """Such as the address of a new node that the token may not name: the ports stay open, and the node gets no connection."""
    why = "target_forbidden: token 'kubernetes' may not name the address 10.9.0.1 (of b) (add it to `targets` of the token)"
    assert events(view(trouble=why, refused_whole=True)) == [(FAILED, f"lb0: {why}")]


def test_a_pylb_that_is_away_is_no_news_of_what_is_open() -> None:
    assert events(view(trouble="no answer from lb0"))[0][0] == ENSURED
    assert events(view(trouble="no answer from lb0", open=frozenset({MAIL}))) == [(FAILED, "lb0: no answer from lb0")]


@pytest.mark.parametrize(
    ("frontends", "silent"),
    [
        ('[{"port": 443, "servers": 3, "answering": 0, "hint": "h"}]', {HTTPS: "h"}),
        ('[{"port": 53, "protocol": "udp", "servers": 3, "answering": 0}]', {("UDP", 53): ""}),
        ('[{"port": 443, "servers": 3, "answering": 1}, {"port": 25, "servers": 3, "answering": null}]', {}),
        ('[{"port": 443}, 7, {"servers": 3, "answering": 0}]', {}),
        ("7", {}),
    ],
)
def test_the_ports_of_which_no_server_answers(frontends: str, silent: dict[tuple[str, int], str]) -> None:
    answer = f'{{"result": "updated", "generation": 1, "durable": true, "frontends": {frontends}}}'
    found = sets.read(Reply(200, {}, answer.encode()), 0.0, "a-secret-token")
    assert (found.accepted, found.silent) == (True, silent)
