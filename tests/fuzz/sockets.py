"""The parsers behind the two unix sockets: lines for the control socket, commands for HAProxy's runtime socket."""

import asyncio
import atexit
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pylb.api.plan import Planned
from pylb.api.verbs import verbs
from pylb.config import load
from pylb.control.registry import Registry
from pylb.control.storage.store import Store
from pylb.control.views import STATIC, FrontendView, ServerView
from pylb.core.address import Address, Listen
from pylb.core.auth import Keyring
from pylb.core.errors import Code, Refused
from pylb.core.operator_overrides import find
from pylb.core.policy import Policy, ProxyProtocol, Rules
from pylb.core.recorder import Coverage, SearchResult, session_id
from pylb.core.session import SessionView
from pylb.core.table import Frontend, Server, Table
from pylb.forward.counters import Counters
from pylb.haproxy.commands import Commands
from pylb.haproxy.rates import Rates
from pylb.haproxy.runtime_socket import split
from pylb.haproxy.stats import Statistics
from pylb.haproxy.view import View
from pylb.web.control_socket import LINE_BYTES, ControlSocket
from pylb.web.sessions import named
from tests.fuzz.inputs import Parser
from tests.support.sink import PortSink

LISTEN, SERVER = Listen("tcp", "*", 443), Server("one", Address("192.0.2.7", 30443))
SESSIONS = tuple(
    SessionView(ip, port, "web", LISTEN, "one", SERVER.address, "relaying", 0.0, 0, 0, session_id(number))
    for number, (ip, port) in enumerate((("192.0.2.7", 50000), ("2001:db8::7", 1)), 1)
)
VIEW = ServerView("web", LISTEN, "one", SERVER.address, 1, ProxyProtocol.NONE, 0, "up", True, "yes", "", "", (STATIC,))
FRONTEND = FrontendView(Frontend("web", LISTEN, Policy(), (SERVER,)), [VIEW])
TABLE = Table(1, {LISTEN: FRONTEND.frontend})


class _Still(View):
    """A view of one frontend where nothing happens."""

    def __init__(self) -> None:
        self._rates = Rates()

    async def statistics(self) -> Statistics:
        return Statistics([FRONTEND], Counters(100), self._rates, 0.0)

    async def info(self) -> dict[str, int | str]:
        return {}


async def _done(_request: Mapping[str, Any]) -> dict[str, Any]:
    return {}


async def _no_sessions() -> Sequence[SessionView]:
    return ()


_VERBS = dict.fromkeys(("admin", "weight", "shutdown session", "shutdown sessions"), _done)
_COMMANDS = Commands(_Still(), _VERBS, _no_sessions)


async def _commanded(line: str) -> None:
    for words in split(line):
        answer = await _COMMANDS.answer(words)
        if isinstance(answer, str):
            assert answer == "" or answer.endswith("\n")
        else:
            async for piece in answer:
                assert piece.endswith("\n")


def commands(data: bytes) -> object:
    return _loop().run_until_complete(_commanded(data.decode("utf-8", "replace")))


def _session(data: bytes) -> list[SessionView]:
    return named(data.decode("utf-8", "replace"), SESSIONS)


def _is_one_alone(found: Any) -> None:
    assert found in ([], [SESSIONS[0]], [SESSIONS[1]])


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for all: to make one is most of the work."""
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


class _Service:
    """A running pylb without anything to read again."""

    reloaded = True
    file: Path | None = None

    def token_names(self) -> list[str]:
        return ["app"]

    async def plan(self, path: Path, text: str) -> Planned:
        load(path, {}, text=text)
        return Planned([], [])

    async def counters(self) -> Any:
        return Counters(100)

    async def reload(self) -> Any:
        raise Refused(Code.INVALID, "not here")

    async def upgrade(self) -> str:
        raise Refused(Code.INVALID, "not here")

    async def read_keys(self) -> None: ...

    def notes(self) -> list[str]:
        return []

    def token(self, _name: str) -> None:
        return None

    async def peers_active(self) -> dict[str, str]:
        return {}


class _Sessions:
    """Nobody is connected."""

    recording = True

    def workers(self) -> dict[str, Any]:
        return {}

    async def sessions(self) -> Sequence[Any]:
        return ()

    async def ended(self, _query: object) -> SearchResult:
        return SearchResult((), Coverage(0.0))

    async def trace(self, _number: int) -> None:
        return None

    async def shutdown_session(self, _client: Address) -> int:
        return 0

    async def shutdown_sessions(self, _listen: Listen, _server: Address) -> int:
        return 0


@cache
def _control() -> ControlSocket:
    folder = Path("/nonexistent")  # nothing is written: neither the store nor the socket is opened
    registry = Registry(rules=Rules(), keyring=Keyring(()), sink=PortSink(), store=Store(folder))
    return ControlSocket(folder / "control.sock", verbs(registry, _Service(), _Sessions()))  # type: ignore[arg-type]


def control(data: bytes) -> object:
    """What must not be said is "internal": that is a traceback in the log."""
    answer = _loop().run_until_complete(_control()._answer(data.partition(b"\n")[0] + b"\n"))
    assert answer.get("error") != "internal"
    json.dumps(answer)
    return answer


def _target(data: bytes) -> object:
    return find(TABLE, data.decode("utf-8", "replace"))


_LINES = (
    b'{"verb":"ping"}',
    b'{"verb":"history","what":"443"}',
    b'{"verb":"plan","path":"/etc/pylb.yaml","text":"frontends: []"}',
    b'{"verb":"plan","token":"t","name":"a","instance":"b","address":"192.0.2.7","body":"{}"}',
    b'{"verb":"explain","session":"0x1a2b"}',
    b'{"verb":"sessions","client":"192.0.2.0/24","limit":5}',
    b'{"verb":"sessions","ended":true,"since":600,"code":"SC"}',
    b'{"verb":"shutdown session","client":"192.0.2.7:50000"}',
    b'{"verb":"shutdown sessions","target":"web/one"}',
    b'{"verb":"import","token":"t","items":[{"dst-ip":"x","frontend-port":"25","backend-port":"3","action":"add"}]}',
)
_COMMAND_LINES = (
    *(
        b"show stat -1 7 -1",
        b"show stat up web 4 1",
        b"show info",
        b"show sess 0xc0000207c350",
        b"show servers state web",
        b"help show",
    ),
    *(
        b"set server web/one weight 50%",
        b"set server web/one state drain",
        b"set weight web/one 5",
        b"get weight 443/192.0.2.7:30443",
    ),
    *(b"shutdown session 192.0.2.7:50000", b"shutdown sessions server web/one", b"enable server web/one; show errors"),
)
SOCKETS = (
    Parser(
        "commands",
        commands,
        (),
        _COMMAND_LINES,
        (b"web/one ", b"weight ", b"%", b";", b"\\", b"set weight ", b"0x", b" "),
        most=40_000,
    ),
    Parser(
        "control socket",
        control,
        (),
        _LINES,
        (b'{"verb":"', b'"plan"', b'"body":"', b'"target":"', b"\\u0000"),
        most=LINE_BYTES,
        memory=2000,
    ),
    Parser(
        "session",
        _session,
        (ValueError,),
        (session_id(1).encode(), session_id(7).encode(), b"192.0.2.7:50000", b"[2001:db8::7]:1"),
        (b"0x", b"00", b":"),
        _is_one_alone,
    ),
    Parser("target", _target, (Refused,), (b"web/one", b"443/192.0.2.7:30443", b"192.0.2.7"), (b"/", b"web")),
)
