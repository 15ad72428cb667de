"""An entry of the snapshot that this version cannot serve is kept for the one that can, whatever happens meanwhile."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from pylb.api.routes import rows
from pylb.control.health_sentence import troubles
from pylb.control.storage import needs, snapshot
from pylb.control.storage.snapshot import Snapshot
from pylb.control.storage.store import _canonical
from pylb.core.address import Address, Listen
from pylb.core.checks import parse_health
from pylb.core.errors import Refused
from pylb.core.persistent_map import PersistentMap, frozen_set
from pylb.core.policy import Rules
from pylb.core.registration import Announcement, FrontendRequest, Key, Registration
from tests.control.harness import Control, control, token
from tests.support.ports import free_ports

NEW = {
    "order": 7,
    "needs": ["teleportation"],
    "token": "t",
    "name": "later",
    "instance": "pod-9",
    "legacy_port": 0,
    "address": {"somewhere": ["no", "ip"]},
    "frontends": [{"port": 4433, "target_port": "any", "beam": True}],
}
LEASE = {"token": "t", "name": "later", "instance": "pod-9", "legacy_port": 0, "learned_ttl": None, "stale_for": 3.5, "x": 1}


def payload(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "state.json").read_text())["payload"]
    return found


def written_by_a_newer_pylb(folder: Path) -> None:
    """The snapshot as it is, with one entry more."""
    data = payload(folder)
    data["registrations"].append(NEW)
    data["leases"].append(LEASE)
    body = b"".join(_canonical(data))
    head = {"version": 1, "sha256": sha256(body).hexdigest()}
    (folder / "state.json").write_text(json.dumps(head | {"payload": data}))


def is_there(folder: Path) -> bool:
    data = payload(folder)
    return NEW in data["registrations"] and LEASE in data["leases"]


def test_a_registration_for_udp_says_that_it_needs_it_and_is_kept_for_a_version_that_serves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = (FrontendRequest(443, 30443), FrontendRequest(443, 30444, protocol="udp"))
    one = Registration(Key("t", "web", "pod-1"), "web", "192.0.2.7", wanted)
    taken = Snapshot(
        registrations=PersistentMap({one.key: one}),
        proven=frozen_set([Address("192.0.2.7", 30444, "udp")]),
        down=frozen_set([(Listen("udp", "*", 443), Address("192.0.2.7", 30444, "udp"))]),
    )
    text = json.loads(b"".join(_canonical(snapshot.Encoder().encode(taken))))
    [entry] = text["registrations"]
    assert (entry["needs"], [item.get("protocol") for item in entry["frontends"]]) == (["udp"], [None, "udp"])
    with monkeypatch.context() as before:
        before.setattr(snapshot, "KNOWN_NEEDS", needs.KNOWN_NEEDS - {needs.DATAGRAMS})
        found, complaints = snapshot.decode(text)
    assert (dict(found.registrations), [kept.entry for kept in found.unserved.values()], complaints) == ({}, [entry], [])
    found, complaints = snapshot.decode(text)
    assert (found.registrations, found.proven, found.down, complaints) == (taken.registrations, taken.proven, taken.down, [])
    entry["frontends"][1]["protocol"] = "sctp"
    assert "is not a protocol" in snapshot.decode(text)[1][0]


async def prepared(folder: Path) -> int:
    (port,) = free_ports(1)
    async with control(folder) as c:
        await c.put({port: 30001})
    written_by_a_newer_pylb(folder)
    return port


async def test_it_is_neither_served_nor_changed_by_calls_reloads_restarts_and_a_hand_over(tmp_path: Path) -> None:
    port = await prepared(tmp_path)
    others = free_ports(2)
    async with control(tmp_path) as c:
        assert c.sink.ports == {port}
        await c.put({others[0]: 30001}, name="mail")
        await c.put({port: 30001}, draining=True)
        assert is_there(tmp_path)
        await c.registry.rules.reload(Rules(), c.keyring)
        await c.put({others[1]: 30001}, name="www")
        assert is_there(tmp_path)
        await c.registry.hand_over()
        assert is_there(tmp_path)
        await c.registry.take_back()
    async with control(tmp_path) as c:
        assert c.sink.ports == {port, *others}
        await c.delete()
        assert is_there(tmp_path)


async def test_it_is_shown_with_what_it_needs_and_is_an_alarm(tmp_path: Path) -> None:
    await prepared(tmp_path)
    async with control(tmp_path) as c:
        (row,) = [row for row in await rows(c.registry) if row["port"] == 4433]
        assert (row["state"], row["frontend"]) == ("not served", "later")
        assert "teleportation" in row["why"]
        (event,) = [event for event in c.heard if event.kind == "unserved"]
        assert event.alarm
        said = troubles(durable=True, preserving=False, reloaded=True, unserved=[one.name for one in c.registry.unserved()])
        assert said == ["this version is too old to serve later (pylb routes)"]


async def test_it_goes_when_it_is_released_by_name_by_port_or_by_its_owner(tmp_path: Path) -> None:
    for number, release in enumerate((by_name, by_port, by_its_owner)):
        folder = tmp_path / str(number)
        await prepared(folder)
        async with control(folder) as c:
            await release(c)
            assert not is_there(folder)
            assert c.registry.unserved() == []
            assert len(list(c.registry.each_registration())) == 1


async def test_an_entry_of_udp_is_on_no_port_of_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEW["frontends"][0], "protocol", "udp")
    await prepared(tmp_path)
    async with control(tmp_path) as c:
        assert [row["protocol"] for row in await rows(c.registry, ("udp", 4433))] == ["udp"]
        assert await rows(c.registry, ("tcp", 4433)) == []
        with pytest.raises(Refused):
            await c.registry.operator.release_any("4433")
        assert is_there(tmp_path)
        await c.registry.operator.release_any("4433/udp")
        assert not is_there(tmp_path)


async def by_name(c: Control) -> None:
    await c.registry.operator.release_any("later/pod-9")


async def by_port(c: Control) -> None:
    await c.registry.operator.release_any("4433")


async def by_its_owner(c: Control) -> None:
    await c.delete(name="later", instance="pod-9")


async def test_its_owner_may_register_what_this_version_can_serve_and_a_goodbye_changes_nothing(tmp_path: Path) -> None:
    await prepared(tmp_path)
    (other,) = free_ports(1)
    async with control(tmp_path) as c:
        await c.put({other: 30001}, name="later", instance="pod-9", draining=True)
        assert is_there(tmp_path)
        await c.put({other: 30001}, name="later", instance="pod-9")
        assert not is_there(tmp_path)
        assert other in c.sink.ports


@pytest.mark.parametrize(
    ("health", "needs"),
    [
        ({"http": "/up"}, []),
        ({"send": "PING", "expect": "PONG"}, []),
        ({"steps": [{"send": "a"}, {"expect": "b"}]}, ["check in steps"]),
        ({"http": "/up", "method": "HEAD"}, ["check with a method"]),
        ({"http": "/up", "method": "HEAD", "when_all_down": "refuse"}, ["check with a method", "when_all_down"]),
    ],
)
async def test_a_check_of_a_later_form_says_so_and_an_older_pylb_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, health: dict[str, Any], needs: list[str]
) -> None:
    (port,) = free_ports(1)
    async with control(tmp_path) as c:
        wanted = Announcement((FrontendRequest(port, 30001, health=parse_health(health)),))
        await c.registry.calls.announce("web", "pod-1", wanted, c.caller("127.0.0.1"))
    [entry] = payload(tmp_path)["registrations"]
    assert entry["needs"] == needs
    with monkeypatch.context() as older:
        older.setattr(snapshot, "KNOWN_NEEDS", frozenset())
        async with control(tmp_path) as c:
            assert c.sink.ports == (set() if needs else {port})
    assert payload(tmp_path)["registrations"] == [entry]
    async with control(tmp_path) as c:
        assert c.sink.ports == {port}
        [one] = c.registry.each_registration()
        assert one.frontends[0].health == parse_health(health)


def test_its_texts_are_shown_without_what_drives_a_terminal_or_cannot_be_written() -> None:
    hostile = NEW | {"name": "two\nlines", "needs": ["\x1b[31m", "half \ud800"]}
    hostile["frontends"] = [{"port": 443, "protocol": "\x1b[2J"}]
    found, complaints = snapshot.decode({"registrations": [hostile]})
    [one] = found.unserved.values()
    assert (one.name, one.needs) == ("two\\x0alines", ("\\x1b[31m", "half \\ud800"))
    assert one.ports == (("\\x1b[2J", 443),)
    assert (one.entry, complaints) == (hostile, [])


async def test_an_older_pylb_does_not_serve_a_route_by_server_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would send all clients of the port to the servers of one name."""
    (port,) = free_ports(1)
    default = FrontendRequest(port, 30001, allows_names=True)
    async with control(tmp_path, token(server_names=("*.example.net",))) as c:
        wanted = Announcement((FrontendRequest(port, 30002, server_name="git.example.net"),))
        await c.registry.calls.announce("git", "pod-1", wanted, c.caller("127.0.0.1"))
        await c.registry.calls.announce("web", "pod-1", Announcement((default,)), c.caller("127.0.0.1"))
        assert c.sink.ports == {port}
    entries = payload(tmp_path)["registrations"]
    assert sorted((entry["name"], entry["needs"]) for entry in entries) == [("git", ["names"]), ("web", [])]
    with monkeypatch.context() as older:
        older.setattr(snapshot, "KNOWN_NEEDS", frozenset())
        async with control(tmp_path) as c:
            assert {str(listen) for listen in c.registry.table.frontends} == {f"*:{port}"}
    async with control(tmp_path) as c:
        assert {str(listen) for listen in c.registry.table.frontends} == {f"*:{port}", f"*:{port} git.example.net"}
        found = {one.name: one.frontends for one in c.registry.each_registration()}
        assert found == {"git": wanted.frontends, "web": (default,)}
