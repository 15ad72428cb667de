"""The sentence of health, for every way in which a frontend can be unwell."""

from dataclasses import replace
from typing import Any

import pytest

from pylb.control.event_log import Event
from pylb.control.health_sentence import Condition, condition, overall, said, since_down, troubles
from pylb.control.views import FrontendView, Holder, ServerView, frontend_views
from pylb.core.address import UDP, Address, Listen
from pylb.core.health import NO_OBJECTION, REMEMBERED, WRONG, Health
from pylb.core.policy import Check, CheckKind, HealthPolicy, Policy, ProxyProtocol
from pylb.core.registration import Key
from pylb.core.table import DOWN, LAST_RESORT, Frontend, Server, make_table

NOW = 1_795_000_000.0


def view(number: int = 7, **given: Any) -> ServerView:
    address = Address(f"10.0.0.{number}", 30443)
    fields: dict[str, Any] = {
        "frontend": "web-443",
        "listen": Listen("tcp", "*", 443),
        "server": f"pod-{number}",
        "address": address,
        "weight": 1,
        "send_proxy": ProxyProtocol.NONE,
        "rank": 0,
        "state": "up",
        "tried": True,
        "reachable": "yes",
        "hint": "",
        "reason": "",
        "held_by": (Holder(Key("app", "web", "pod"), "web"),),
    }
    return ServerView(**fields | given)


def down(number: int = 7) -> ServerView:
    return view(number, state="down", rank=DOWN)


def failing(found: str) -> ServerView:
    return view(7, state="down", rank=DOWN, health=Health(True, 3, reason=found))


def elsewhere(found: str, reachable: str) -> ServerView:
    """Its check asks another port, whose silence says nothing of the server's own."""
    policy = HealthPolicy(check=Check(CheckKind.HTTP, path="/healthz", port=10256))
    return replace(failing(found), policy=policy, reachable=reachable)


def datagrams(found: str, reachable: str) -> ServerView:
    one = elsewhere(found, reachable)
    return replace(one, address=one.address._replace(protocol=UDP))


def frontend(name: str, port: int, *servers: ServerView, unbound: str | None = None) -> FrontendView:
    return FrontendView(Frontend(name, Listen("tcp", "*", port), Policy(), ()), servers, unbound)


def web(*servers: ServerView, unbound: str | None = None) -> FrontendView:
    return frontend("web-443", 443, *servers, unbound=unbound)


def well(number: int) -> FrontendView:
    return frontend(f"app-{number}", number, view())


def test_a_port_without_a_default_route_is_as_well_as_its_routes() -> None:
    only_names = web()._replace(routes=2)
    assert condition(only_names, {}, NOW) == (Condition.HEALTHY, "")
    assert condition(only_names._replace(unbound="in use"), {}, NOW)[0] is Condition.DOWN
    assert condition(web(), {}, NOW) == (Condition.DOWN, "web-443 has no server yet")
    assert condition(web(down())._replace(routes=2), {}, NOW)[0] is Condition.DOWN


def event(kind: str, ago: float, number: int = 7, frontend: str = "web-443") -> Event:
    return Event(NOW - ago, kind, "", {"frontend": frontend, "address": f"10.0.0.{number}:30443"})


def sentence(frontends: list[FrontendView], events: list[Event], now: float, also: list[str] | None = None) -> str:
    return said([condition(one, since_down(events), now) for one in frontends], also or ())


def test_a_lost_server_is_named_with_its_time() -> None:
    frontends = [well(1), well(2), well(3), web(view(8), down())]
    told = sentence(frontends, [event("server_down", 12.0)], NOW)
    assert told == "3 of 4 frontends healthy; web-443 lost 10.0.0.7:30443 12 s ago"


def test_what_is_well_is_said_in_few_words() -> None:
    assert sentence([well(1), well(2)], [], NOW) == "all 2 frontends healthy"
    assert sentence([web(view())], [], NOW) == "the one frontend is healthy"
    assert sentence([], [], NOW) == "no frontends yet"


@pytest.mark.parametrize(
    ("given", "is_up"),
    [
        ({}, True),
        ({"state": "unproven", "reachable": "unknown"}, True),  # it is being asked
        ({"state": "unproven", "reachable": "refused"}, False),  # `pylb status` said "down, 2/2 servers"
        ({"state": "unproven", "reachable": "timeout"}, False),
        ({"state": "drain", "reachable": "yes"}, False),
        ({"state": "down", "rank": DOWN}, False),
    ],
)
def test_a_server_counts_as_up_until_it_has_refused_a_connection(given: dict[str, Any], is_up: bool) -> None:
    assert view(**given).is_up is is_up


@pytest.mark.parametrize(
    ("one", "health", "text"),
    [
        (web(view(), unbound="Address in use"), Condition.DOWN, "web-443 cannot open its port: Address in use"),
        (web(), Condition.DOWN, "web-443 has no server yet"),
        (
            web()._replace(unresolved=("nodes.example.net",)),
            Condition.DOWN,
            "web-443 has no server: nodes.example.net cannot be resolved",
        ),
        (
            web(view(state="drain", weight=0)),
            Condition.DOWN,
            "web-443 has no server in service (pylb ctl ready brings one back)",
        ),
        (web(down()), Condition.DOWN, "web-443 lost 10.0.0.7:30443 12 s ago and has no other"),
        (web(down(), down(8)), Condition.DOWN, "web-443 lost 2 servers, 10.0.0.7:30443 last, 12 s ago and has none left"),
        (web(down(9)), Condition.DOWN, "web-443 lost 10.0.0.9:30443 and has no other"),  # nobody remembers when
        (
            web(view(state="unproven", reachable="refused")),
            Condition.DOWN,
            "web-443 has not reached 10.0.0.7:30443 yet (refused) and has no other",
        ),
        (
            web(view(), view(8, state="unproven", reachable="timeout"), view(9, state="unproven", reachable="timeout")),
            Condition.DEGRADED,
            "web-443 has not reached 2 servers yet (timeout)",
        ),
        (
            web(view(8, state="unproven", reachable="timeout"), view(9, state="unproven", reachable="timeout")),
            Condition.DOWN,
            "web-443 has not reached any of its 2 servers yet (timeout)",
        ),
        (
            web(down(), view(8, state="unproven", reachable="refused")),
            Condition.DOWN,
            "web-443 lost 10.0.0.7:30443 12 s ago and has none left",
        ),
        (
            web(view(), failing(WRONG + "503")),
            Condition.DEGRADED,
            "web-443 lost 10.0.0.7:30443 12 s ago (it accepts connections and does not pass its check: wrong answer: 503)",
        ),
        (
            web(view(), elsewhere("timeout", "yes")),
            Condition.DEGRADED,
            "web-443 lost 10.0.0.7:30443 12 s ago (it accepts connections and does not pass its check at port 10256: timeout)",
        ),
        (
            web(view(), elsewhere("timeout", "refused")),
            Condition.DEGRADED,
            "web-443 lost 10.0.0.7:30443 12 s ago (it accepts no connections: refused)",
        ),
        (
            web(view(), datagrams("refused", "refused")),
            Condition.DEGRADED,
            "web-443 lost 10.0.0.7:30443/udp (it refuses datagrams: refused)",
        ),
        (
            web(view(), datagrams("timeout", NO_OBJECTION)),
            Condition.DEGRADED,
            "web-443 lost 10.0.0.7:30443/udp (it does not pass its check: timeout)",
        ),
        (
            web(failing("refused")),
            Condition.DOWN,
            "web-443 lost 10.0.0.7:30443 12 s ago (it accepts no connections: refused) and has no other",
        ),
        (web(failing(REMEMBERED)), Condition.DOWN, "web-443 lost 10.0.0.7:30443 12 s ago and has no other"),  # not asked yet
        (web(view(state="unproven", reachable="unknown")), Condition.HEALTHY, ""),  # it is being asked
        (
            web(down(), view(8, state="maint", weight=0)),
            Condition.DOWN,
            "web-443 lost 10.0.0.7:30443 12 s ago and has no other",
        ),
        (web(view(rank=LAST_RESORT)), Condition.DEGRADED, "web-443 is served by registrations that no longer call"),
        (web(view(rank=LAST_RESORT), view(8)), Condition.HEALTHY, ""),
    ],
)
def test_each_condition_has_its_word_and_its_reason(one: FrontendView, health: Condition, text: str) -> None:
    down_at = since_down([event("server_down", 60.0, 8), event("server_down", 12.0)])
    assert condition(one, down_at, NOW) == (health, text)
    assert condition(one, down_at, None) == (health, text.replace(" last,", " last").replace(" 12 s ago", ""))  # for the page


def test_a_server_that_came_back_is_forgotten() -> None:
    events = [
        event("server_down", 90.0),
        event("server_up", 60.0),
        event("server_down", 50.0, 8),
        event("moved", 40.0, 8),
        event("server_down", 30.0, 8, frontend="mail-25"),
    ]
    assert since_down(events) == {("web-443", "10.0.0.8:30443"): NOW - 50, ("mail-25", "10.0.0.8:30443"): NOW - 30}


def test_pylbs_own_troubles_come_first_then_the_worst_and_no_list_is_endless() -> None:
    frontends = [frontend(f"app-{number}", number) for number in range(5)]
    frontends.insert(0, web(view(8), down()))
    told = sentence(frontends, [], NOW, ["the state is not on disk"])
    assert told == (
        "0 of 6 frontends healthy; the state is not on disk; app-0 has no server yet; app-1 has no server yet; 4 more"
    )
    assert sentence([well(1), *frontends[:3]], [], NOW).endswith("; web-443 lost 10.0.0.7:30443")


def test_the_whole_is_as_well_as_its_worst_frontend_and_pylb_itself() -> None:
    healthy, degraded, down = ((word, "") for word in (Condition.HEALTHY, Condition.DEGRADED, Condition.DOWN))
    assert overall([], durable=True) == "unknown"
    assert overall([healthy, healthy], durable=True) == "healthy"
    assert overall([healthy, degraded], durable=True) == "degraded"
    assert overall([degraded, down], durable=True) == "down"
    assert overall([healthy], durable=True, also=["the config on disk was refused"]) == "degraded"
    assert overall([healthy], durable=False) == "down"


def test_what_is_wrong_with_pylb_itself() -> None:
    assert troubles(durable=True, preserving=False, reloaded=True) == []
    assert len(troubles(durable=False, preserving=True, reloaded=False)) == 3
    assert troubles(durable=False, preserving=False, reloaded=True) == ["the state cannot be written to disk"]


def test_frontends_come_in_the_order_of_their_ports_with_their_servers() -> None:
    https, smtp = Listen("tcp", "*", 443), Listen("tcp", "*", 25)
    pools = {https: (Server("pod-7", view(7).address), Server("pod-8", view(8).address)), smtp: ()}
    table = make_table(1, {at: Frontend(f"app-{at.port}", at, Policy(), pool) for at, pool in pools.items()})
    found = frontend_views(table, iter([view(7), view(8)]), {smtp: "Permission denied"}, {https: NOW}.get, {})
    assert [(one.name, len(one.servers), one.unbound, one.closes) for one in found] == [
        ("app-25", 0, "Permission denied", None),
        ("app-443", 2, None, NOW),
    ]
