"""The abstract socket between `phonehome drain` and the running process."""

from __future__ import annotations

import os
import queue
import socket
import threading
import uuid
from collections.abc import Callable, Iterator

import pytest

from phonehome import drain_socket as drain_socket_module
from phonehome.drain_socket import BusyError, DrainSocket, request_drain, socket_name

NOBODY = 65534
TOKENS = ["q7Zk-2vX_9Lm4Rt8Wn3Bc6Yd1Fg5Hj0P", "another-one-of-some-length"]


@pytest.fixture
def instance() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def orders() -> list[str]:
    return []


@pytest.fixture
def drain_socket(instance: str, orders: list[str]) -> Iterator[DrainSocket]:
    def answer() -> list[str]:
        orders.append("drain")
        return ["lb: draining"]

    made = DrainSocket("app", instance, lambda: TOKENS, answer, orders.append)
    assert made.open()
    thread = threading.Thread(target=made.serve)
    thread.start()
    yield made
    made.close()
    thread.join(10)


@pytest.fixture
def as_nobody() -> Iterator[Callable[[], None]]:
    """Turns the effective user, which is what SO_PEERCRED tells, into nobody and back."""
    yield lambda: os.seteuid(NOBODY)
    os.seteuid(os.getuid())


def test_the_order_comes_through_and_its_answer_back(drain_socket: DrainSocket, instance: str, orders: list[str]) -> None:
    assert request_drain("app", instance, TOKENS, 10) == ["lb: draining"]
    assert request_drain("app", instance, TOKENS, 10) == ["lb: draining"]
    assert orders == ["drain", "drain"]


def test_nobody_at_the_socket_is_none(instance: str) -> None:
    assert request_drain("app", instance, TOKENS, 10) is None


def test_another_name_instance_or_user_is_another_socket(instance: str) -> None:
    names = {
        socket_name("app", instance, 0),
        socket_name("app", instance + "x", 0),
        socket_name("app", instance, 1),
        socket_name("ap", "p" + instance, 0),
    }
    assert len(names) == 4
    assert all(len(name) < 108 for name in names)  # sun_path


def test_a_second_process_does_not_take_the_socket_over(drain_socket: DrainSocket, instance: str, orders: list[str]) -> None:
    second = DrainSocket("app", instance, lambda: TOKENS, lambda: ["second"], orders.append)
    assert not second.open()
    second.close()
    assert request_drain("app", instance, TOKENS, 10) == ["lb: draining"]


def test_anything_but_the_order_is_ignored(drain_socket: DrainSocket, instance: str, orders: list[str]) -> None:
    for data in (b"", b"drain\n", b"x" * 64, b"\xff\n", b"a b\n", b"a\ndrain\n", b"a\ndrain " + b"0" * 64 + b"\n"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(socket_name("app", instance, os.getuid()))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            said = b""
            while chunk := sock.recv(4096):
                said += chunk
            assert b"lines" not in said
    assert orders == []


def test_a_caller_that_speaks_drop_by_drop_is_sent_away_with_the_deadline_of_its_line(
    drain_socket: DrainSocket, instance: str, orders: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain_socket_module, "LINE_TIMEOUT", 0.3)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(0.05)  # the pause between two drops
        sock.connect(socket_name("app", instance, os.getuid()))
        for _ in range(400):
            try:
                sock.sendall(b"a")
                assert sock.recv(1) == b""
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                pass  # it hung up with our last drop unread
            break
        else:
            pytest.fail("it is listened to for ever")
    assert request_drain("app", instance, TOKENS, 10) == ["lb: draining"]


def test_a_caller_that_leaves_at_once_does_no_harm(drain_socket: DrainSocket, instance: str) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(socket_name("app", instance, os.getuid()))
    assert request_drain("app", instance, TOKENS, 10) == ["lb: draining"]


def test_a_neighbour_that_fills_the_backlog_keeps_callers_out_and_no_longer_than_it_stays(
    drain_socket: DrainSocket, instance: str, orders: list[str]
) -> None:
    """What remains of an attack (docs/security.md): `phonehome drain` then says goodbye to the load balancer itself."""
    crowd = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for sock in crowd:
        sock.setblocking(False)
        sock.connect_ex(socket_name("app", instance, os.getuid()))
    assert request_drain("app", instance, TOKENS, 10) is None
    assert orders == []
    for sock in crowd:
        sock.close()
    while request_drain("app", instance, TOKENS, 10) is None:
        pass  # those that hung up are still being accepted
    assert orders == ["drain"]


@pytest.mark.parametrize("tokens", [[], ["guessed"], ["q7Zk"], ["", "\u00e9"]])
def test_who_does_not_know_a_token_is_not_obeyed(
    drain_socket: DrainSocket, instance: str, orders: list[str], tokens: list[str]
) -> None:
    """The user and the network namespace are the same, as of a stranger's container with hostNetwork."""
    assert request_drain("app", instance, tokens, 10) is None
    assert orders == []


def test_one_token_in_common_is_enough(drain_socket: DrainSocket, instance: str, orders: list[str]) -> None:
    assert request_drain("app", instance, ["of a new load balancer", TOKENS[1]], 10) == ["lb: draining"]


def test_what_was_said_at_one_socket_opens_no_other_and_not_this_one_again(
    drain_socket: DrainSocket, instance: str, orders: list[str]
) -> None:
    """Whoever listens in on a socket, or stands between, has heard what is of no use elsewhere."""
    heard = said_to(instance, TOKENS)
    assert heard.startswith(b"drain ")
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(socket_name("app", instance, os.getuid()))
            sock.sendall(b"a\n")
            sock.recv(4096)
            sock.sendall(heard)
            assert sock.recv(4096) == b""
    assert orders == []
    assert not any(token.encode() in heard for token in TOKENS)


def said_to(instance: str, tokens: list[str]) -> bytes:
    """What a caller who takes us for the running process of another instance says when it gives the order."""
    other, heard = instance + "x", queue.Queue[bytes]()

    def listen() -> None:
        caller, _ = listener.accept()
        with caller:
            theirs, mine = caller.recv(4096).decode().strip(), "0" * 32
            handshake = drain_socket_module._Handshake(socket_name("app", other, os.getuid()), tokens, theirs, mine)
            caller.sendall(" ".join([mine, *handshake.proofs("bell")]).encode() + b"\n")
            heard.put(caller.recv(4096))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(socket_name("app", other, os.getuid()))
        listener.listen(1)
        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(BusyError):
            request_drain("app", other, tokens, 10)
        thread.join(10)
    return heard.get_nowait()


@pytest.mark.parametrize("answer", [b"", b"\n", b"\xff\n", b"0 1 2\n", b'{"lines": ["all is well"]}\n'])
def test_somebody_elses_answer_at_the_socket_is_taken_for_nobodys(instance: str, answer: bytes) -> None:
    def pretend() -> None:
        caller, _ = squatter.accept()
        with caller:
            caller.recv(4096)
            caller.sendall(answer)

    with socket.socket(socket.AF_UNIX) as squatter:
        squatter.bind(socket_name("app", instance, os.getuid()))
        squatter.listen(1)
        thread = threading.Thread(target=pretend)
        thread.start()
        assert request_drain("app", instance, TOKENS, 10) is None
        thread.join(10)


def test_a_socket_that_opens_and_stays_silent_is_nobodys(instance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_socket_module, "LINE_TIMEOUT", 0.1)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(socket_name("app", instance, os.getuid()))
        silent.listen(1)
        assert request_drain("app", instance, TOKENS, 0.2) is None


@pytest.mark.root
def test_another_user_is_not_obeyed(
    drain_socket: DrainSocket, instance: str, orders: list[str], as_nobody: Callable[[], None]
) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        as_nobody()
        sock.connect(socket_name("app", instance, os.getuid()))
        os.seteuid(os.getuid())
        try:
            sock.sendall(b"drain\n")
            assert sock.recv(100) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed on us before or with our line unread: refused all the same
    assert orders == []


@pytest.mark.root
def test_another_users_socket_is_not_trusted(instance: str, as_nobody: Callable[[], None]) -> None:
    with socket.socket(socket.AF_UNIX) as squatter:
        as_nobody()
        squatter.bind(socket_name("app", instance, os.getuid()))
        squatter.listen(1)
        os.seteuid(os.getuid())
        assert request_drain("app", instance, TOKENS, 10) is None
