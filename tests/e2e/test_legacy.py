"""The containers of the original image: their exact requests by real curl, from a pod; only the host name is another."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.balancer import NODEPORT, TOKENS, WEBHOOK, Balancer, ask
from tests.support.netns import CLIENT, LB, Lab, Node
from tests.support.peers import need
from tests.support.processes import Processes
from tests.support.waiting import eventually
from tests.support.world import World

pytestmark = [pytest.mark.e2e, pytest.mark.root]

UNAUTHORIZED, NOT_FOUND = "Hook rules were not satisfied.", "Hook not found."
# What `curl ifconfig.co` prints today: quotes and newlines, which the client's script pastes into its JSON as they are.
PAGE = """<!DOCTYPE html>
<html lang="en">
  <head><title>What is my IP address? &mdash; ifconfig.co</title>
    <script>window.data = {"ip": "198.51.100.9", "frontend-port":"22"};</script>
  </head>
  <body class="page">198.51.100.9</body>
</html>"""
MAIL = {25: "send-proxy", 110: "send-proxy", 465: "", 587: "", 993: "send-proxy", 995: "send-proxy"}


class Said(NamedTuple):
    status: int
    text: str


class Curl:
    """The client's call, word for word; it runs when made, `answer` waits for it."""

    def __init__(
        self,
        processes: Processes,
        node: Node,
        body: str,
        *,
        token: str = TOKENS["app"],
        path: str = "/hooks/update-haproxy",
        method: str = "POST",
    ) -> None:
        self._answer: Path = processes.folder / f"answer-{len(processes.all)}"
        argv = [need("curl"), "-s", "-X", method]
        argv += ["-H", "Content-Type:application/json", "-H", f"X-Funkypenguin-Token:{token}"]
        argv += ["-d", body] if method == "POST" else []
        argv += ["-o", str(self._answer), "-w", "%{http_code}", f"http://{LB}:{WEBHOOK}{path}"]
        self._process = processes.start("curl", argv, at=node.pod)

    def answer(self) -> Said:
        assert self._process.wait() == 0
        return Said(int(self._process.text()), self._answer.read_text())


def body(port: int, target: int, *, action: str = "add", name: str = "mail", send_proxy: str = "", dst_ip: str = "") -> str:
    """The template of the client's script, filled as a shell does: nothing is quoted."""
    return (
        f'{{"dst-ip":"{dst_ip}","frontend-port":"{port}","backend-port":"{target}",'
        f'"action":"{action}","name":"{name}","send-proxy":"{send_proxy}"}}'
    )


def test_an_add_is_in_force_and_on_disk_when_it_is_answered(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "mqtt")

    said = Curl(world.processes, lab.a, body(8443, NODEPORT, name="mosquitto", dst_ip=lab.a.address)).answer()

    assert said == (200, "created: port 8443 -> 203.0.113.10:30843, reachable: yes\n")
    assert ask(lab.client, 8443)[0] == "mqtt"
    assert '"mosquitto"' in (pylb.state_dir / "state.json").read_text()


def test_an_html_page_as_dst_ip_means_the_calling_address(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "mqtt")
    request = body(8443, NODEPORT, dst_ip=PAGE)
    with pytest.raises(json.JSONDecodeError):
        json.loads(request)

    said = Curl(world.processes, lab.a, request).answer()

    assert said.status == 200
    assert said.text.startswith("created: port 8443 -> 203.0.113.10:30843, reachable: yes; ")
    assert "dst-ip" in said.text
    assert said.text.count("\n") == 1
    assert ask(lab.client, 8443)[0] == "mqtt"
    assert [one["port"] for one in pylb.table()["frontends"]] == [8443]


def test_an_address_that_the_token_may_not_name_falls_back_to_the_calling_one(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "mqtt")

    said = Curl(world.processes, lab.a, body(8443, NODEPORT, dst_ip="198.51.100.9")).answer()

    assert said.status == 200
    assert "-> 203.0.113.10:30843" in said.text
    assert "198.51.100.9 is outside the targets" in said.text
    assert ask(lab.client, 8443)[0] == "mqtt"


def test_six_containers_of_a_mail_pod_call_at_once_and_all_six_ports_serve(lab: Lab, pylb: Balancer, world: World) -> None:
    ports = [f"{port}/proxy" if keyword else str(port) for port, keyword in MAIL.items()]
    world.app(lab.a, "mail", *ports, nodeports={30000 + port: port for port in MAIL})

    calls = [Curl(world.processes, lab.a, body(port, 30000 + port, send_proxy=word)) for port, word in MAIL.items()]
    answers = [call.answer() for call in calls]

    wanted = [(200, f"created: port {port} -> 203.0.113.10:{30000 + port}, reachable: yes\n") for port in MAIL]
    assert answers == wanted
    for port, keyword in MAIL.items():
        name, served, client, _ = ask(lab.client, port)
        assert (name, served, client) == ("mail", str(port), CLIENT if keyword else LB)


def test_the_last_writer_wins_and_a_delete_closes_the_port(lab: Lab, pylb: Balancer, world: World) -> None:
    world.app(lab.a, "old")
    world.app(lab.b, "new")
    assert Curl(world.processes, lab.a, body(8443, NODEPORT)).answer().status == 200
    assert ask(lab.client, 8443)[0] == "old"

    said = Curl(world.processes, lab.b, body(8443, NODEPORT, name="another")).answer()
    assert said == (200, "moved: port 8443 -> 203.0.113.20:30843, reachable: yes\n")
    assert ask(lab.client, 8443)[0] == "new"

    for _ in range(2):  # repeated deletes answer 200, from whatever address
        said = Curl(world.processes, lab.a, body(8443, NODEPORT, action="delete")).answer()
        assert said.status == 200
        assert said.text.startswith("released: port 8443")
    assert pylb.table()["frontends"] == []
    with pytest.raises(ConnectionRefusedError):
        ask(lab.client, 8443)


def test_once_a_native_registration_of_the_same_token_holds_the_port_legacy_calls_are_superseded(
    lab: Lab, pylb: Balancer, world: World
) -> None:
    world.app(lab.a, "old")
    world.app(lab.b, "new")
    assert Curl(world.processes, lab.a, body(8443, NODEPORT)).answer().status == 200
    world.phone(lab.b, "mosquitto", "pod-b", f"8443:{NODEPORT}")
    generation = pylb.table()["generation"]

    said = Curl(world.processes, lab.a, body(8443, NODEPORT)).answer()

    assert said.status == 200
    assert said.text.startswith("superseded: port 8443")
    assert pylb.table()["generation"] == generation
    assert ask(lab.client, 8443)[0] == "new"


REFUSED: tuple[tuple[dict[str, str], int, str], ...] = (
    ({"token": ""}, 401, UNAUTHORIZED),  # curl drops an empty header
    ({"token": "wrong"}, 401, UNAUTHORIZED),
    ({"method": "GET", "token": "wrong"}, 401, UNAUTHORIZED),
    ({"method": "GET"}, 405, "the hook accepts only POST\n"),
    ({"path": "/hooks/another"}, 404, NOT_FOUND),
    ({"body": body(22, NODEPORT)}, 403, "token 'app' may not open port 22 (it may: 25-29999)"),
    ({"body": body(8443, NODEPORT, send_proxy="send-proxy-v3")}, 422, "send-proxy: 'send-proxy-v3' is not a PROXY"),
    ({"body": body(8443, NODEPORT, dst_ip="169.254.169.254")}, 422, "169.254.169.254 cannot be a target: it is link-local"),
    ({"body": body(8443, NODEPORT, dst_ip="127.0.0.1")}, 422, "127.0.0.1 cannot be a target: it is loopback"),
    ({"body": body(443, NODEPORT)}, 409, "port 443 is owned by registration 'shop' of token 'other'"),
)


def test_each_refused_call_gets_its_status_and_one_line_and_changes_nothing(lab: Lab, pylb: Balancer, world: World) -> None:
    pylb.register("shop/pod-b", {443: NODEPORT}, at=lab.b, token="other")
    before = pylb.everything()

    calls = [Curl(world.processes, lab.a, **{"body": body(8443, NODEPORT), **call}) for call, _, _ in REFUSED]

    for curl, (call, status, text) in zip(calls, REFUSED, strict=True):
        said = curl.answer()
        assert said.status == status, call
        assert said.text.startswith(text), call
        assert said.text.count("\n") <= 1, call
    assert pylb.everything() == before


def test_an_unchanged_repeat_writes_nothing_and_swaps_nothing(lab: Lab, pylb: Balancer, world: World) -> None:
    """Once its interval is known, which the first three calls say, and which is written without delaying an answer."""
    world.app(lab.a, "mqtt")
    file = pylb.state_dir / "state.json"
    unchanged = (200, "unchanged: port 8443 -> 203.0.113.10:30843, reachable: yes\n")
    assert Curl(world.processes, lab.a, body(8443, NODEPORT)).answer().status == 200
    for _ in range(3):
        assert Curl(world.processes, lab.a, body(8443, NODEPORT)).answer() == unchanged
    eventually(lambda: json.loads(file.read_bytes())["payload"]["leases"], what="the lease is on disk")
    generation, written = pylb.table()["generation"], (file.stat().st_ino, file.read_bytes())

    for _ in range(3):
        assert Curl(world.processes, lab.a, body(8443, NODEPORT)).answer() == unchanged

    assert pylb.table()["generation"] == generation
    assert (file.stat().st_ino, file.read_bytes()) == written


def test_a_client_in_a_hot_loop_is_slowed_down_and_nobody_else(lab: Lab, pylb: Balancer, world: World) -> None:
    """REPEAT_INTERVAL unset."""
    world.app(lab.a, "mqtt")
    request = body(8443, NODEPORT)
    headers = {"Content_Type": "application/json", "X_Funkypenguin_Token": TOKENS["app"]}

    def hammer() -> bool:
        answers = [pylb.post_legacy(request, at=lab.a, **headers) for _ in range(50)]
        return any(one.status == 429 and int(one.headers["Retry-After"]) >= 1 for one in answers)

    eventually(hammer, what="the loop is told to slow down")
    assert Curl(world.processes, lab.a, body(8444, NODEPORT)).answer().status == 200
    assert Curl(world.processes, lab.b, request).answer().status == 200
