"""The environment: every notation, and every mistake at once."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phonehome.settings import Settings, SettingsError, parse
from phonehome.values import Endpoint, Frontend, parse_frontend, parse_url
from tests.fuzz.measures import events
from tests.phonehome.peer import ENVIRON, TOKEN, no_files, settings_for

LEGACY = {
    "REPEAT_INTERVAL": "300",
    "WEBHOOK": "http://lb.example.net:9000/hooks/update-haproxy",
    "WEBHOOK_TOKEN": TOKEN,
    "FRONTEND_PORT": "8443",
    "BACKEND_PORT": "30843",
    "NAME": "mqtt",
    "SEND_PROXY": "send-proxy-v2",
}


def read(environ: dict[str, str], *, once: bool = False, need_frontends: bool = True) -> Settings:
    return parse(environ, hostname="pod-1", read_file=no_files, once=once, need_frontends=need_frontends)


def problems(environ: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        read(environ)
    return caught.value.problems


def test_four_variables_are_enough() -> None:
    settings = read(ENVIRON)

    assert settings.endpoints == (Endpoint(False, "127.0.0.1", 9000),)
    assert (settings.name, settings.instance, settings.address) == ("mosquitto", "pod-1", "source")
    assert settings.frontends == (Frontend(443, 30443),)
    assert (settings.ttl, settings.once, settings.wait, settings.ca) == (60, False, (), None)


def test_a_check_is_for_all_ports_or_for_the_ports_it_names() -> None:
    two = {**ENVIRON, "PYLB_FRONTENDS": "443:30443 25:30025"}
    check = {"http": "/health", "port": 30880}

    def checks(text: str) -> list[object]:
        return [frontend.health for frontend in read({**two, "PYLB_HEALTH": text}).frontends]

    assert checks("") == [None, None]
    assert checks("tcp") == ["tcp", "tcp"]
    assert checks(json.dumps(check)) == [check, check]
    assert checks(json.dumps({"25": check})) == [None, check]


@pytest.mark.parametrize("text", ["http", "[]", "{}", "{", "1", '"udp"', "null", '{"26": "tcp"}', "[" * 100_000])
def test_a_check_that_cannot_be_meant_is_named(text: str) -> None:
    [problem] = problems({**ENVIRON, "PYLB_HEALTH": text})
    assert problem.startswith("PYLB_HEALTH: ")


def test_the_environment_of_the_legacy_image_is_understood() -> None:
    settings = read(LEGACY)

    assert settings.endpoints == (Endpoint(False, "lb.example.net", 9000, ""),)
    assert settings.frontends == (Frontend(8443, 30843, "v2"),)
    assert (settings.name, settings.token, settings.ttl, settings.once) == ("mqtt", TOKEN, 900, False)


def test_pylb_variables_win_over_legacy_ones() -> None:
    settings = read({**LEGACY, **ENVIRON, "PYLB_TTL": "5m"})

    assert settings.endpoints[0].host == "127.0.0.1"
    assert (settings.name, settings.frontends, settings.ttl) == ("mosquitto", (Frontend(443, 30443),), 300)


def test_empty_variables_count_as_unset() -> None:
    assert read({**dict.fromkeys([*LEGACY, "PYLB_TTL", "PYLB_WAIT", "PYLB_CA", "PYLB_INSTANCE"], ""), **ENVIRON}) == read(
        ENVIRON
    )


def test_every_mistake_is_listed_at_once_with_its_variable_and_an_example() -> None:
    wrong = {
        "PYLB_URL": "ftp://lb.example.net",
        "PYLB_TOKEN": "two words",
        "PYLB_NAME": "a/b",
        "PYLB_FRONTENDS": "443:30443 443:1 70000:1 25",
        "PYLB_ADDRESS": "somewhere",
        "PYLB_TTL": "5",
        "PYLB_WAIT": "nowhere",
        "PYLB_CA": "/does/not/exist",
    }
    found = problems(wrong)

    for name in wrong:
        mine = [line for line in found if line.startswith(f"{name}: ")]
        assert mine, name
        assert all(f"example: {name}=" in line for line in mine)
    assert len([line for line in found if line.startswith("PYLB_FRONTENDS")]) == 3
    assert "two words" not in " ".join(found)


def test_an_empty_environment_names_what_is_missing() -> None:
    names = {line.split(":")[0] for line in problems({})}
    assert names == {"PYLB_URL", "PYLB_TOKEN", "PYLB_NAME", "PYLB_FRONTENDS"}


@pytest.mark.parametrize(
    ("text", "frontend"),
    [
        ("443:30443", Frontend(443, 30443)),
        ("25:30025/proxy=v2", Frontend(25, 30025, "v2")),
        ("443/udp:30443", Frontend(443, 30443, protocol="udp")),
        ("443/tcp:30443/backup", Frontend(443, 30443, backup=True)),
        ("443/udp:30443/proxy=v2,weight=3", Frontend(443, 30443, "v2", 3, protocol="udp")),
        ("20000-20099:30000-30099", Frontend(20000, 30000, last=20099, target_last=30099)),
        ("20000-20099/udp:30000", Frontend(20000, 30000, protocol="udp", last=20099)),
        ("25:30025/proxy=v1/weight=3/backup", Frontend(25, 30025, "v1", 3, True)),
        ("443:30443/names=a.net+*.b.net", Frontend(443, 30443, server_names=("a.net", "*.b.net"))),
        ("443:30443/names=allowed", Frontend(443, 30443, allows_names=True)),
        ("25:30025/proxy=none,weight=1", Frontend(25, 30025, "none", 1)),
    ],
)
def test_a_frontend_is_a_pair_of_ports_with_options(text: str, frontend: Frontend) -> None:
    assert parse_frontend(text) == frontend


@pytest.mark.parametrize(
    "text",
    [
        "443",
        ":30443",
        "443:",
        "0:1",
        "1:65536",
        "443:30443/",
        "443:30443/proxy=v3",
        "443:30443/weight=x",
        "443:30443/weight=0",
        "443:30443/weight=257",
        "443:1,80:2",
        "443/sctp:30443",
        "443:30443/udp",
        "20-10:30-20",
        "10-20:30-41",
        "10:30-40",
        "4\u0663:1",
    ],
)
def test_a_malformed_frontend_is_refused(text: str) -> None:
    assert any(line.startswith("PYLB_FRONTENDS: ") for line in problems({**ENVIRON, "PYLB_FRONTENDS": text}))


def test_a_protocol_in_the_wrong_place_is_shown_in_the_right_one() -> None:
    [problem] = problems({**ENVIRON, "PYLB_FRONTENDS": "443:30443/udp"})
    assert "the protocol stands behind the first port: 443/udp:30443" in problem


def test_a_port_may_be_there_once_for_each_protocol_and_a_check_may_be_for_one_of_them() -> None:
    both = {**ENVIRON, "PYLB_FRONTENDS": "443:30443 443/udp:30443", "PYLB_HEALTH": '{"443/udp": {"port": 10256}}'}
    assert [frontend.health for frontend in read(both).frontends] == [None, {"port": 10256}]
    [problem] = problems({**ENVIRON, "PYLB_FRONTENDS": "10-20/udp:30000 15/udp:30015"})
    assert problem.startswith("PYLB_FRONTENDS: port 15/udp is listed twice")
    [problem] = problems({**both, "PYLB_HEALTH": '{"53/udp": "tcp"}'})
    assert problem.startswith("PYLB_HEALTH: port 53/udp is not in PYLB_FRONTENDS")


@given(
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.none() | st.sampled_from(["none", "v1", "v2"]),
    st.none() | st.integers(1, 256),
    st.booleans(),
)
def test_what_a_frontend_says_is_what_it_becomes(
    port: int, target: int, proxy: str | None, weight: int | None, backup: bool
) -> None:
    text = (
        f"{port}:{target}"
        + ("" if proxy is None else f"/proxy={proxy}")
        + ("" if weight is None else f"/weight={weight}")
        + ("/backup" * backup)
    )
    assert parse_frontend(text) == Frontend(port, target, proxy, weight, backup)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("https://lb.example.net", Endpoint(True, "lb.example.net", 443)),
        ("http://lb.example.net", Endpoint(False, "lb.example.net", 80)),
        ("https://[2001:db8::1]:9000/", Endpoint(True, "2001:db8::1", 9000)),
        ("https://lb.example.net/pylb/", Endpoint(True, "lb.example.net", 443, "/pylb")),
        ("https://b\u00fccher.example.net:9000", Endpoint(True, "xn--bcher-kva.example.net", 9000)),
    ],
)
def test_a_url_names_scheme_host_port_and_prefix(url: str, endpoint: Endpoint) -> None:
    assert parse_url(url) == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "lb.example.net:9000",
        "http://",
        "http://h:99999",
        "http://h:0",
        "http://h/?a=1",
        "http://h/#x",
        "http://a b/",
        "http://h/\u00e9",
    ],
)
def test_what_is_no_url_of_a_load_balancer_is_refused(url: str) -> None:
    assert any(line.startswith("PYLB_URL: ") for line in problems({**ENVIRON, "PYLB_URL": url}))


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    found = problems({**ENVIRON, "PYLB_URL": "http://user:hunter2@lb.example.net:port"})
    assert "PYLB_TOKEN" in found[0]
    assert "hunter2" not in found[0]


def test_several_load_balancers_are_separated_by_commas() -> None:
    settings = read({**ENVIRON, "PYLB_URL": "https://a.example.net:9000, https://b.example.net:9000,"})
    assert [endpoint.label for endpoint in settings.endpoints] == ["a.example.net:9000", "b.example.net:9000"]
    assert "twice" in problems({**ENVIRON, "PYLB_URL": "http://a.example.net,http://a.example.net:80"})[0]


@pytest.mark.parametrize(("text", "ttl"), [("10", 10), ("60s", 60), ("5m", 300), ("24h", 86400)])
def test_a_ttl_has_a_unit_or_is_seconds(text: str, ttl: int) -> None:
    assert read({**ENVIRON, "PYLB_TTL": text}).ttl == ttl


@pytest.mark.parametrize("text", ["9", "25h", "0", "-1", "1.5m", "60 s", "once"])
def test_a_ttl_outside_the_rules_is_refused(text: str) -> None:
    assert problems({**ENVIRON, "PYLB_TTL": text})[0].startswith("PYLB_TTL: ")


@pytest.mark.parametrize(("interval", "ttl"), [("1", 10), ("300", 900), ("5m", 900), ("90000", 86400)])
def test_a_legacy_interval_becomes_a_lease_of_three_intervals(interval: str, ttl: int) -> None:
    assert read({**ENVIRON, "REPEAT_INTERVAL": interval}).ttl == ttl


def test_once_never_goes_stale_unless_a_ttl_is_given() -> None:
    legacy = read({**ENVIRON, "REPEAT_INTERVAL": "once"})
    verb = read(ENVIRON, once=True)
    with_ttl = read({**ENVIRON, "PYLB_TTL": "60"}, once=True)

    assert [(s.ttl, s.once) for s in (legacy, verb, with_ttl)] == [(None, True), (None, True), (60, True)]
    assert problems({**ENVIRON, "REPEAT_INTERVAL": "often"})[0].startswith("REPEAT_INTERVAL: ")


@pytest.mark.parametrize(("keyword", "version"), [("", "none"), ("send-proxy", "v1"), ("send-proxy-v2", "v2")])
def test_the_legacy_keyword_is_haproxys(keyword: str, version: str) -> None:
    assert read({**LEGACY, "SEND_PROXY": keyword}).frontends[0].proxy_protocol == version


def test_half_a_legacy_port_pair_is_a_mistake() -> None:
    assert problems({**LEGACY, "BACKEND_PORT": ""}) == ("BACKEND_PORT: missing; example: BACKEND_PORT=30443",)
    assert problems({**LEGACY, "SEND_PROXY": "yes"})[0].startswith("SEND_PROXY: ")


def test_a_release_needs_no_frontends() -> None:
    environ = {name: value for name, value in ENVIRON.items() if name != "PYLB_FRONTENDS"}
    assert read(environ, need_frontends=False).frontends == ()


def test_a_token_file_is_read_without_its_newline() -> None:
    environ = {**ENVIRON, "PYLB_TOKEN": "", "PYLB_TOKEN_FILE": "/run/secrets/token"}
    settings = parse(environ, hostname="pod-1", read_file=lambda _: f"{TOKEN}\n")
    assert (settings.token, settings.token_file) == (TOKEN, "/run/secrets/token")


def test_a_token_file_that_cannot_be_used_says_why() -> None:
    environ = {**ENVIRON, "PYLB_TOKEN": "", "PYLB_TOKEN_FILE": "/run/secrets/token"}
    assert "No such file" in problems(environ)[0]
    assert "keep one" in problems({**environ, "PYLB_TOKEN": TOKEN})[0]
    with pytest.raises(SettingsError, match="empty"):
        parse(environ, hostname="pod-1", read_file=lambda _: "\n")


def test_the_token_shows_in_no_repr() -> None:
    assert TOKEN not in repr(read(ENVIRON))


def test_addresses_are_a_source_or_an_ip() -> None:
    assert [read({**ENVIRON, "PYLB_ADDRESS": text}).address for text in ("source4", "192.0.2.1", "2001:DB8::1")] == [
        "source4",
        "192.0.2.1",
        "2001:db8::1",
    ]


def test_a_literal_url_cannot_be_called_over_the_other_family() -> None:
    assert problems({**ENVIRON, "PYLB_ADDRESS": "source6"}) == (
        "PYLB_ADDRESS: source6 cannot call 127.0.0.1:9000; example: PYLB_ADDRESS=source4",
    )


def test_what_to_wait_for_is_a_list_of_host_and_port() -> None:
    settings = read({**ENVIRON, "PYLB_WAIT": "127.0.0.1:8080 [::1]:25,app:1883"})
    assert settings.wait == (("127.0.0.1", 8080), ("::1", 25), ("app", 1883))


@pytest.mark.parametrize("text", [":80", "app", "app:", "::1:80", "app:http"])
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    assert problems({**ENVIRON, "PYLB_WAIT": text})[0].startswith("PYLB_WAIT: ")


def test_a_ca_is_a_file_or_its_text() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----"
    from_file = parse({**ENVIRON, "PYLB_CA": "/etc/ca.crt"}, hostname="pod-1", read_file=lambda _: pem)

    assert from_file.ca == read({**ENVIRON, "PYLB_CA": pem}).ca == pem
    with pytest.raises(SettingsError, match="no PEM certificate"):
        parse({**ENVIRON, "PYLB_CA": "/etc/ca.crt"}, hostname="pod-1", read_file=lambda _: "DER")


PIN = "A" * 43
JOIN = f"pylb://mqtt:{TOKEN}@lb.example.net:9000/{PIN}"
ONLY_JOIN = {"PYLB_FRONTENDS": "443:30443", "PYLB_JOIN": JOIN}


def test_a_join_string_is_address_key_token_and_name() -> None:
    settings = read(ONLY_JOIN)
    [endpoint] = settings.endpoints
    assert (endpoint.secure, endpoint.label, endpoint.pins, endpoint.token) == (True, "lb.example.net:9000", (PIN,), TOKEN)
    assert settings.name == "mqtt"
    assert TOKEN not in repr(settings)


def test_a_join_string_may_pin_the_next_key_too() -> None:
    [endpoint] = read({**ONLY_JOIN, "PYLB_JOIN": f"{JOIN}/{'B' * 43}"}).endpoints
    assert endpoint.pins == (PIN, "B" * 43)


@pytest.mark.parametrize(
    "pasted",
    ["PYLB_JOIN={}", "PYLB_JOIN='{}'", ' "{}" \n', '"PYLB_JOIN={}"', 'export PYLB_JOIN="{}"\n', "PYLB_JOIN={}, PYLB_JOIN={}x"],
)
def test_a_join_string_may_be_pasted_with_its_variable_and_quotes(pasted: str) -> None:
    other = JOIN.replace("lb.", "lb2.")[:-1]
    text = pasted.replace("{}x", f"{other}A").replace("{}", JOIN)
    for environ in ({"PYLB_JOIN": text}, {"PYLB_JOIN_FILE": "/join"}):
        found = parse({"PYLB_FRONTENDS": "443:30443", **environ}, hostname="pod-1", read_file=lambda _: text)
        assert found.endpoints[0] == read(ONLY_JOIN).endpoints[0]
        assert len(found.endpoints) == text.count("pylb://")


def test_an_empty_environment_is_pointed_to_the_join_string() -> None:
    assert any("PYLB_JOIN with the output of `pylb token create`" in line for line in problems({}))


def test_each_load_balancer_has_a_join_string_of_its_own() -> None:
    settings = read({**ONLY_JOIN, "PYLB_JOIN": f"{JOIN}, pylb://mqtt:{TOKEN}x@[2001:db8::1]:9000\n"})
    assert [(one.label, one.pins, one.token) for one in settings.endpoints] == [
        ("lb.example.net:9000", (PIN,), TOKEN),
        ("[2001:db8::1]:9000", (), TOKEN + "x"),
    ]


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"PYLB_JOIN": f"http://mqtt:{TOKEN}@lb:9000"}, "PYLB_JOIN: number 1: not a join string"),
        ({"PYLB_JOIN": f"pylb://{TOKEN}@lb:9000"}, "PYLB_JOIN: number 1: not a join string"),
        ({"PYLB_JOIN": f"pylb://mqtt:{TOKEN}@lb\0.example.net:9000"}, "is not a host name"),
        ({"PYLB_JOIN": JOIN[:-1]}, "one or two pins of a key (43 characters each) are expected: was it cut?"),
        ({"PYLB_JOIN": f"{JOIN}/{PIN[:-1]}"}, "one or two pins of a key (43 characters each) are expected: was it cut?"),
        ({"PYLB_JOIN": f"{JOIN}/{PIN}/{PIN}"}, "one or two pins of a key (43 characters each) are expected: was it cut?"),
        ({"PYLB_JOIN": f"{JOIN} {JOIN}"}, "lb.example.net:9000 is listed twice"),
        ({"PYLB_URL": "http://lb:9000"}, "PYLB_URL: set together with PYLB_JOIN"),
        ({"PYLB_JOIN_FILE": "/x"}, "set together with PYLB_JOIN"),
        ({"PYLB_JOIN": f"{JOIN} pylb://web:{TOKEN}@other:9000"}, "PYLB_NAME: missing: the join strings have several names"),
    ],
)
def test_a_join_string_that_cannot_be_meant_is_named_without_its_secret(environ: dict[str, str], says: str) -> None:
    found = problems({**ONLY_JOIN, **environ})
    assert says in found[0]
    assert TOKEN not in "".join(found)


def test_a_file_with_join_strings_that_cannot_be_read_is_named() -> None:
    environ = {"PYLB_FRONTENDS": "443:30443", "PYLB_JOIN_FILE": "/run/secrets/pylb/join"}
    with pytest.raises(SettingsError) as caught:
        parse(environ, hostname="pod-1", read_file=no_files)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["PYLB_JOIN_FILE"]
    read_it = parse(environ, hostname="pod-1", read_file=lambda _: JOIN + "\n")
    assert (read_it.name, read_it.join_file) == ("mqtt", "/run/secrets/pylb/join")


OWN = ["ADDRESS", "TTL", "WAIT", "CA", "TOKEN_FILE", "INSTANCE", "JOIN", "JOIN_FILE", "HEALTH"]
NAMES = sorted({*ENVIRON, *LEGACY, *(f"PYLB_{name}" for name in OWN)})


TEXTS = st.text(max_size=20) | st.text("0123456789:/=., sm", max_size=12) | st.text(max_size=12).map("http://".__add__)


@given(st.dictionaries(st.sampled_from(NAMES), TEXTS, max_size=4))
def test_any_environment_gives_settings_or_a_list_of_problems(changes: dict[str, str]) -> None:
    found: tuple[str, ...] = ()
    settings: Settings | None = None
    try:
        settings = read({**ENVIRON, **changes})
    except SettingsError as exc:
        found = exc.problems
    assert bool(found) != bool(settings)
    assert all("; example: " in line or "remove one of them" in line for line in found)


@pytest.mark.parametrize("variable", ["PYLB_FRONTENDS", "PYLB_URL", "PYLB_JOIN"])
def test_an_entry_is_not_searched_among_all_others(variable: str) -> None:
    entry = {
        "PYLB_FRONTENDS": "{}:30443 ",
        "PYLB_URL": "https://lb{}.example.net,",
        "PYLB_JOIN": f"pylb://mqtt:{TOKEN}@lb{{}}.example.net ",
    }[variable]

    def work(many: int) -> int:
        environ = {variable: "".join(entry.format(number) for number in range(1, many + 1))}
        return events(problems, environ)

    assert work(400) <= 2.6 * work(200)


def test_a_port_may_be_listed_again_for_other_names_only() -> None:
    twice = {"PYLB_FRONTENDS": "443:30443/names=a.net 443:30444/names=b.net 443:30445/names=allowed"}
    assert [one.server_names for one in settings_for(**twice).frontends] == [("a.net",), ("b.net",), ()]
    for entries, what in (
        ("443:30443/names=a.net 443:30444/names=b.net+a.net", "a.net on port 443 is listed twice"),
        ("443:30443 443:30444/names=allowed", "port 443 is listed twice"),
    ):
        with pytest.raises(SettingsError, match=what):
            settings_for(PYLB_FRONTENDS=entries)
