"""What an operator has to mend, against etcds that are set up so: users, certificates, a gateway that is off."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylb.cluster.etcd import AUTHENTICATE_EVERY, Credentials, Etcd, Login, Waits
from pylb.cluster.examination import examine
from pylb.cluster.gateway import Denied, Txn, Unreachable
from tests.support.certificate import self_signed
from tests.support.etcd import Member, b64, one_member
from tests.support.peers import need
from tests.support.ports import free_port
from tests.support.processes import Processes
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def guarded() -> Iterator[Member]:
    """Its user pylb may use /mine/. Hashes of passwords are cheap here."""
    with one_member("--bcrypt-cost", "4") as member:
        role = {"permType": "READWRITE", "key": b64("/mine/"), "range_end": b64("/mine0")}
        member.ask("auth/role/add", {"name": "pylb"})
        member.ask("auth/role/grant", {"name": "pylb", "perm": role})
        member.ask("auth/user/add", {"name": "pylb", "password": "secret"})
        member.ask("auth/user/grant", {"user": "pylb", "role": "pylb"})
        member.add_root("root")
        yield member


def forget_tokens(member: Member) -> None:
    """As etcd does when it starts, and to one that is not used for five minutes."""
    root = member.ask("auth/authenticate", {"name": "root", "password": "root"})["token"]
    member.ask("auth/user/changepw", {"name": "pylb", "password": "secret"}, root)


async def test_a_user_logs_in_and_again_when_etcd_has_forgotten_its_token(guarded: Member) -> None:
    waited = list[float]()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async with Etcd([guarded.url], Credentials(Login("pylb", "secret")), sleep=sleep) as etcd:
        await etcd.list(b"/mine/")
        assert waited == []
        for number in range(1, 4):
            forget_tokens(guarded)
            await etcd.list(b"/mine/")
            await etcd.list(b"/mine/")
            assert len(waited) == number, "it authenticates once for each token that is forgotten"
        assert all(0 < one <= AUTHENTICATE_EVERY for one in waited), "never twice within a second"
        assert etcd.endpoint == guarded.url


async def test_a_watch_logs_in_as_well(guarded: Member) -> None:
    """etcd refuses it inside a stream that it has opened with 200."""
    login = Login("pylb", "secret")
    async with Etcd([guarded.url], Credentials(login)) as other, Etcd([guarded.url], Credentials(login)) as etcd:
        revision, _ = await other.list(b"/mine/")
        await other.txn(Txn({}, puts={b"/mine/a": b""}))
        with pytest.raises(_SeenError):
            await etcd.watch(b"/mine/", revision, _raise)


class _SeenError(Exception):
    pass


def _raise(_revision: int, _events: object) -> None:
    raise _SeenError


async def test_wrong_credentials_and_missing_rights_are_named(guarded: Member) -> None:
    async with Etcd([guarded.url]) as etcd:
        with pytest.raises(Denied, match=r"set cluster\.etcd\.username"):
            await etcd.list(b"/mine/")
    async with Etcd([guarded.url], Credentials(Login("pylb", "wrong"))) as etcd:
        with pytest.raises(Denied, match="invalid user ID or password"):
            await etcd.list(b"/mine/")
        assert etcd.endpoint == guarded.url
    async with Etcd([guarded.url], Credentials(Login("pylb", "secret"))) as etcd:
        with pytest.raises(Denied, match="permission denied"):
            await etcd.list(b"/theirs/")
        with pytest.raises(Denied, match="permission denied"):
            await etcd.watch(b"/theirs/", 1, _raise)


async def test_doctor_names_missing_rights(guarded: Member) -> None:
    waits = Waits(call=3.0, silence=3.0)
    for prefix, ok in (("/mine", True), ("/theirs", False)):
        login = Credentials(Login("pylb", "secret"))
        found = {one.what: one async for one in examine("lb-a", [guarded.url], prefix, login, waits)}
        assert found[f"etcd {guarded.url}"].ok
        assert found["etcd's keys"].ok is ok
    assert "permission denied" in found["etcd's keys"].found
    wrong = Credentials(Login("pylb", "wrong"))
    found = {one.what: one async for one in examine("lb-a", [guarded.url], "/mine", wrong, waits)}
    assert not found["etcd's keys"].ok
    assert "invalid user ID or password" in found["etcd's keys"].found


async def test_a_gateway_that_is_off_is_named(tmp_path: Path) -> None:
    """As it is by default if etcd is started by a config file."""
    port, peer, data = free_port(), free_port(), tmp_path / "data"
    client_url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    file = tmp_path / "etcd.yaml"
    file.write_text(
        f"name: one\ndata-dir: {data}\nlisten-client-urls: {client_url}\nadvertise-client-urls: {client_url}\n"
        f"listen-peer-urls: {peer_url}\ninitial-advertise-peer-urls: {peer_url}\ninitial-cluster: one={peer_url}\n"
    )
    with Processes(tmp_path) as processes:
        processes.start("etcd", (need("etcd"), "--config-file", str(file)))
        async with Etcd([client_url]) as etcd:
            member = Member("one", tmp_path, processes, url=client_url)
            eventually(member.is_up, within=20)
            with pytest.raises(Unreachable, match="enable-grpc-gateway: true"):
                await etcd.list(b"/")
            with pytest.raises(Unreachable, match="enable-grpc-gateway: true"):
                await etcd.watch(b"/", 1, _raise)


async def test_a_client_certificate_with_a_common_name_is_named(tmp_path: Path) -> None:
    made = self_signed(tmp_path, "localhost")
    url = f"https://localhost:{free_port()}"
    files = ("--cert-file", str(made.certificate), "--key-file", str(made.key), "--trusted-ca-file", str(made.certificate))
    tls = ssl.create_default_context(cafile=str(made.certificate))
    tls.load_cert_chain(made.certificate, made.key)
    with Processes(tmp_path) as processes:
        member = Member("one", tmp_path, processes, (*files, "--client-cert-auth", "--bcrypt-cost", "4"), url)
        member.tls = tls
        member.start()
        member.wait()
        async with Etcd([url], Credentials(tls=tls)) as etcd:
            await etcd.list(b"/")
            member.add_root("root")
            with pytest.raises(Denied, match="use a certificate without one"):
                await etcd.list(b"/")
        async with Etcd([url]) as etcd:
            with pytest.raises(Unreachable, match="certificate"):
                await etcd.list(b"/")
