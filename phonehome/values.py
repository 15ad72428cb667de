"""One text, one value: the notations of the environment. NotationError says what is wrong, without secrets."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

MIN_TTL, MAX_TTL = 10, 86400  # seconds; the server's rule for `ttl`
MAX_WEIGHT = 256  # the server's rule, HAProxy's too
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


class NotationError(ValueError):
    """One wrong value; the message says what is wrong with it."""


class Token(str):
    """The shared secret. It is sent like any text, but its repr does not show it, so no traceback can leak it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Token(hidden)"


class Frontend(NamedTuple):
    port: int  # where pylb listens
    target_port: int  # the NodePort it sends to
    proxy_protocol: str | None = None  # none | v1 | v2; None leaves the server's default
    weight: int | None = None  # None leaves the server's default
    backup: bool = False
    health: object = None  # how pylb checks it, as JSON has it; None leaves the server's default
    server_names: tuple[str, ...] = ()  # it is for TLS clients that ask for one of them; (): for all others
    allows_names: bool = False  # others may have names on its port
    protocol: str = "tcp"  # tcp | udp
    last: int = 0  # the last port of a range; 0: it is one port
    target_last: int = 0  # of as many NodePorts, one for each; 0: all go to one

    @property
    def text(self) -> str:
        """`443`, `443/udp`, or `20000-20099`."""
        return port_text(self.port, self.protocol, self.last)


class Endpoint(NamedTuple):
    """One load balancer. `prefix` is the path before /v1, without a trailing slash; usually empty."""

    secure: bool
    host: str
    port: int
    prefix: str = ""
    # From a join string: SHA-256 of its public key and of the next one, base64url without padding. Without pins the authorities
    # judge the certificate.
    pins: tuple[str, ...] = ()
    token: Token | None = None  # from a join string; None: the common token

    @property
    def exposes_token(self) -> bool:
        return not self.secure and self.host not in ("localhost", "::1") and not self.host.startswith("127.")

    @property
    def label(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(text: str) -> Endpoint:
    """`scheme://host[:port][/prefix]` as an Endpoint. A URL with a password is refused and not repeated."""
    if "@" in text:  # first, so that no later message repeats a password
        raise NotationError("a URL must not carry a user or password; the token goes into PYLB_TOKEN")
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError as exc:
        raise NotationError(f"{text!r} is not a URL ({exc})") from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise NotationError(f"{text!r} is not http://HOST:PORT or https://HOST:PORT")
    if port == 0 or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise NotationError(f"{text!r} has no usable host and port")
    return Endpoint(url.scheme == "https", _ascii_host(url), port or (443 if url.scheme == "https" else 80), _path(url))


def parse_join(text: str) -> tuple[str, Endpoint]:
    """`pylb://NAME:SECRET@HOST[:PORT][/PIN[/NEXT_PIN]]`, as `pylb token create` prints it: (name, endpoint).

    The variable and quotes around it may have been pasted too. No error contains the secret.
    """
    example = "not a join string: pylb://NAME:SECRET@HOST:PORT/PIN/NEXT_PIN"
    text = re.sub(r"^PYLB_JOIN=", "", text.strip("'\"")).strip("'\"")
    try:
        url = urlsplit(text)
        name, secret, port = url.username or "", url.password or "", url.port
    except ValueError:
        raise NotationError(example) from None
    token, pins = clean_token(secret), tuple(url.path[1:].split("/")) if url.path[1:] else ()
    if url.scheme != "pylb" or not url.hostname or not is_name(name) or token is None or url.query or url.fragment:
        raise NotationError(example)
    if len(pins) > 2 or not all(re.fullmatch(r"[A-Za-z0-9_-]{43}", pin) for pin in pins):
        raise NotationError("after the port one or two pins of a key (43 characters each) are expected: was it cut?")
    return name, Endpoint(True, _ascii_host(url), port or 443, "", pins, token)


def _ascii_host(url: SplitResult) -> str:
    host = url.hostname or ""
    try:
        host = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise NotationError(f"{host!r} is not a host name") from None
    if not re.fullmatch(r"[!-~]+", host):  # a NUL would end the name for the resolver
        raise NotationError(f"{host!r} is not a host name")
    return host


def _path(url: SplitResult) -> str:
    if url.query or url.fragment:
        raise NotationError("a query or fragment has no meaning here")
    if not re.fullmatch(r"[!-~]*", url.path):
        raise NotationError("the path must be percent-encoded ASCII")
    return url.path.rstrip("/")


def clean_token(text: str) -> Token | None:
    """The token without the newline at the end that files and Secrets often have; None if no header could carry it."""
    text = text.strip()
    return Token(text) if re.fullmatch(r"[!-~]+", text) else None


def parse_frontend(entry: str) -> Frontend:
    """`PORT[/udp]:TARGET_PORT[/proxy=none|v1|v2][/weight=N][/backup][/names=NAME+NAME|allowed]` as a Frontend.

    Both may be ranges of one length.
    """
    left, colon, right = entry.partition(":")
    if not colon:
        raise NotationError("not PORT:TARGET_PORT")
    ports, slash, protocol = left.partition("/")
    if slash and protocol not in ("tcp", "udp"):
        raise NotationError(f"{protocol!r} is neither tcp nor udp")
    targets, *options = right.split("/")
    (port, last), (target_port, target_last) = _ends(ports), _ends(targets)
    if target_last and target_last - target_port != last - port:
        raise NotationError("the two ranges have different lengths")
    frontend = Frontend(port, target_port, protocol=protocol or "tcp", last=last, target_last=target_last)
    for option in (name for part in options for name in part.split(",")):
        key, _, value = option.partition("=")
        if key == "proxy" and value in ("none", "v1", "v2"):
            frontend = frontend._replace(proxy_protocol=value)
        elif key == "weight" and re.fullmatch(r"[0-9]{1,3}", value) and 1 <= int(value) <= MAX_WEIGHT:
            frontend = frontend._replace(weight=int(value))
        elif option == "backup":
            frontend = frontend._replace(backup=True)
        elif option == "names=allowed":
            frontend = frontend._replace(allows_names=True)
        elif key == "names" and all(value.split("+")):
            frontend = frontend._replace(server_names=tuple(value.split("+")))
        elif option in ("tcp", "udp"):
            raise NotationError(f"the protocol stands behind the first port: {ports}/{option}:{targets}")
        else:
            raise NotationError(
                f"unknown option {option!r} (known: proxy=none|v1|v2, weight=1-256, backup, names=NAME+NAME, names=allowed)"
            )
    return frontend


def _ends(text: str) -> tuple[int, int]:
    """The first and the last port of a range; the last is 0 for one port."""
    first, dash, last = text.partition("-")
    if not dash:
        return parse_port(text), 0
    low, high = parse_port(first), parse_port(last)
    if low >= high:
        raise NotationError(f"{text!r}: a range begins below its end")
    return low, high


def port_text(port: int, protocol: str, last: int = 0) -> str:
    """`443`, `443/udp`, or `20000-20099`."""
    ports = f"{port}-{last}" if last else f"{port}"
    return ports if protocol == "tcp" else f"{ports}/{protocol}"


def is_name(text: str) -> bool:
    """The server's rule: host and pod names, with underscores and capitals. It becomes one path segment."""
    return re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", text) is not None


def parse_port(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,5}", text) and 1 <= int(text) <= 65535:
        return int(text)
    raise NotationError(f"{text!r} is not a port (1-65535)")


def parse_host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host):
        raise NotationError(f"{text!r} is not HOST:PORT (an IPv6 address goes into brackets)")
    return bare, parse_port(port)


def parse_seconds(text: str) -> int:
    """A positive duration in seconds, as 90, 90s, 5m or 1h; sleep(1) in the legacy image took these too."""
    match = re.fullmatch(r"([0-9]{1,9})([smh]?)", text)
    if not match or int(match[1]) == 0:
        raise NotationError(f"{text!r} is not a duration (seconds, 60s, 5m or 1h)")
    return int(match[1]) * UNITS[match[2]]


def parse_ttl(text: str) -> int:
    """A time to live that the server accepts."""
    seconds = parse_seconds(text)
    if not MIN_TTL <= seconds <= MAX_TTL:
        raise NotationError(f"{text!r} is outside {MIN_TTL} s to 24 h")
    return seconds
