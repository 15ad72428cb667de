"""Pipes for bulk: lent, counted, and never with a byte of another session in them."""

import os
from collections.abc import Callable

import pytest

from pylb.forward.pipes import Pipe, Pipes
from tests.support.drive import Drive, Peer, server_at

MIB = 1 << 20
Make = Callable[..., Drive]


def test_a_pipe_with_bytes_in_it_never_goes_back_to_the_pool() -> None:
    """Security: the next session, another client's, would be given them."""
    pipes = Pipes(4)
    pipe = pipes.borrow()
    assert pipe is not None
    pipe.count = os.write(pipe.write_fd, b"a secret of this session")
    pipes.give_back(pipe)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pipe.read_fd)
    following = pipes.borrow()
    assert following is not None
    with pytest.raises(BlockingIOError):
        os.read(following.read_fd, 100)
    pipes.give_back(following)
    pipes.close()
    assert pipes.lent == 0


def test_no_byte_of_a_session_that_died_in_bulk_reaches_the_next(make_drive: Make) -> None:
    drive = make_drive(splice=True, max_pipes=1)
    backend = drive.backend(rcvbuf=4096)
    listen = drive.serve(server_at(backend))
    for letter in b"ABCDEF":
        client, server = drive.connect(listen), drive.accept(backend)
        die_in_bulk(drive, client, server, letter)
        assert set(server.got) == {letter}


def die_in_bulk(drive: Drive, client: Peer, server: Peer, letter: int) -> None:
    """End the session by a reset of one side while bytes of `letter` are stuck in its pipe."""

    def stuck() -> bool:
        """At rest while in bulk. A read that came back short, for the kernel was slower, ends bulk until there is more."""
        so_far = len(server.got)
        client.say(bytes([letter]) * 4 * MIB)
        server.reading = True
        drive.run_until(lambda: len(server.got) > so_far + MIB)
        server.reading = False
        drive.run_until_quiet()
        return any(half.pipe and half.pipe.count for half in drive.engine._life.halves.values())

    assert any(stuck() for _ in range(8)), "never stuck in the pipe"
    (client if letter % 2 else server).reset()
    client.close()
    server.reading = True
    drive.run_until(lambda: not drive.engine.counters.open_sessions and (server.closed or server.error))


def test_without_a_free_pipe_bulk_goes_on_by_recv_and_send(make_drive: Make) -> None:
    drive = make_drive(splice=True, max_pipes=0)
    client, server = drive.session()
    expected = drive.bulk(client, server, bytes(4 * MIB), until=lambda: drive.engine.counters.pipe_fallbacks)
    client.finish()
    drive.run_until(lambda: server.eof)
    assert server.got == expected
    assert drive.engine.counters.pipe_fallbacks >= 1


def test_a_pool_keeps_few_pipes_and_lends_no_more_than_its_cap() -> None:
    pipes = Pipes(2, keep=1)
    lent: list[Pipe] = [pipe for pipe in (pipes.borrow(), pipes.borrow(), pipes.borrow()) if pipe is not None]
    assert len(lent) == pipes.lent == 2
    for pipe in lent:
        pipes.give_back(pipe)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lent[1].read_fd)
    pipes.close()


def test_a_quiet_session_keeps_no_pipe(make_drive: Make) -> None:
    drive = make_drive(splice=True)
    client, server = drive.session()
    client.say(bytes(4 * MIB))
    drive.run_until(lambda: len(server.got) == 4 * MIB)
    drive.pass_time(15, step=0.5)
    assert drive.engine._pipes.lent == 0
    client.say(b"and on")
    drive.run_until(lambda: server.got.endswith(b"and on"))
