"""From claims to the table: ranks, sets of holders, labels."""

from dataclasses import replace

from pylb.core.address import Address, HostPort, Listen
from pylb.core.claims import Claims
from pylb.core.compose import ServerStates, compose_frontend
from pylb.core.ownership import become, release
from pylb.core.policy import JoinRule, Policy, ProxyProtocol, Rules, SourceLimits, StaticFrontend, StaticServer, Timeouts
from pylb.core.registration import Key, State
from pylb.core.static_rules import StaticRules
from pylb.core.table import Table
from tests.core.claiming import FREE, A, B, C, at, compose, enter, having, legacy, native, on, routed, static, static_rules

HTTPS = on(443)
EVERYBODY = frozenset(at(f"{ip}:{port}") for ip in (A, B, C) for port in (30443, 30080))


def ranks(
    claims: Claims, rules: StaticRules = FREE, *, proven: frozenset[Address] = EVERYBODY, down: tuple[str, ...] = ()
) -> dict[str, int]:
    server_states = ServerStates(proven, frozenset((HTTPS, at(text)) for text in down))
    made = compose_frontend(claims, rules, server_states, HTTPS)
    assert made is not None
    return {str(server.address): server.rank for server in made.servers}


def test_nobody_on_a_port_is_no_frontend() -> None:
    assert compose_frontend(Claims(), FREE, ServerStates(), HTTPS) is None


def test_a_static_frontend_may_have_no_servers() -> None:
    made = compose_frontend(Claims(), static_rules(static("https", "*:443")), ServerStates(), HTTPS)
    assert made is not None
    assert (made.name, made.servers) == ("https", ())


def test_fresh_before_unproven_before_backup_before_stale_before_down() -> None:
    claims = having(
        native(instance="fresh", ip=A),
        native(instance="new", ip="203.0.113.4"),
        native(instance="backup", ip=B, backup=True),
        native(instance="stale", ip=C),
        native(instance="out", ip="203.0.113.5"),
    )
    claims = become(claims, [Key("t", "web", "stale")], State.STALE).claims
    found = ranks(claims, down=("203.0.113.5:30443",))
    assert found == {f"{A}:30443": 0, "203.0.113.4:30443": 1, f"{B}:30443": 2, f"{C}:30443": 3, "203.0.113.5:30443": 4}


def test_a_draining_one_is_a_last_resort_too() -> None:
    claims = enter(having(native(), native(instance="pod-2", ip=B)), native(state=State.DRAINING)).claims
    assert ranks(claims) == {f"{A}:30443": 3, f"{B}:30443": 0}


def test_a_fresh_server_that_has_not_answered_does_not_displace_a_proven_one_that_drains() -> None:
    claims = enter(having(native(), native(instance="pod-2", ip=B)), native(state=State.DRAINING)).claims
    only_old = frozenset({at(f"{A}:30443")})
    assert ranks(claims, proven=only_old) == {f"{A}:30443": 0, f"{B}:30443": 1}
    assert ranks(claims, proven=only_old, down=(f"{A}:30443",)) == {f"{A}:30443": 4, f"{B}:30443": 1}
    assert ranks(claims, proven=frozenset()) == {f"{A}:30443": 3, f"{B}:30443": 1}


def test_a_server_is_as_good_as_its_best_holder_says() -> None:
    claims = having(native(instance="old"), native(instance="new"))
    goodbye = become(claims, [Key("t", "web", "old")], State.DRAINING).claims
    assert ranks(goodbye) == {f"{A}:30443": 0}
    assert ranks(release(claims, [Key("t", "web", "old")]).claims) == {f"{A}:30443": 0}
    assert ranks(release(claims, [Key("t", "web", "new")]).claims) == {f"{A}:30443": 0}


def test_after_a_move_the_old_server_serves_until_the_new_one_has_answered() -> None:
    only_old = frozenset({at(f"{A}:30443")})
    moved = enter(having(native()), native(ip=B), proven=only_old).claims
    assert ranks(moved, proven=only_old) == {f"{A}:30443": 0, f"{B}:30443": 1}
    assert ranks(moved, proven=only_old | {at(f"{B}:30443")}) == {f"{B}:30443": 0}


def test_the_displaced_of_another_port_are_not_offered() -> None:
    old = frozenset({at(f"{A}:30443"), at(f"{A}:30080")})
    ports = {443: 30443, 80: 30080}
    moved = enter(having(native(ports=ports)), native(ip=B, ports=ports), proven=old).claims
    assert ranks(moved, proven=old) == {f"{A}:30443": 0, f"{B}:30443": 1}


def test_static_servers_need_no_proof_and_keep_their_word_beside_registrations() -> None:
    lines = (StaticServer(at(f"{A}:30443"), weight=2), StaticServer(at(f"{C}:30443"), backup=True))
    rules = StaticRules(Rules(frontends=(StaticFrontend("web", HTTPS, lines),)))
    claims = having(native(ip=A), native(instance="pod-2", ip=B), static_rules=rules)
    made = compose_frontend(claims, rules, ServerStates(), HTTPS)
    assert made is not None
    assert [(s.name, s.weight, s.rank) for s in made.servers] == [
        (f"{A}:30443", 2, 0),
        (f"{C}:30443", 1, 2),
        ("pod-2", 1, 1),
    ]


def test_labels_are_instances_or_legacy_and_unique_inside_a_frontend() -> None:
    rules = static_rules(static("any", "*:443", joining=JoinRule.ANY))
    claims = having(native(), native(name="other", token="u", ip=B), legacy(token="v", ip=C), static_rules=rules)
    made = compose_frontend(claims, rules, ServerStates(), HTTPS)
    assert made is not None
    assert [server.name for server in made.servers] == ["legacy", "pod-1", f"pod-1@{A}:30443"]


def test_a_frontend_is_named_by_its_registration_and_port() -> None:
    made = compose_frontend(having(native()), FREE, ServerStates(), HTTPS)
    assert made is not None
    assert made.name == "web-443"


def test_the_proxy_header_is_the_registrations_or_the_policys() -> None:
    rules = static_rules(defaults=Policy(send_proxy=ProxyProtocol.V1))
    for said, sent in [(None, ProxyProtocol.V1), (ProxyProtocol.NONE, ProxyProtocol.NONE)]:
        made = compose_frontend(having(native(send_proxy=said)), rules, ServerStates(), HTTPS)
        assert made is not None
        assert made.servers[0].send_proxy is sent


def test_the_newest_of_equal_holders_speaks_for_a_server() -> None:
    claims = having(native(instance="old"), native(instance="new", send_proxy=ProxyProtocol.V2))
    made = compose_frontend(claims, FREE, ServerStates(), HTTPS)
    assert made is not None
    assert [(server.name, server.send_proxy) for server in made.servers] == [("new", ProxyProtocol.V2)]


def test_a_table_is_numbered_and_stays_itself_while_nothing_differs() -> None:
    claims = having(native())
    table = compose(claims, FREE, ServerStates(), Table(6))
    assert table.generation == 7
    assert compose(claims, FREE, ServerStates(), table) is table
    assert compose(claims, FREE, ServerStates(), table, [HTTPS]) is table
    closed = compose(Claims(), FREE, ServerStates(), table, [HTTPS])
    assert (closed.generation, dict(closed.frontends)) == (8, {})


def test_what_is_not_touched_is_the_same_object() -> None:
    claims = having(native(ports={443: 30443, 80: 30080}))
    table = compose(claims, FREE, ServerStates(), None)
    moved = compose(claims, FREE, ServerStates(frozenset({at(f"{A}:30443")})), table, [HTTPS])
    assert moved.frontends[on(80)] is table.frontends[on(80)]
    assert moved.frontends[HTTPS].servers == (replace(table.frontends[HTTPS].servers[0], rank=0),)


# ---------------------------------------------------------------- servers that are names

NAMED, LB = HostPort("nodes.example.net", 30443), HostPort("lb.example.net", 443)


def test_what_is_the_same_as_before_is_the_very_same() -> None:
    """Who compares the two looks only at what differs: the checker, the engine, the history."""
    claims = having(native(), native(instance="pod-2", ip=B))
    before = compose_frontend(claims, FREE, ServerStates(), on(443))
    assert before is not None
    assert compose_frontend(claims, StaticRules(Rules()), ServerStates(), on(443), before) is before
    moved = compose_frontend(
        enter(claims, native(instance="pod-2", ip=C)).claims, StaticRules(Rules()), ServerStates(), on(443), before
    )
    assert moved is not None
    assert [server in before.servers for server in moved.servers] == [server.name == "pod-1" for server in moved.servers]
    assert {id(server) for server in moved.servers} & {id(server) for server in before.servers}
    assert moved.policy is before.policy
    other = compose_frontend(claims, static_rules(defaults=Policy(retries=7)), ServerStates(), on(443), before)
    assert other is not None
    assert other.policy.retries == 7


def named(resolved: dict[str, tuple[str, ...]]) -> StaticRules:
    lines = (StaticServer(NAMED, weight=3), StaticServer(LB), StaticServer(Address("192.0.2.1", 1)))
    return StaticRules(
        Rules((StaticFrontend("web", Listen("tcp", "*", 443), lines),), own_ips=frozenset({"203.0.113.9"})), resolved
    )


def test_a_name_is_all_its_addresses_each_with_a_label_of_its_own() -> None:
    assert str(NAMED) == "nodes.example.net:30443"
    assert named({}).rules.hosts == {"nodes.example.net", "lb.example.net"}
    [frontend] = compose(
        Claims(), named({"nodes.example.net": ("192.0.2.7", "2001:db8::7")}), ServerStates()
    ).frontends.values()
    assert [(server.name, str(server.address), server.weight) for server in frontend.servers] == [
        ("nodes.example.net:30443@192.0.2.7", "192.0.2.7:30443", 3),
        ("nodes.example.net:30443@2001:db8::7", "[2001:db8::7]:30443", 3),
        ("192.0.2.1:1", "192.0.2.1:1", 1),
    ]


def test_a_name_that_leads_to_pylb_itself_or_to_nowhere_is_no_server() -> None:
    resolved = {"lb.example.net": ("127.0.0.1", "203.0.113.9", "169.254.169.254", "192.0.2.8")}
    [frontend] = compose(Claims(), named(resolved), ServerStates()).frontends.values()
    assert [str(server.address) for server in frontend.servers] == ["192.0.2.8:443", "192.0.2.1:1"]


def test_names_without_an_address_are_known_by_their_frontend() -> None:
    listen = Listen("tcp", "*", 443)
    assert named({}).unresolved == {listen: ("nodes.example.net", "lb.example.net")}
    assert named({"lb.example.net": ("192.0.2.8",), "nodes.example.net": ()}).unresolved == {listen: ("nodes.example.net",)}
    assert named({"lb.example.net": ("192.0.2.8",), "nodes.example.net": ("192.0.2.7",)}).unresolved == {}


def test_a_registration_does_not_get_the_label_of_a_static_frontend() -> None:
    """Whichever came first: the label is made with the table, so a reload that adds the static name changes it."""
    claims = having(native(name="web", ports={443: 30443}))
    rules = static_rules(static("web-443", "*:8443"))
    names = {listen.port: one.name for listen, one in compose(claims, rules, ServerStates()).frontends.items()}
    assert names == {443: "web@443", 8443: "web-443"}
    before = compose(claims, FREE, ServerStates())
    assert before.frontends[on(443)].name == "web-443"
    assert compose(claims, rules, ServerStates(), before).frontends[on(443)].name == "web@443"


# ---------------------------------------------------------------- what has become pylb itself


def test_a_server_that_has_become_pylb_itself_is_out_and_comes_back() -> None:
    """Its address came to this machine after it was registered, as a VIP does."""
    claims = having(native(ip=A), native(instance="pod-2", ip=B))
    assert ranks(claims) == {f"{A}:30443": 0, f"{B}:30443": 0}
    here = static_rules(static("s", "*:30443"), own_ips=frozenset({A}))
    assert ranks(claims, here) == {f"{B}:30443": 0}
    assert ranks(claims, static_rules(static("s", "*:30443"))) == {f"{A}:30443": 0, f"{B}:30443": 0}


def test_a_server_that_was_displaced_and_has_become_pylb_itself_is_out() -> None:
    claims = enter(having(native(ip=A)), native(ip=B), proven=frozenset({at(f"{A}:30443")})).claims
    assert f"{A}:30443" in ranks(claims, proven=frozenset({at(f"{A}:30443")}))
    here = static_rules(static("s", "*:30443"), own_ips=frozenset({A}))
    assert f"{A}:30443" not in ranks(claims, here, proven=frozenset({at(f"{A}:30443")}))


def test_a_static_line_that_would_come_back_is_out_and_a_service_of_this_machine_is_not() -> None:
    lines = ("198.51.100.7:443", "127.0.0.1:443", "203.0.113.9:443", "127.0.0.1:8404", "127.0.0.1:8443")
    rules = static_rules(static("web", "203.0.113.9:443", *lines), reserved_ports=frozenset({8404}))
    claims = having(native(name="x", ip=B, ports={8443: 30443}))
    made = compose_frontend(claims, rules, ServerStates(), on(443, "203.0.113.9"))
    assert made is not None
    assert [str(server.address) for server in made.servers] == ["198.51.100.7:443", "127.0.0.1:443", "127.0.0.1:8404"]


def test_limits_by_source_are_asked_for_or_not() -> None:
    assert not SourceLimits(rate=5).by_source
    assert SourceLimits(per_source=1).by_source
    assert SourceLimits(per_source_rate=1).by_source


# ---------------------------------------------------------------- routes


def test_a_port_with_routes_alone_is_in_the_table_without_servers_and_under_a_name_that_nobody_can_have() -> None:
    claims = having(routed("443 git.example.net"))
    table = compose(claims, FREE, ServerStates())
    port, route = table.frontends.values()
    assert (port.name, port.listen, port.servers) == ("@443", on(443), ())
    assert (route.name, route.listen) == ("web-443:git.example.net", on(443, server_name="git.example.net"))
    assert [server.address for server in route.servers] == [at(f"{A}:30443")]
    left = release(claims, claims.registrations)
    assert not compose(left.claims, FREE, ServerStates(), table, left.touched).frontends


def test_a_route_that_joins_a_static_frontend_has_its_name_and_policy_and_a_static_route_its_own() -> None:
    patient = Policy(timeouts=Timeouts(connect=9.0))
    frontends = (
        replace(static("web", "*:443", allows_names=True), policy=patient),
        static("web:git.example.net", "*:443 git.example.net", "198.51.100.7:30443"),
    )
    rules = static_rules(*frontends)
    table = compose(having(routed("443 git.example.net", "443 *.apps.example.net"), static_rules=rules), rules, ServerStates())
    found = {one.name: (one.policy.timeouts.connect, len(one.servers)) for one in table.frontends.values()}
    assert found == {"web": (9.0, 0), "web:git.example.net": (5.0, 2), "web:*.apps.example.net": (9.0, 1)}
