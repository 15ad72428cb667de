"""A refused registration gets its clear error and changes nothing: not in memory, not on disk, not a port."""

import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.balancer import ADMIN, NODEPORT, WEBHOOK, Balancer, ask
from tests.support.netns import Lab
from tests.support.peers import need
from tests.support.waiting import eventually
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

TAKEN = 8000  # by another process
WITHOUT_CAPABILITIES = ("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs")  # of setpriv


class Bad(NamedTuple):
    """A call and the answer it has to get; `detail` and `hint` are parts of the texts."""

    what: str
    status: int
    error: str
    detail: str
    hint: str = ""
    body: Any = None
    raw: bytes | None = None
    token: str = "app"
    name: str = "new/pod-a"


def wants(port: Any = 8443, target: Any = NODEPORT, **more: Any) -> dict[str, Any]:
    return {"frontends": [{"port": port, "target_port": target}], **more}


BAD = (
    Bad("port 0", 422, "invalid", "frontends[0].port: ", body=wants(0)),
    Bad("port 65536", 422, "invalid", "frontends[0].port: ", body=wants(65536)),
    Bad("a port as text", 422, "invalid", "frontends[0].port: ", body=wants("443 ")),
    Bad("a port as a fraction", 422, "invalid", "frontends[0].port: ", body=wants(443.5)),
    Bad("a port that is true", 422, "invalid", "frontends[0].port: ", body=wants(True)),
    Bad(
        "one good port, one bad",
        422,
        "invalid",
        "frontends[1].port: ",
        body={"frontends": [*wants()["frontends"], *wants(-1)["frontends"]]},
    ),
    Bad(
        "a port out of the token's scope",
        403,
        "port_forbidden",
        "may not open port 22 (it may: 25-29999)",
        "widen `ports`",
        wants(22),
    ),
    Bad("the webhook's port", 403, "port_forbidden", f"port {WEBHOOK} is pylb's own", "use another port", wants(WEBHOOK)),
    Bad("the admin's port", 403, "port_forbidden", f"port {ADMIN} is pylb's own", "use another port", wants(ADMIN)),
    Bad("no NodePort", 403, "target_forbidden", "may not aim at port 22", "NodePort", wants(target=22)),
    Bad(
        "someone else's port",
        409,
        "port_owned",
        "port 443 is owned by registration 'shop' of token 'other'",
        "takeover",
        wants(443),
    ),
    Bad(
        "another name's port",
        409,
        "port_owned",
        "port 8080 is owned by registration 'web' of token 'app'",
        "takeover",
        wants(8080),
    ),
    Bad("a port in use", 409, "port_in_use", f"port {TAKEN} is in use by another process", "ss -tanp", wants(TAKEN)),
    Bad(
        "a port in use beside a free one",
        409,
        "port_in_use",
        f"port {TAKEN} is in use by another process",
        "ss -tanp",
        {"frontends": [*wants(TAKEN - 1)["frontends"], *wants(TAKEN)["frontends"]]},  # the free one is opened first
    ),
    Bad(
        "loopback",
        422,
        "target_refused",
        "127.0.0.1 cannot be a target: it is loopback",
        "targets",
        wants(address="127.0.0.1"),
    ),
    Bad(
        "loopback in other clothes",
        422,
        "target_refused",
        "127.0.0.1 cannot be a target",
        "targets",
        wants(address="::ffff:127.0.0.1"),
    ),
    Bad("loopback of IPv6", 422, "target_refused", "::1 cannot be a target: it is loopback", "targets", wants(address="::1")),
    Bad("the metadata service", 422, "target_refused", "it is link-local", body=wants(address="169.254.169.254")),
    Bad(
        "a stranger's address",
        403,
        "target_forbidden",
        "may not name the address 198.51.100.7",
        "targets",
        wants(address="198.51.100.7"),
    ),
    Bad("a wrong token", 401, "unauthorized", "no valid token", "config", wants(), token="wrong" * 8),
    Bad("no token", 401, "unauthorized", "the call carries no valid token", "config", wants(), token=""),
    Bad("no JSON", 400, "invalid_json", "the body is not JSON: ", raw=b'{"frontends":[{"port":8443,'),
    Bad("no object", 422, "invalid", "the body is not a JSON object", raw=b"[]"),
    Bad("no UTF-8", 400, "invalid_json", "the body is not JSON: ", raw=b'{"frontends":"\xff"}'),
    Bad("a key twice", 400, "invalid_json", "the key 'ttl' appears twice", raw=b'{"frontends":[],"ttl":60,"ttl":61}'),
    Bad("an empty body", 400, "invalid_json", "the body is not JSON: ", raw=b""),
    Bad("a misspelt key", 422, "invalid", "tll: unknown key", "did you mean 'ttl'?", wants(tll=60)),
    Bad("a TTL too long", 422, "invalid", "ttl: 100000 is not within", body=wants(ttl=100000)),
    Bad(
        "a body over 4 KiB",
        413,
        "body_too_large",
        "the body is over 4096 bytes",
        raw=json.dumps(wants()).encode().ljust(4097),
    ),
    Bad("a name that is none", 422, "invalid", "is not a valid name", body=wants(), name="%20/pod-a"),
)


@pytest.fixture
def busy(lab: Lab, pylb: Balancer, world: World) -> Balancer:
    """With two registrations of two tokens, and a port that is somebody else's."""
    world.app_at(lab.lb, "another", str(TAKEN))
    pylb.register("web/pod-a", {8080: NODEPORT}, at=lab.a)
    pylb.register("shop/pod-b", {443: NODEPORT}, at=lab.b, token="other")
    return pylb


def refuse(pylb: Balancer, lab: Lab, bad: Bad) -> None:
    answer = pylb.call("PUT", bad.name, bad.body, raw=bad.raw, at=lab.a, token=bad.token)
    said = answer.json
    assert (answer.status, said["error"]) == (bad.status, bad.error), (bad.what, answer)
    assert bad.detail in said["detail"], (bad.what, said)
    assert bad.hint in said.get("hint", ""), (bad.what, said)


def test_each_bad_registration_gets_its_error_and_changes_nothing(lab: Lab, busy: Balancer) -> None:
    before = busy.everything()
    assert {8080, 443} <= before[-1]

    for bad in BAD:
        refuse(busy, lab, bad)
        assert busy.everything() == before, bad.what

    refused = busy.admin("/v1/rejected").json["rejected"]
    assert {one["error"] for one in refused} >= {"port_owned", "port_in_use", "target_refused", "port_forbidden"}


def test_of_two_tokens_that_race_for_a_port_one_gets_it_and_the_others_calls_change_nothing(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    world.app(lab.a, "app")
    world.app(lab.b, "other")
    racers = [(token, node) for token, node in (("app", lab.a), ("other", lab.b)) for _ in range(4)]
    start = threading.Barrier(len(racers))

    def race(number: int, port: int) -> tuple[str, int]:
        token, node = racers[number]
        start.wait(5)
        return token, pylb.call("PUT", f"{token}/pod-{number}", wants(port), at=node, token=token).status

    with ThreadPoolExecutor(len(racers)) as pool:
        for port in range(20000, 20010):
            answers = Counter(pool.map(race, range(len(racers)), [port] * len(racers)))
            winner = ask(lab.client, port)[0]
            loser = "other" if winner == "app" else "app"
            assert answers[winner, 409] == answers[loser, 200] == answers[loser, 201] == 0, answers
            assert answers[loser, 409] == 4
            [frontend] = [one for one in pylb.table()["frontends"] if one["port"] == port]
            assert {held.partition("/")[0] for one in frontend["servers"] for held in one["held_by"]} == {winner}
            for number in range(len(racers)):
                token, node = racers[number]
                assert pylb.call("DELETE", f"{token}/pod-{number}", at=node, token=token).status == 200
    assert pylb.registrations() == []


def test_a_port_below_1024_without_the_capability_is_refused_with_what_to_do(
    lab: Lab, balancer: Balancer, world: World
) -> None:
    lab.lb.run("sysctl", "-qw", "net.ipv4.ip_unprivileged_port_start=1024")
    balancer.start(wrapper=(need("setpriv"), *WITHOUT_CAPABILITIES))
    world.app(lab.a, "app")
    balancer.register("web/pod-a", {8080: NODEPORT}, at=lab.a)
    before = balancer.everything()

    refuse(
        balancer,
        lab,
        Bad("port 443", 403, "port_privileged", "pylb may not open port 443", "CAP_NET_BIND_SERVICE", wants(443)),
    )

    assert balancer.everything() == before
    assert ask(lab.client, 8080)[0] == "app"


@pytest.fixture
def small_disk(balancer: Balancer) -> Path:
    """pylb serves, with 64 KiB for its state directory: a tmpfs in its own mount namespace (`ip netns exec` made one).

    Returns the directory as pylb sees it. It goes with the process.
    """
    folder = balancer.state_dir
    folder.mkdir()
    balancer.start(wrapper=("sh", "-c", 'mount -t tmpfs -o size=64k,mode=700 tmpfs "$0" && exec "$@"', str(folder)))
    balancer.state_dir = Path(f"/proc/{balancer.running.pid}/root") / folder.relative_to("/")
    return balancer.state_dir


def fill(folder: Path) -> Path:
    """Until not a byte is left."""
    rest = folder / "rest"
    with rest.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return rest


def test_while_the_disk_is_full_new_names_are_refused_and_known_ones_may_still_move(
    lab: Lab, balancer: Balancer, small_disk: Path, world: World
) -> None:
    world.app(lab.a, "old")
    world.app(lab.b, "new")
    balancer.register("app/pod", {8443: NODEPORT}, at=lab.a)
    rest = fill(small_disk)
    before = balancer.everything()

    for what, body, name in (
        ("a new name", wants(8444), "new/pod-a"),
        (
            "a new port of a known name",
            {"frontends": [*wants(8443)["frontends"], *wants(8444)["frontends"]]},
            "app/pod",
        ),
    ):
        refuse(balancer, lab, Bad(what, 503, "state_not_writable", "No space left on device", "disk", body, name=name))
        assert balancer.everything() == before, what

    answer = balancer.register("app/pod", {8443: NODEPORT}, at=lab.b)
    assert (answer["result"], answer["durable"]) == ("moved", False)
    assert ask(lab.client, 8443)[0] == "new"
    assert balancer.metric("pylb_state_durable") == 0
    assert balancer.everything()[2] == before[2]

    rest.unlink()
    eventually(lambda: balancer.metric("pylb_state_durable") == 1, within=15, what="the snapshot is written after all")
    assert "203.0.113.20" in (small_disk / "state.json").read_text()
    assert balancer.register("new/pod-a", {8444: NODEPORT}, at=lab.a)["durable"] is True
