"""The log of sessions: which of them get a line, and where it goes. Decided before one is made: a dropped line is free."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from pylb.core.address import parse_port
from pylb.core.session import SessionRecord

Format = Literal["tcplog", "logfmt", "json", "none"]

# By number: their names in syslog (RFC 5424, 6.2.1), as HAProxy's `log ADDRESS FACILITY` takes them.
FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "auth2", "ftp", "ntp", "audit"),
    *("alert", "cron2", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"),
)
_INFO = 6  # the severity of a session's line in HAProxy, however it ended


class Target(NamedTuple):
    """Where lines go. `place`: a path, or a host."""

    kind: Literal["stdout", "file", "udp", "unix"] = "stdout"
    place: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.kind == "udp":
            return f"udp:{f'[{self.place}]' if ':' in self.place else self.place}:{self.port}"
        return f"{self.kind}:{self.place}" if self.place else self.kind


def parse_target(text: str) -> Target:
    """`stdout`, `file:PATH`, `udp:HOST:PORT`, `unix:PATH`. Raises ValueError. Does not check host and path."""
    if text == "stdout":
        return Target()
    kind, _, place = text.partition(":")
    if kind == "file" and place:
        return Target("file", place)
    if kind == "unix" and place:
        return Target("unix", place)
    if kind == "udp":
        host, colon, port = place.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if bracketed or ":" not in host:
            host = host[1:-1] if bracketed else host
            if colon and host:
                return Target("udp", host, parse_port(port))
    raise ValueError(f"{text[:80]!r} is not a target for the log")


def priority(facility: str) -> int:
    """The number at the start of a syslog message."""
    return FACILITIES.index(facility) * 8 + _INFO


class Selection(NamedTuple):
    """Which sessions get a line."""

    sample: int = 1  # one in this many of those that ended normally
    dontlognull: bool = False

    def takes(self, record: SessionRecord, draw: Callable[[], float]) -> bool:
        """`draw`: a random number below 1. Random and not every n-th: otherwise clients in a fixed rhythm might never be
        logged.

        As in HAProxy, a session is null if its client sent no byte. But HAProxy counts a session whose server failed as null
        too, and pylb logs it: a client that got no server is not a port scanner.
        """
        code = record.code
        if self.dontlognull and not record.bytes_in and code[0] in "-Cc":
            return False
        return self.sample == 1 or code != "--" or draw() * self.sample < 1
