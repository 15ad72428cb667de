"""`pylb standby` and `pylb active`: which of several machines is to have the floating address."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.app.instance import Instance, connected, echo
from tests.support.ports import refusing_port
from tests.support.processes import Processes


@pytest.fixture
def others(processes: Processes, tmp_path: Path) -> Callable[[str], Instance]:
    def make(name: str) -> Instance:
        (tmp_path / name).mkdir()
        return Instance(processes, tmp_path / name)

    return make


def peer(name: str, port: int) -> dict[str, Any]:
    return {"name": name, "url": f"http://127.0.0.1:{port}"}


def test_the_address_is_given_away_only_to_somebody_who_can_have_it(
    pylb: Instance, others: Callable[[str], Instance], echo_port: int
) -> None:
    other = others("lb-b")
    pylb.configure(
        admin={"listen": f"127.0.0.1:{pylb.admin}", "peers": [peer("lb-b", other.admin), peer("gone", refusing_port())]}
    )
    pylb.start()
    assert pylb.register(pylb.port, echo_port).status == 201
    assert (pylb.get("/activez").status, pylb.get("/activez").json) == (200, {"status": "active"})

    refused = pylb.ask("standby")
    assert refused.returncode == 1
    assert "no other balancer says that it may have the address: lb-b: refused; gone: refused" in refused.stderr
    assert "--force" in refused.stderr

    other.start()
    with connected(pylb) as client:
        given = pylb.ask("standby", "--for", "30m")
        assert (given.returncode, given.stdout.splitlines()[1]) == (0, "active and ready: lb-b")
        assert given.stdout.startswith("on standby for 30 min: ")
        assert given.stderr == "1 live session: those through the address are reset when it moves\n"
        answer = pylb.get("/activez")
        assert (answer.status, answer.json["status"]) == (503, "standby")
        assert 1700 < answer.json["seconds"] <= 1800
        assert pylb.get("/readyz").json["status"] == "ready"
        assert echo(client) == b"ping"
        with connected(pylb):
            pass  # what still arrives is served
    assert "on standby, so that another balancer has the floating address (pylb active)" in pylb.ask("status").stdout
    assert b"pylb_standby 1.0" in pylb.get("/metrics").body

    other.configure(admin={"listen": f"127.0.0.1:{other.admin}", "peers": [peer("lb-a", pylb.admin)]})
    other.reload("reloaded: ")
    both = other.ask("standby")
    assert (both.returncode, "lb-a: it is on standby itself" in both.stderr) == (1, True)

    assert pylb.ask("active").stdout == "active: /activez answers 200\n"
    assert pylb.ask("active").stdout == "active: /activez answers 200, as before: it was not on standby\n"
    assert pylb.get("/activez").status == 200


def test_without_peers_it_needs_force_and_an_upgrade_keeps_it(pylb: Instance, successors: list[int]) -> None:
    pylb.start()
    assert "name them in admin.peers, or --force" in pylb.ask("standby").stderr
    assert pylb.get("/activez").status == 200
    assert json.loads(pylb.ask("standby", "--force", "--json").stdout) == {"seconds": 3600.0, "active": [], "sessions": 0}
    done = pylb.ask("upgrade")
    assert done.returncode == 0, done.stderr
    successors.append(int(done.stdout.split()[1]))
    answer = pylb.get("/activez")
    assert (answer.status, answer.json["status"]) == (503, "standby")
