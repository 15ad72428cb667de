"""What Python does for one new connection: calls and bytecodes of pylb's engine and of the floor, without a clock.

    python -m bench.calls [-v]        calls of Python and C functions, and bytecodes, per connection

The same on every machine and on a busy one: 64 connections at a time are taken through accept, dial, a request, its answer with
the server's FIN, and the client's FIN, in lock step and in one thread. What the kernel does is not in it.
"""

import argparse
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from bench import processes
from bench.floor import Floor
from bench.tables import aligned
from pylb.core.address import Address, Listen
from pylb.core.policy import Policy
from pylb.core.session import SessionRecord
from pylb.core.table import Frontend, Server, make_table
from pylb.forward.engine import Engine

TOGETHER, ROUNDS, WARM = 64, 5, 3
TURNS = 12  # of the engine after each step; it has nothing left to do by then
SHOWN = 0.05  # per connection; rarer ones are not worth a line


class _NoLog:
    wants_records = False

    def session_ended(self, record: SessionRecord) -> None: ...

    def connect_ended(self, *_: object) -> None: ...


def _fail(what: str, error: Exception) -> None:
    raise RuntimeError(what) from error


def _pylb(port: int, server: int) -> Callable[[], None]:
    engine = Engine(observer=_NoLog(), max_connections=8000, on_fault=_fail, nofile=20_000, recorded=1000)
    listen = Listen("tcp", "127.0.0.1", port)
    frontend = Frontend("http", listen, Policy(), (Server("origin", Address("127.0.0.1", server)),))
    if failed := engine.apply(make_table(1, {listen: frontend})):
        raise failed[listen]

    def work() -> None:
        for _ in range(TURNS):
            engine.on_ready()

    return work


def _floor(port: int, server: int) -> Callable[[], None]:
    return Floor([(processes.Address("127.0.0.1", port), processes.Address("127.0.0.1", server))]).on_ready


class _Count:
    """Counts while `work` runs: calls by sys.setprofile, bytecodes by sys.settrace."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.calls: Counter[str] = Counter()
        self.bytecodes: Counter[str] = Counter()

    def count_calls(self) -> None:
        sys.setprofile(self._on_call)
        try:
            self._work()
        finally:
            sys.setprofile(None)

    def count_bytecodes(self) -> None:
        sys.settrace(self._on_bytecode)
        try:
            self._work()
        finally:
            sys.settrace(None)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            self.calls[_name(frame)] += 1
        elif event == "c_call":
            self.calls[argument.__qualname__] += 1

    def _on_bytecode(self, frame: FrameType, event: str, _argument: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode":
            self.bytecodes[_name(frame)] += 1
        return self._on_bytecode


def _name(frame: FrameType) -> str:
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_code.co_qualname}"


def _connections(port: int, origin: socket.socket, work: Callable[[], None]) -> None:
    """TOGETHER of them, from connect to close."""
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(TOGETHER)]
    work()
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    work()
    for _ in clients:
        server, _address = origin.accept()
        server.recv(4096)
        server.send(b"x" * 300)
        server.close()
    work()
    for client in clients:
        while client.recv(4096):
            pass
        client.close()
    work()


def measured(make: Callable[[int, int], Callable[[], None]]) -> tuple[Counter[str], Counter[str]]:
    """Calls and bytecodes of TOGETHER * ROUNDS connections, by function."""
    with socket.create_server(("127.0.0.1", 0), backlog=4 * TOGETHER) as origin:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        count = _Count(make(port, origin.getsockname()[1]))
        for _ in range(WARM):
            _connections(port, origin, count._work)  # noqa: SLF001 - its own module
        for _ in range(ROUNDS):
            _connections(port, origin, count.count_calls)
            _connections(port, origin, count.count_bytecodes)
    return count.calls, count.bytecodes


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser("python -m bench.calls", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("-v", "--verbose", action="store_true", help="by function")
    options = parser.parse_args()
    made, rows = TOGETHER * ROUNDS, [["per connection", "calls", "bytecodes"]]
    for name, make in (("pylb", _pylb), ("floor", _floor)):
        calls, bytecodes = measured(make)
        rows.append([name, f"{calls.total() / made:.1f}", f"{bytecodes.total() / made:.0f}"])
        if options.verbose:
            often = [function for function, count in calls.items() if count / made >= SHOWN]
            often.sort(key=lambda function: -(bytecodes[function] or calls[function]))
            rows += [[f"  {one}", f"{calls[one] / made:.2f}", f"{bytecodes[one] / made:.1f}"] for one in often]
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
