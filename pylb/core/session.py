"""The life of a session as one literal table, and the record of it when it is over.

Two halves, *downstream* (client side) and *upstream* (server side). The table sees about ten events per session; chunks of
data never go through it. An unknown (state, event) is a bug and raises KeyError.

A FIN becomes an event only after all bytes before it were written, because a half is not read while its peer is blocked. So
nothing remains to be delivered at the second FIN, and no state is needed for it: the kernel sends what it holds after close().
"""

from enum import StrEnum
from typing import NamedTuple, Protocol

from pylb.core.address import Address, Listen
from pylb.core.table import Server


class _Word(StrEnum):
    """A key of the table. Enum's own hash is a Python function, called a dozen times per session; that of str is not."""

    __hash__ = str.__hash__


class State(_Word):
    AWAITING_HEADER = "awaiting header"  # a trusted client's PROXY header is incomplete
    AWAITING_HELLO = "awaiting hello"  # on a port with routes: which one it belongs to is not known yet
    REJECTING = "rejecting"  # there is no route for it: it has been sent an alert, and may read that
    QUEUED = "queued"  # all servers are full
    DIALING = "dialing"  # the client is accepted, no server has accepted yet
    RELAYING = "relaying"  # bytes flow both ways
    CLIENT_DONE = "client done"  # half-closed: the client sent FIN, the server still sends
    SERVER_DONE = "server done"  # half-closed: the server sent FIN, the client still sends
    RESETTING = "resetting"  # one side was reset; the other gets what came before, then the reset
    CLOSED = "closed"


class Event(_Word):
    HEADER_READ = "header read"
    HELLO_EXPECTED = "hello expected"  # the header is read, and its port has routes
    ROUTED = "routed"  # to a server name's route, or the default one
    NO_ROUTE = "no route"
    REFUSED = "refused"  # by pylb: the header, the hello, the access list, a limit
    SERVERS_FULL = "servers full"
    ROOM = "room"  # a server has one session fewer
    CONNECTED = "connected"
    CONNECT_FAILED = "connect failed"  # refused, unreachable or timed out, and another server may be tried
    NO_SERVER_LEFT = "no server left"
    CLIENT_FIN = "client FIN"  # a read returned 0
    SERVER_FIN = "server FIN"
    CLIENT_RESET = "client reset"
    SERVER_RESET = "server reset"
    FLUSHED = "flushed"  # everything before a reset is delivered
    TIMED_OUT = "timed out"  # header, alert, queue, idle, half-close or flush, or a peer that stopped acknowledging
    KILLED = "killed"  # drain deadline, shutdown, or a fault of pylb


class Action(_Word):
    """What the engine does when it enters the next state."""

    AWAIT_HELLO = "look for the hello"
    ALERT = "alert and FIN to the client"
    QUEUE = "wait for a server"
    DIAL = "dial the next server"
    RELAY = "move bytes both ways"
    FIN_TO_SERVER = "FIN to the server, behind the last byte"
    FIN_TO_CLIENT = "FIN to the client, behind the last byte"
    FLUSH_TO_SERVER = "deliver the rest to the server"
    FLUSH_TO_CLIENT = "deliver the rest to the client"
    CLOSE = "close both in order"
    RESET = "reset both"


_S, _E, _A = State, Event, Action

TRANSITIONS: dict[tuple[State, Event], tuple[State, Action]] = {
    (_S.AWAITING_HEADER, _E.HEADER_READ): (_S.DIALING, _A.DIAL),
    (_S.AWAITING_HEADER, _E.HELLO_EXPECTED): (_S.AWAITING_HELLO, _A.AWAIT_HELLO),
    (_S.AWAITING_HEADER, _E.REFUSED): (_S.CLOSED, _A.RESET),
    (_S.AWAITING_HEADER, _E.CLIENT_RESET): (_S.CLOSED, _A.RESET),
    (_S.AWAITING_HEADER, _E.TIMED_OUT): (_S.CLOSED, _A.RESET),
    (_S.AWAITING_HEADER, _E.KILLED): (_S.CLOSED, _A.RESET),
    (_S.AWAITING_HELLO, _E.ROUTED): (_S.DIALING, _A.DIAL),
    (_S.AWAITING_HELLO, _E.NO_ROUTE): (_S.REJECTING, _A.ALERT),
    (_S.AWAITING_HELLO, _E.REFUSED): (_S.CLOSED, _A.RESET),
    (_S.AWAITING_HELLO, _E.CLIENT_RESET): (_S.CLOSED, _A.RESET),
    (_S.AWAITING_HELLO, _E.KILLED): (_S.CLOSED, _A.RESET),
    (_S.REJECTING, _E.CLIENT_FIN): (_S.CLOSED, _A.CLOSE),
    (_S.REJECTING, _E.CLIENT_RESET): (_S.CLOSED, _A.RESET),
    (_S.REJECTING, _E.TIMED_OUT): (_S.CLOSED, _A.CLOSE),
    (_S.REJECTING, _E.KILLED): (_S.CLOSED, _A.RESET),
    (_S.DIALING, _E.SERVERS_FULL): (_S.QUEUED, _A.QUEUE),
    (_S.QUEUED, _E.ROOM): (_S.DIALING, _A.DIAL),
    (_S.QUEUED, _E.REFUSED): (_S.CLOSED, _A.RESET),
    (_S.QUEUED, _E.CLIENT_RESET): (_S.CLOSED, _A.RESET),
    (_S.QUEUED, _E.TIMED_OUT): (_S.CLOSED, _A.RESET),
    (_S.QUEUED, _E.KILLED): (_S.CLOSED, _A.RESET),
    (_S.DIALING, _E.CONNECTED): (_S.RELAYING, _A.RELAY),
    (_S.DIALING, _E.CONNECT_FAILED): (_S.DIALING, _A.DIAL),
    (_S.DIALING, _E.NO_SERVER_LEFT): (_S.CLOSED, _A.RESET),
    (_S.DIALING, _E.CLIENT_RESET): (_S.CLOSED, _A.RESET),
    (_S.DIALING, _E.KILLED): (_S.CLOSED, _A.RESET),
    (_S.RELAYING, _E.CLIENT_FIN): (_S.CLIENT_DONE, _A.FIN_TO_SERVER),
    (_S.RELAYING, _E.SERVER_FIN): (_S.SERVER_DONE, _A.FIN_TO_CLIENT),
    (_S.RELAYING, _E.CLIENT_RESET): (_S.RESETTING, _A.FLUSH_TO_SERVER),
    (_S.RELAYING, _E.SERVER_RESET): (_S.RESETTING, _A.FLUSH_TO_CLIENT),
    (_S.RELAYING, _E.TIMED_OUT): (_S.CLOSED, _A.RESET),
    (_S.RELAYING, _E.KILLED): (_S.CLOSED, _A.RESET),
    (_S.CLIENT_DONE, _E.SERVER_FIN): (_S.CLOSED, _A.CLOSE),
    (_S.CLIENT_DONE, _E.CLIENT_RESET): (_S.RESETTING, _A.FLUSH_TO_SERVER),
    (_S.CLIENT_DONE, _E.SERVER_RESET): (_S.RESETTING, _A.FLUSH_TO_CLIENT),
    (_S.CLIENT_DONE, _E.TIMED_OUT): (_S.CLOSED, _A.RESET),
    (_S.CLIENT_DONE, _E.KILLED): (_S.CLOSED, _A.RESET),
    (_S.SERVER_DONE, _E.CLIENT_FIN): (_S.CLOSED, _A.CLOSE),
    (_S.SERVER_DONE, _E.CLIENT_RESET): (_S.RESETTING, _A.FLUSH_TO_SERVER),
    (_S.SERVER_DONE, _E.SERVER_RESET): (_S.RESETTING, _A.FLUSH_TO_CLIENT),
    (_S.SERVER_DONE, _E.TIMED_OUT): (_S.CLOSED, _A.RESET),
    (_S.SERVER_DONE, _E.KILLED): (_S.CLOSED, _A.RESET),
    (_S.RESETTING, _E.FLUSHED): (_S.CLOSED, _A.RESET),
    (_S.RESETTING, _E.CLIENT_RESET): (_S.CLOSED, _A.RESET),
    (_S.RESETTING, _E.SERVER_RESET): (_S.CLOSED, _A.RESET),
    (_S.RESETTING, _E.TIMED_OUT): (_S.CLOSED, _A.RESET),
    (_S.RESETTING, _E.KILLED): (_S.CLOSED, _A.RESET),
}


class Cause(StrEnum):
    """Who ended it: the first of HAProxy's two letters (its configuration manual, 8.5 "Session state at disconnection")."""

    NORMAL = "-"
    CLIENT = "C"  # the client aborted
    SERVER = "S"  # the server aborted or refused
    CLIENT_TIMEOUT = "c"  # pylb waited for the client
    SERVER_TIMEOUT = "s"  # pylb waited for the server
    RESOURCE = "R"  # local ports, descriptors or memory ran out
    INTERNAL = "I"  # a fault of pylb
    KILLED = "K"  # drain deadline, shutdown, `pylb ctl shutdown`
    DOWN = "D"  # the server was found down, and on_down says close
    PROXY = "P"  # refused by pylb


def termination_code(cause: Cause, state: State, *, last: bool = False) -> str:
    """The two letters of a session that `cause` ended in `state`: log field and metric label.

    `last`: both sides had sent their FIN, and only the end of the server's data was still on its way to the client.
    """
    if cause is Cause.NORMAL:
        return "--"
    return cause + ("L" if last else _STAGES.get(state, "D"))


_STAGES = {State.AWAITING_HEADER: "R", State.AWAITING_HELLO: "R", State.REJECTING: "R", State.QUEUED: "Q", State.DIALING: "C"}


class SessionRecord(NamedTuple):
    """One ended session. Times in milliseconds, -1 for a stage that was not reached; counts include this session."""

    frontend: str
    server: str  # "" if none accepted or was tried
    client: str
    client_port: int
    listen_port: int
    accepted_at: float  # unix time, seconds
    queue_ms: int
    connect_ms: int
    total_ms: int
    bytes_in: int  # client to server
    bytes_out: int  # server to client
    code: str
    retries: int
    redispatched: bool
    active: int  # sessions of the process and the frontend at the end, and of the server then: this one not included
    frontend_active: int
    server_active: int
    ahead: int = 0  # sessions before it in the queue, if it had to wait
    unique_id: str = ""  # sent or received in a PROXY header, hex
    number: int = 0  # the session's number, unique over all workers: core.recorder writes it as its id
    asked: str = ""  # the server name that its client asked for, safe to show; read only on ports with routes


class SessionView(NamedTuple):
    """One live session."""

    client: str
    client_port: int
    frontend: str
    listen: Listen
    server: str  # "" while it has none
    address: Address | None
    state: str
    age: float  # seconds
    bytes_in: int
    bytes_out: int
    id: str = ""  # as core.recorder writes it
    asked: str = ""  # as in a record


class Observer(Protocol):
    """What the engine reports while it works. Both calls are cheap and never raise."""

    @property
    def wants_records(self) -> bool:
        """Is `session_ended` to be called? Asked once per batch; without that no record is made."""

    def session_ended(self, record: SessionRecord) -> None: ...

    def connect_ended(self, listen: Listen, server: Server, failure: str | None) -> None:
        """`failure` is "refused", "timeout", "unreachable" or "resource"; None, a success, is reported only after a failure."""
