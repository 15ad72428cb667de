"""The log of sessions: which of them get a line, and where it goes. Decided before it is made: a dropped line costs nothing."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from pylb.core.address import parse_port
from pylb.core.session import SessionRecord

Format = Literal["tcplog", "logfmt", "json", "none"]

# By number: what syslog calls them (RFC 5424, 6.2.1), as HAProxy's `log ADDRESS FACILITY` takes them.
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
    """`stdout`, `file:PATH`, `udp:HOST:PORT`, `unix:PATH`. Raises ValueError. Host and path are not looked at."""
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
    raise ValueError(f"{text[:80]!r} is no target of the log")


def priority(facility: str) -> int:
    """The number that a syslog message begins with."""
    return FACILITIES.index(facility) * 8 + _INFO


class Selection(NamedTuple):
    """Which sessions get a line."""

    sample: int = 1  # one in this many of those that ended in order
    dontlognull: bool = False

    def takes(self, record: SessionRecord, draw: Callable[[], float]) -> bool:
        """`draw`: a random number below 1. By chance and not every n-th: clients that take turns would never be seen.

        Null as in HAProxy: the client sent no byte. But there a session whose server failed counts too, and here it has its
        line: who is silent at a dead server's door is no scanner.
        """
        code = record.code
        if self.dontlognull and not record.bytes_in and code[0] in "-Cc":
            return False
        return self.sample == 1 or code != "--" or draw() * self.sample < 1
