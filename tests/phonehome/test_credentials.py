"""Tokens, pins and authorities follow their files, and survive a file that is missing or half written."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Callable
from pathlib import Path

import pytest

from phonehome.client import CallError, trust
from phonehome.credentials import Credentials, read_file, tokens
from phonehome.message import READY, Accepted, Request
from phonehome.runner import Caller
from phonehome.settings import Settings, parse
from tests.phonehome.peer import ENVIRON, TOKEN, LoadBalancer
from tests.phonehome.test_client import pin_of, server_context
from tests.phonehome.tls import self_signed

REQUEST = Request("PUT", "/v1/registrations/a/b", b"{}")
PIN, NEXT = "A" * 43, "B" * 43


def parsed(**environ: str) -> Settings:
    return parse({"PYLB_FRONTENDS": "443:30443", **environ}, hostname="pod-1", read_file=read_file)


@pytest.fixture
def join(tmp_path: Path) -> Path:
    file = tmp_path / "join"
    file.write_text(f"pylb://app:{TOKEN}@lb.example.net:9000/{PIN}\n")
    return file


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def carried(join: Path, log: list[str]) -> Credentials:
    settings = parsed(PYLB_JOIN_FILE=str(join))
    return Credentials(settings, settings.endpoints[0], None, log.append)


def test_token_and_pins_of_a_join_file_are_read_again(join: Path, carried: Credentials, log: list[str]) -> None:
    join.write_text(f"PYLB_JOIN=pylb://app:another-token@lb.example.net:9000/{PIN}/{NEXT}\n")
    carried.refresh()
    assert (carried.token, carried.pins) == ("another-token", (PIN, NEXT))
    assert log == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "now names nothing"),
        ("pylb://app:another-tok", "not a join string"),
        (f"pylb://app:another-token@lb.example.net:9000/{NEXT[:-1]}", "was it cut?"),
        (f"pylb://app:another-token@lb2.example.net:9000/{NEXT}", "now names lb2.example.net:9000 (which needs a restart)"),
        (None, "No such file or directory"),
    ],
)
def test_a_join_file_that_cannot_be_used_changes_nothing_and_is_said_once(
    join: Path, carried: Credentials, log: list[str], text: str | None, says: str
) -> None:
    whole = join.read_text()
    join.unlink() if text is None else join.write_text(text)
    for _ in range(3):
        carried.refresh()
    assert (carried.token, carried.pins) == (TOKEN, (PIN,))
    assert len(log) == 1
    assert says in log[0]
    assert "another" not in log[0]
    join.write_text(whole.replace(PIN, NEXT))
    carried.refresh()
    assert carried.pins == (NEXT,)


def test_a_key_that_changed_is_taken_once_the_join_file_has_its_pin(
    load_balancers: Callable[..., LoadBalancer], tmp_path: Path
) -> None:
    certificate, key = self_signed(tmp_path, ipaddress.ip_address("127.0.0.1"), dt.timedelta(days=1))
    load_balancer = load_balancers(server_context(certificate, key))
    file, where = tmp_path / "join", f"127.0.0.1:{load_balancer.port}"
    file.write_text(f"pylb://app:{TOKEN}@{where}/{PIN}")
    settings = parsed(PYLB_JOIN_FILE=str(file))
    caller = Caller(settings, settings.endpoints[0], None, lambda _: None)
    assert isinstance(caller.ask(REQUEST, READY), CallError)
    assert load_balancer.calls.empty()
    file.write_text(f"pylb://app:{TOKEN}@{where}/{PIN}/{pin_of(certificate)}")
    assert isinstance(caller.ask(REQUEST, READY), Accepted)


def test_a_renewed_authority_is_read_again(load_balancers: Callable[..., LoadBalancer], tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
    old, _ = self_signed(tmp_path / "old", ipaddress.ip_address("127.0.0.1"), dt.timedelta(days=1))
    certificate, key = self_signed(tmp_path / "new", ipaddress.ip_address("127.0.0.1"), dt.timedelta(days=1))
    load_balancer = load_balancers(server_context(certificate, key))
    file, log = tmp_path / "ca.crt", []
    file.write_text(old.read_text())
    settings = parsed(**{**ENVIRON, "PYLB_URL": load_balancer.url}, PYLB_CA=str(file))
    caller = Caller(settings, settings.endpoints[0], trust(settings.ca), log.append)
    assert isinstance(caller.ask(REQUEST, READY), CallError)
    file.write_text(certificate.read_text())
    assert isinstance(caller.ask(REQUEST, READY), Accepted)
    file.write_text("half a certif")
    assert isinstance(caller.ask(REQUEST, READY), Accepted)
    assert "contains no usable certificate; the previous content stays in use" in log[-1]


def test_the_tokens_at_the_door_are_those_of_the_files_now(join: Path) -> None:
    settings = parsed(PYLB_JOIN_FILE=str(join))
    join.write_text(join.read_text().replace(TOKEN, "another-token"))
    assert tokens(settings) == ["another-token"]
    join.unlink()
    assert tokens(settings) == [TOKEN]
