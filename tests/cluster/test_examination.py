"""What `pylb doctor` finds out about etcd: from the real one, and what its answers mean that it gives too rarely."""

from collections.abc import Sequence

import pytest

from pylb.cluster import examination
from pylb.cluster.etcd import NO_CREDENTIALS, Credentials, Etcd, Waits
from pylb.cluster.examination import Answer, examine
from pylb.cluster.gateway import Denied, Status
from pylb.cluster.keys import write_value
from pylb.cluster.registrations import KNOWN
from pylb.core.merge.values import Member as Balancer
from tests.support.etcd import Member
from tests.support.ports import refusing_port

WAITS = Waits(call=3.0, silence=3.0)


async def asked(endpoints: Sequence[str], prefix: str, credentials: Credentials = NO_CREDENTIALS) -> dict[str, Answer]:
    return {one.what: one async for one in examine("lb-a", endpoints, prefix.rstrip("/"), credentials, WAITS)}


async def test_a_member_that_is_well_and_alone(member: Member, prefix: str) -> None:
    found = await asked([member.url], prefix)
    assert list(found) == [f"etcd {member.url}", "etcd's members", "etcd's keys", "balancers"]
    assert found[f"etcd {member.url}"].ok
    assert found[f"etcd {member.url}"].found.startswith("3.")
    assert found["etcd's members"] == (
        "etcd's members",
        False,
        "1 of 1 endpoint answer",
        "three members: of one or two, none may fail",
    )
    assert found["etcd's keys"].ok
    assert found["etcd's keys"].found.startswith(f"0 keys below {prefix}; a lease and a write took ")
    assert found["balancers"][1:3] == (True, "present: none; this one, lb-a, has not been started with cluster.etcd yet")
    assert (await asked([member.url], prefix))["etcd's keys"].found.startswith("0 keys")  # what it wrote is gone


async def test_the_balancers_are_named(member: Member, prefix: str) -> None:
    def there(name: str, needs: frozenset[str] = KNOWN, **more: bool) -> None:
        member.put(f"{prefix}members/{name}", write_value(Balancer(1, {}, needs, **more)).decode())

    there("lb-a")
    there("lb-x", forgotten=True)
    for name in ("lb-a", "lb-b"):
        member.put(f"{prefix}presence/{name}", "nonce")
    assert (await asked([member.url], prefix))["balancers"] == ("balancers", True, "present: lb-a, lb-b", "")
    there("lb-b", KNOWN - {"ranges"})
    text, remedy = "present: lb-a, lb-b; lb-b does not know ranges", "upgrade pylb on lb-b"
    assert (await asked([member.url], prefix))["balancers"] == ("balancers", False, text, remedy)
    there("lb-c")
    text, remedy = "present: lb-a, lb-b; away: lb-c", "start lb-c, or `pylb cluster forget lb-c` if it does not come back"
    assert (await asked([member.url], prefix))["balancers"] == ("balancers", False, text, remedy)
    member.put(f"{prefix}released/t/web/1", "{}")
    assert "released/t/web/1 in etcd cannot be read" in (await asked([member.url], prefix))["etcd's keys"].found


async def test_an_endpoint_that_does_not_answer_is_named_and_the_others_are_asked(member: Member, prefix: str) -> None:
    url = f"http://127.0.0.1:{refusing_port()}"
    found = await asked([url, member.url], prefix)
    assert not found[f"etcd {url}"].ok
    assert found["etcd's members"][1:3] == (False, "1 of 2 endpoints answer")
    assert found["etcd's keys"].ok
    assert list(await asked([url], prefix)) == [f"etcd {url}", "etcd's members"]


async def test_a_member_that_says_nothing_of_itself_to_this_user_is_asked_for_the_keys(
    member: Member, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def denied(_etcd: Etcd) -> Status:
        raise Denied("permission denied")

    monkeypatch.setattr(Etcd, "status", denied)
    found = await asked([member.url], prefix)
    assert list(found) == [f"etcd {member.url}", "etcd's keys", "balancers"]
    assert found[f"etcd {member.url}"][2:] == (
        "permission denied",
        "cluster.etcd.username and password_file; deploy/etcd/users makes the user",
    )
    assert found["etcd's keys"].ok


async def test_without_usable_files_nothing_is_asked() -> None:
    found = await asked(["http://192.0.2.1"], "/x", Credentials(wrong="/etc/pylb/ca.pem is empty"))
    assert found == {"etcd": Answer("etcd", False, "/etc/pylb/ca.pem is empty", "pylb check names the line")}


async def test_a_history_that_is_never_compacted_is_noticed(
    member: Member, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "NEVER_COMPACTED", 0)
    member.compact()
    assert "etcd's history" not in await asked([member.url], prefix)
    fresh = prefix.replace("test", "new")
    monkeypatch.setattr(examination, "_is_compacted", _never)
    assert "none of them compacted" in (await asked([member.url], fresh))["etcd's history"].found


async def _never(*_: object) -> bool:
    return False


WELL = Status("3.4.23", 1, 9, 1, 20480, ())


@pytest.mark.parametrize(
    ("status", "ok", "said"),
    [
        (WELL, True, "3.4.23, database 20 KiB"),
        (WELL._replace(version="3.5.16"), True, "3.5.16"),
        (WELL._replace(version="3.5.2"), False, "corrupts data"),
        (WELL._replace(version="3.3.1"), False, "tried with 3.4 and 3.5"),
        (WELL._replace(version="x"), False, "tried with 3.4 and 3.5"),
        (WELL._replace(leader=0), False, "it knows no leader"),
        (WELL._replace(errors=("memberID:1 alarm:NOSPACE ",)), False, "its quota is used up, and it takes no writes"),
        (WELL._replace(errors=("etcdserver: no leader",)), False, "it says etcdserver: no leader"),
        (WELL._replace(database=2 << 30), False, "default quota is 2 GiB"),
    ],
)
def test_what_a_member_says_of_itself(status: Status, ok: bool, said: str) -> None:
    answer = examination._health("https://etcd", status, f"{status.version}, database 20 KiB")
    assert (answer.ok, said in answer.found, bool(answer.remedy)) == (ok, True, not ok)


def test_members_of_two_clusters_are_no_quorum() -> None:
    others = [WELL, WELL._replace(member=2), WELL._replace(member=3)]
    assert examination._quorum(3, others).ok
    assert "several clusters" in examination._quorum(3, [*others[:2], others[2]._replace(cluster=8)]).found
