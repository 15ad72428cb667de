"""The soak's own judgement: it finds what is wrong, and a short run through a real pylb finds nothing."""

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest

from bench.soak.run import is_loss
from bench.soak.streams import End, Half, Peer, Script, play, scripts, verdict
from tests.support.processes import ROOT

SCRIPT = Script(number=7, end=End.TOGETHER, up=100_000, down=50_000, chunk=1000)


async def played(script: Script, spoil: Callable[[bytes], bytes] | None = None) -> tuple[Half, Half]:
    """Both ends over a pair of sockets, with `spoil` between server and client if given."""
    loop = asyncio.get_running_loop()
    client, inner = socket.socketpair()
    outer, server = (inner, inner) if spoil is None else socket.socketpair()
    if spoil is None:
        server = inner
    for sock in {client, inner, outer, server}:
        sock.setblocking(False)
    one, two = Peer(client, script.number, script.number + 1), Peer(server, script.number + 1, script.number)

    async def carry(source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        while data := await loop.sock_recv(source, 65536):
            await loop.sock_sendall(target, change(data))
        target.shutdown(socket.SHUT_WR)

    jobs = [play(one, script, client=True), play(two, script, client=False)]
    if spoil is not None:
        jobs += [carry(inner, outer, lambda data: data), carry(outer, inner, spoil)]
    async with asyncio.timeout(10):
        await asyncio.gather(*jobs)
    for sock in {client, inner, outer, server}:
        sock.close()
    return one.half, two.half


@pytest.mark.parametrize("end", [End.TOGETHER, End.CLIENT_FIRST, End.SERVER_FIRST])
async def test_a_stream_that_came_out_right_is_right(end: End) -> None:
    assert verdict(SCRIPT, *await played(replace(SCRIPT, end=end))) == []


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lambda data: data[1:], "is not what was sent"),
        (lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:] if len(data) > 100 else data, "is not what was sent"),
        (lambda data: data + b"x", "is not what was sent"),
        (lambda _data: b"", "clean FIN after 0 of"),
    ],
    ids=["a byte lost", "a byte changed", "a byte added", "nothing arrived"],
)
async def test_what_a_bad_proxy_does_is_found(spoil: Callable[[bytes], bytes], found: str) -> None:
    assert any(found in text for text in verdict(SCRIPT, *await played(SCRIPT, spoil)))


def test_a_truncated_stream_that_ends_by_fin_and_a_reset_from_nowhere_are_found() -> None:
    server = Half(sent=100, got=10, ended="self")
    assert verdict(replace(SCRIPT, end=End.SERVER_RESET), Half(sent=10, got=40, ended="fin"), server)
    assert verdict(SCRIPT, Half(sent=10, got=40, ended="reset"), Half(sent=100, got=10, ended="fin"))
    assert verdict(SCRIPT, Half(sent=10, ended="reset"), None)


def test_the_same_seed_gives_the_same_scripts_and_every_end() -> None:
    first, again = (list(islice(scripts(random.Random(3), 1 << 20), 300)) for _ in "ab")
    assert first == again
    assert {script.end for script in first} == {*End}


def short(*more: str) -> str:
    argv = [sys.executable, "-m", "bench", "soak", "--minutes", "0.06", "--seed", "1", "--streams", "8", "--largest", "200000"]
    done = subprocess.run([*argv, *more], cwd=ROOT, capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_few_seconds_of_soak_find_nothing() -> None:
    assert ["wrong", "0"] in [line.split() for line in short().splitlines()]


def test_a_few_seconds_with_deaths_find_nothing_either() -> None:
    said = short("--kills")
    assert ["wrong", "0"] in [line.split() for line in said.splitlines()]
    assert "deaths " in said


def test_only_a_reset_is_excused_by_the_death_of_a_worker() -> None:
    short_by_fin = verdict(SCRIPT, Half(sent=10, got=40, ended="fin"), Half(sent=100, got=10, ended="fin"))
    assert not any(map(is_loss, short_by_fin))
    assert all(map(is_loss, verdict(SCRIPT, Half(sent=100, got=40, ended="reset"), Half(sent=100, got=10, ended="reset"))))
    assert all(map(is_loss, verdict(SCRIPT, Half(ended="reset"), None)))
    assert not any(map(is_loss, verdict(SCRIPT, Half(ended="fin"), None)))
