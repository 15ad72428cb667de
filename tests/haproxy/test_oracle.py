"""The real HAProxy and the imported pylb side by side: who is served by whom, who is refused, what a server's death changes.

Each file of configs/ says in its first lines where clients go, which servers there are, and what fails. All configs run at
once: a HAProxy for each in one network namespace, one pylb with all of them in another, the same servers and the same
clients in both, 100 for each place, from three addresses.
"""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pylb.config import parse
from pylb.core.server_names import find_route
from pylb.haproxy.translate import translate
from tests.support.netns import Namespace, loopback_only, remove_leftovers
from tests.support.peers import need, need_netns
from tests.support.processes import ROOT, Process, Processes, python

HERE = Path(__file__).parent
CLIENTS = 34  # of each of the three addresses
FEW = 6  # while waiting for both to have noticed what changed
PATIENCE = 20.0  # seconds: both have noticed by then

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(240)]
Answers = dict[str, dict[str, dict[str, int]]]  # place -> client -> who answered -> how many


@dataclass(frozen=True)
class Config:
    name: str
    text: str
    said: dict[str, list[str]]

    def pairs(self, key: str) -> dict[str, str]:
        return {word.partition("=")[0]: word.partition("=")[2] or "app" for word in self.said.get(key, [])}

    @property
    def environ(self) -> dict[str, str]:
        return dict(word.split("=", 1) for word in self.said.get("env", []))


def configs() -> list[Config]:
    found = []
    for file in sorted((HERE / "configs").glob("*.cfg")):
        text = file.read_text()
        lines = (line[2:].partition(": ") for line in text.splitlines() if line.startswith("# "))
        said = {key: shlex.split(value) for key, _, value in lines if key in ("places", "servers", "fails", "env", "proxy")}
        found.append(Config(file.stem, text, said))
    return found


CONFIGS = configs()
NAMED = {one.name: one for one in CONFIGS}
USED_ONES = {one.name for one in CONFIGS if "used" in one.pairs("fails")}  # all clients have one server, and that fails


class Side:
    """side.py in a namespace."""

    def __init__(self, namespace: Namespace) -> None:
        argv = namespace.command(*python("tests.haproxy.side"))
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    def send(self, **command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


def prepared(namespace: Namespace) -> None:
    """All addresses of the configs are this namespace's."""
    for network in ("10.0.0.0/8", "198.51.100.0/24", "203.0.113.0/24"):
        namespace.run("ip", "route", "add", "local", network, "dev", "lo")
    namespace.ip("address add 2001:db8::1/128 dev lo nodad")


def policies(config: Config) -> list[dict[str, Any]]:
    """The imported frontends, each whole, with the config's name before theirs."""
    found = translate([(config.name, config.text)], config.environ)
    assert [str(note) for note in found.differences] == []
    document = yaml.safe_load(found.text)
    shared = document.get("defaults", {})
    return [{**shared, **one, "name": f"{config.name}.{one['name']}"} for one in document["frontends"]]


class Phases:
    """What both answered in each phase."""

    def __init__(self, sides: tuple[Side, Side]) -> None:
        self._sides = sides
        self.found: dict[str, dict[str, tuple[Answers, Answers]]] = {}
        self.pylb: Process | None = None

    def failed(self, config: Config) -> str:
        """What pylb's log says of the last sessions that did not end well."""
        assert self.pylb is not None
        lines = [line for line in self.pylb.text().splitlines() if f" {config.name}." in line and " -- " not in line]
        return "\n".join(lines[-20:])

    def _both(self, **command: Any) -> list[Any]:
        for side in self._sides:
            side.send(**command)
        return [side.answer() for side in self._sides]

    def _ask(self, several: list[Config], clients: int) -> list[tuple[Answers, Answers]]:
        asked = [{"ask": one.said["places"], "clients": clients, "proxy": "proxy" in one.said} for one in several]
        ours: list[list[Answers]] = self._both(several=asked)
        return list(zip(*ours, strict=True))

    def serve(self, key: str) -> None:
        kinds = [(one, place, kind) for one in CONFIGS for place, kind in one.pairs(key).items()]
        self._both(serve={self._used(one) if place == "used" else place: kind for one, place, kind in kinds})

    def _used(self, config: Config) -> str:
        """The one server that HAProxy's clients have: which one a hash gives them differs from start to start of HAProxy."""
        [who] = set().union(*servers_of(self.found["start"][config.name][0]).values())
        return str(who)

    def run(self, name: str, key: str) -> None:
        """After `serve(key)`: both have noticed what that changed before what they answer counts."""
        self.serve(key)
        waiting = [one for one in CONFIGS if key in one.said]
        deadline = time.monotonic() + PATIENCE
        while waiting and time.monotonic() < deadline:
            asked = zip(waiting, self._ask(waiting, FEW), strict=True)
            waiting = [one for one, pair in asked if not self._has_come(name, one.name, pair)]
        self.found[name] = {}
        for start in range(0, len(CONFIGS), 4):  # a hundred clients for each place, not thousands at once
            some = CONFIGS[start : start + 4]
            deadline = time.monotonic() + PATIENCE
            while True:
                asked = dict(zip((one.name for one in some), self._ask(some, CLIENTS), strict=True))
                if time.monotonic() > deadline or not any(self._haproxy_is_late(name, *each) for each in asked.items()):
                    break
            self.found[name] |= asked

    def _haproxy_is_late(self, phase: str, config: str, pair: tuple[Answers, Answers]) -> bool:
        """On a busy machine a server is too slow for HAProxy's checks at times: then some clients have another one meanwhile.

        What pylb is compared with is HAProxy's answer without that. pylb's own is not waited for here.
        """
        theirs = servers_of(pair[0])
        if phase == "failure":
            return False
        if phase == "start":
            late = config in USED_ONES and len(set().union(*theirs.values())) > 1
        else:
            late = theirs != servers_of(self.found["start"][config][0])
        return late or not _by_weight(config, pair[0])

    def _has_come(self, phase: str, config: str, pair: tuple[Answers, Answers]) -> bool:
        now = [servers_of(answers) for answers in pair]
        before = [servers_of(answers) for answers in self.found.get("start", {}).get(config, ())]
        if phase == "return":
            return now == before
        if phase == "failure":
            return now[0] == now[1] and now[0] != before[0]
        return now[0] == now[1] and set().union(*now[0].values()) != {"refused"}


def balanced_at(config: str, place: str) -> dict[str, Any] | None:
    """The imported frontend at a place, or the route there if clients ask for a name: whose servers and balance count."""
    listener, _, name = place.partition("/")
    for policy in policies(NAMED[config]):
        if policy["listen"].rpartition(":")[2] == listener.rpartition(":")[2]:
            routes = {one: route for route in policy.get("routes", ()) for one in route["server_names"]}
            return policy | (find_route(routes, name.lower()) or {})
    return None


def _by_weight(config: str, answers: Answers) -> bool:
    """Has each server of a round robin its share of the clients, give or take one client for each server?

    Not so when HAProxy had one of them down for a moment, or has taken it back in the middle of a round.
    """
    for place, clients_of in answers.items():
        policy = balanced_at(config, place)
        if policy is None or policy["balance"] != "roundrobin":
            continue
        weights = {server["address"]: server.get("weight", 1) for server in policy["servers"]}
        found = ((who.split()[0], count) for who, count in _sum(clients_of).items())
        counts = {who: count for who, count in found if who in weights}  # some are refused
        clients, weight = sum(counts.values()), sum(weights[who] for who in counts)
        if any(abs(count * weight - clients * weights[who]) > len(counts) * weight for who, count in counts.items()):
            return False
    return True


def servers_of(answers: Answers) -> dict[str, set[str]]:
    """place -> who answered at all."""
    return {place: {who for counts in clients.values() for who in counts} for place, clients in answers.items()}


@pytest.fixture(scope="module")
def phases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Phases]:
    need_netns()
    remove_leftovers()
    haproxy, folder = need("haproxy"), tmp_path_factory.mktemp("oracle")
    with ExitStack() as stack:
        spaces = [stack.enter_context(loopback_only()) for _ in range(2)]
        processes = stack.enter_context(Processes(folder))
        sides = []
        for space in spaces:
            prepared(space)
            sides.append(Side(space))
            stack.callback(sides[-1].close)
        found = Phases((sides[0], sides[1]))
        found._both(serve={place: kind for one in CONFIGS for place, kind in one.pairs("servers").items()})
        for config in CONFIGS:
            file = folder / f"{config.name}.cfg"
            file.write_text(config.text)
            processes.start(config.name, [haproxy, "-db", "-f", str(file)], at=spaces[0], env=config.environ)
        document = {
            "frontends": [one for config in CONFIGS for one in policies(config)],
            "state_dir": str(folder / "state"),
            "webhook": {"listen": "127.0.0.1:9000"},
        }
        (folder / "pylb.yaml").write_text(yaml.safe_dump(document))
        parse((folder / "pylb.yaml").read_text(), "pylb.yaml")
        found.pylb = processes.start("pylb", python("pylb", "run", "-c", str(folder / "pylb.yaml")), at=spaces[1])
        found.run("start", "servers")
        found.run("failure", "fails")
        found.run("return", "servers")
        yield found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_the_imported_pylb_serves_who_haproxy_serves(phases: Phases, config: Config) -> None:
    balances = {place: (balanced_at(config.name, place) or {}).get("balance") for place in config.said["places"]}
    for phase, found in phases.found.items():
        haproxy, pylb = found[config.name]
        for place in config.said["places"]:
            even = balances[place] == "roundrobin"
            for client, theirs in haproxy[place].items():
                where = f"{phase}: {client} at {place}: HAProxy {theirs}, pylb {pylb[place][client]}"
                if balances[place] != "source":
                    assert theirs.keys() == pylb[place][client].keys(), f"{where}\n{phases.failed(config)}"
                else:  # another hash: each client has one server, as there
                    assert len(theirs) == len(pylb[place][client]) == 1, where
            if even:
                counts = [_sum(answers[place]) for answers in (haproxy, pylb)]
                assert all(abs(counts[0][who] - counts[1][who]) <= len(counts[0]) for who in counts[0]), f"{phase}: {counts}"
    if "fails" in config.said:  # it changed something, or the phase would show nothing
        before, after = (phases.found[phase][config.name][0] for phase in ("start", "failure"))
        assert servers_of(before) != servers_of(after)


def _sum(clients: dict[str, dict[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for counts in clients.values():
        for who, count in counts.items():
            found[who] = found.get(who, 0) + count
    return found


def test_there_are_at_least_thirty_configs() -> None:
    assert len(CONFIGS) >= 30


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_haproxy_takes_the_config(config: Config, tmp_path: Path) -> None:
    file = tmp_path / "haproxy.cfg"
    file.write_text(config.text)
    argv = [need("haproxy"), "-c", "-f", str(file)]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False, env={**os.environ, **config.environ})
    assert ran.returncode == 0, ran.stderr
