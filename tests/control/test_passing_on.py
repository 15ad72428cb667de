"""A token that replaces another: what was the other's is its own, served without a gap, whoever calls for it."""

from pathlib import Path

import pytest

from pylb.core.address import parse_ports
from pylb.core.auth import Keyring
from pylb.core.errors import Refused
from tests.control.harness import Control, control, token
from tests.support.ports import free_ports


def use(c: Control, *tokens: object) -> Keyring:
    c.keyring = Keyring(tokens)  # type: ignore[arg-type]
    return c.keyring


def held(c: Control) -> list[tuple[str, str, str]]:
    return sorted((view.token, view.name, view.state) for view in c.registry.each_registration())


async def test_registrations_pass_on_at_once_with_their_lease_and_over_restarts(tmp_path: Path) -> None:
    port, mail = free_ports(2)
    old, new = token("old"), token("new", names=("web",), replaces=("old",))
    async with control(tmp_path, old) as c:
        await c.put({port: 30001})
        await c.put({mail: 30001}, name="mail")
        tables = len(c.sink.tables)
        await c.registry.rules.set_keyring(use(c, old, new))
        assert held(c) == [("new", "web", "fresh"), ("old", "mail", "fresh")]
        assert len(c.sink.tables) == tables  # nothing of what is served differs
        assert next(view.expires_in for view in c.registry.each_registration() if view.token == "new") == 60
        await c.put({port: 30001}, token="old")  # a pod with the old secret
        await c.put({port: 30001}, token="new")
        await c.put({port: 30001}, instance="pod-2", token="old")
        assert held(c) == [("new", "web", "fresh"), ("new", "web", "fresh"), ("old", "mail", "fresh")]
        await c.delete(instance="pod-2", token="old")
        assert c.kinds().count("passed_on") == 1
        await c.pass_time(61)
        assert held(c) == [("new", "web", "stale"), ("old", "mail", "stale")]
    async with control(tmp_path, old, new) as c:
        assert held(c) == [("new", "web", "stale"), ("old", "mail", "stale")]


async def test_what_its_heir_could_not_have_made_stays(tmp_path: Path) -> None:
    one, two = free_ports(2)
    old, new = token("old"), token("new", ports=parse_ports([one]), replaces=("old",))
    async with control(tmp_path, old) as c:
        await c.put({one: 30001, two: 30001}, name="both")
        await c.registry.rules.set_keyring(use(c, old, new))
        assert held(c) == [("old", "both", "fresh")]
        with pytest.raises(Refused):
            await c.put({one: 30001}, token="new")


async def test_two_of_the_same_name_and_instance_are_both_served_whoever_replaces_their_tokens(tmp_path: Path) -> None:
    """Pods of two StatefulSets are both called web-0: the port of one of them closed without an event."""
    one, two = free_ports(2)
    old = token("staging"), token("prod")
    new = token("new", replaces=("staging", "prod"))
    async with control(tmp_path, *old) as c:
        await c.put({one: 30001}, instance="web-0", token="staging")
        await c.put({two: 30001}, instance="web-0", token="prod")
        await c.registry.rules.set_keyring(use(c, *old, new))
        for _ in range(2):
            assert sorted(owner for owner, _, _ in held(c)) in (["new", "prod"], ["new", "staging"])
            assert c.sink.ports == {one, two}
            await c.put({one: 30001}, instance="web-0", token="staging")
            await c.put({two: 30001}, instance="web-0", token="prod")
    async with control(tmp_path, *old, new) as c:
        assert c.sink.ports == {one, two}


async def test_a_start_passes_on_what_an_edited_config_says(tmp_path: Path) -> None:
    port, legacy = free_ports(2)
    async with control(tmp_path, token("old")) as c:
        await c.put({port: 30001}, ttl=None)
        await c.legacy(legacy, 30001)
    async with control(tmp_path, token("new", replaces=("old",))) as c:
        assert {view.token for view in c.registry.each_registration()} == {"new"}
        assert c.sink.ports == {port, legacy}


async def test_tokens_that_go_are_renamed_or_rotated_leave_events_and_takeovers_an_alarm(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    a, b, strong = token("a"), token("b"), token("strong", takeover=True)
    async with control(tmp_path, a, b, strong) as c:
        await c.put({port: 30001}, token="a")
        await c.put({port: 30001}, name="mine", token="strong")
        (taken,) = [event for event in c.heard if event.kind == "taken_over"]
        assert (taken.alarm, taken.fields["token"], taken.fields["by"]) == (True, "a", "strong/mine/pod-1")
        renamed = token("z", secrets=b.secrets)
        await c.registry.rules.set_keyring(use(c, renamed, token("strong", secrets=("another-secret-of-that-token",))))
        said = {event.kind: (event.text, event.alarm) for event in c.heard}
        assert said["token_removed"] == ("token 'a' is removed: its calls are refused", False)
        assert said["token_renamed"][0].startswith("token 'b' is called 'z' now")
        assert "token_rotated" in said
        await c.registry.rules.set_keyring(use(c, renamed))
        (gone,) = [event for event in c.heard if event.kind == "token_removed" and event.fields["token"] == "strong"]
        assert gone.alarm
        assert "1 registration of it will be stale" in gone.text
