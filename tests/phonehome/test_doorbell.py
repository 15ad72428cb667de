"""The abstract socket between `phonehome drain` and the running process."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest

from phonehome.doorbell import BusyError, Doorbell, door, ring

NOBODY = 65534


@pytest.fixture
def instance() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def orders() -> list[str]:
    return []


@pytest.fixture
def bell(instance: str, orders: list[str]) -> Iterator[Doorbell]:
    def answer() -> list[str]:
        orders.append("drain")
        return ["lb: draining"]

    doorbell = Doorbell("app", instance, answer, orders.append)
    assert doorbell.open()
    thread = threading.Thread(target=doorbell.serve)
    thread.start()
    yield doorbell
    doorbell.close()
    thread.join(10)


@pytest.fixture
def as_nobody() -> Iterator[Callable[[], None]]:
    """Turns the effective user, which is what SO_PEERCRED tells, into nobody and back."""
    yield lambda: os.seteuid(NOBODY)
    os.seteuid(os.getuid())


def test_the_order_comes_through_and_its_answer_back(bell: Doorbell, instance: str, orders: list[str]) -> None:
    assert ring("app", instance, 10) == ["lb: draining"]
    assert ring("app", instance, 10) == ["lb: draining"]
    assert orders == ["drain", "drain"]


def test_nobody_at_the_door_is_none(instance: str) -> None:
    assert ring("app", instance, 10) is None


def test_another_name_instance_or_user_is_another_door(instance: str) -> None:
    doors = {door("app", instance, 0), door("app", instance + "x", 0), door("app", instance, 1), door("ap", "p" + instance, 0)}
    assert len(doors) == 4
    assert all(len(name) < 108 for name in doors)  # sun_path


def test_a_second_process_does_not_take_the_door_over(bell: Doorbell, instance: str, orders: list[str]) -> None:
    second = Doorbell("app", instance, lambda: ["second"], orders.append)
    assert not second.open()
    second.close()
    assert ring("app", instance, 10) == ["lb: draining"]


def test_anything_but_the_order_is_ignored(bell: Doorbell, instance: str, orders: list[str]) -> None:
    for data in (b"", b"release\n", b"x" * 64):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(door("app", instance, os.getuid()))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
    assert orders == []


def test_a_caller_that_leaves_at_once_does_no_harm(bell: Doorbell, instance: str) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(door("app", instance, os.getuid()))
    assert ring("app", instance, 10) == ["lb: draining"]


def test_a_door_that_opens_and_stays_silent_is_busy(instance: str) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(door("app", instance, os.getuid()))
        silent.listen(1)
        with pytest.raises(BusyError):
            ring("app", instance, 0.2)


@pytest.mark.root
def test_another_user_is_not_obeyed(bell: Doorbell, instance: str, orders: list[str], as_nobody: Callable[[], None]) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        as_nobody()
        sock.connect(door("app", instance, os.getuid()))
        os.seteuid(os.getuid())
        try:
            sock.sendall(b"drain\n")
            assert sock.recv(100) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed on us before or with our line unread: refused all the same
    assert orders == []


@pytest.mark.root
def test_another_users_door_is_not_trusted(instance: str, as_nobody: Callable[[], None]) -> None:
    with socket.socket(socket.AF_UNIX) as squatter:
        as_nobody()
        squatter.bind(door("app", instance, os.getuid()))
        squatter.listen(1)
        os.seteuid(os.getuid())
        assert ring("app", instance, 10) is None
