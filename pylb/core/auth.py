"""Tokens: who calls, and what that token may open. What it may aim at is judged in scope.py.

A scope is checked on every call and never stored with a registration, so a reload that narrows it acts at the next beat.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from pylb.core.address import Network, Ports, in_networks
from pylb.core.errors import Code, Refused

STRONG = 22  # characters: 128 bits in base64, what `secrets.token_urlsafe(16)` gives
Door = Literal["native", "legacy"]
ANY_NAME = ("*",)
ANYWHERE: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
NODE_PORTS = Ports(((30000, 32767),))  # Kubernetes' default service-node-port-range


@dataclass(frozen=True, slots=True)
class Token:
    """One line of `tokens:`. `names` defaults to the token's own name; `("*",)` is any."""

    name: str
    secrets: tuple[str, ...] = field(repr=False)
    ports: Ports
    names: tuple[str, ...] = ()
    takeover: bool = False
    targets: tuple[Network, ...] = ()
    target_ports: Ports = NODE_PORTS
    sources: tuple[Network, ...] = ANYWHERE
    legacy: bool = True  # may it be used on the legacy route?
    replaces: tuple[str, ...] = ()  # tokens whose registrations, as far as it could have made them, are its own
    any_port_except: frozenset[int] | None = None  # the first run's token: every port but these, `ports` does not count

    def may_open(self, port: int) -> bool:
        return port in self.ports if self.any_port_except is None else port not in self.any_port_except

    def may_use_name(self, name: str) -> bool:
        return self.names == ANY_NAME or name in (self.names or (self.name,))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the canonical IP of its TCP connection, its token, and through which door."""

    ip: str
    token: Token
    at: Door = "native"


class Keyring:
    """All tokens. Secrets are compared by digest, all of them on every call, so that time tells nothing."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self.tokens = tuple(tokens)
        self._by_name = {token.name: token for token in self.tokens}
        # strip: a secret file usually ends with a newline, which no header can carry
        stripped = [(secret.strip(), token) for token in self.tokens for secret in token.secrets]
        self._heirs = [token for token in self.tokens if token.replaces]
        self._strong = [secret for secret, _ in stripped if len(secret) >= STRONG]
        self._known = [(_digest(secret), len(secret) < STRONG, token) for secret, token in stripped if secret]

    def has(self, token: Token) -> bool:
        """Is it one of these, just as it is?"""
        return self._by_name.get(token.name) == token

    @property
    def has_heirs(self) -> bool:
        """Does any token replace another?"""
        return bool(self._heirs)

    def heir(self, token: str, name: str, ports: Iterable[int], *, legacy: bool) -> str:
        """Whose the registrations of `token` are: its own, or those of the token that replaces it and might have made them.

        One that could not be its heir's as a whole stays where it is.
        The name of a legacy one is for people.
        """
        for one in self._heirs:
            may = one.legacy if legacy else one.may_use_name(name)
            if token in one.replaces and may and all(one.may_open(port) for port in ports):
                return one.name
        return token

    def find(self, secret: str, at: Door = "native") -> Token | None:
        """The token of `secret`; "" is nobody's. The native API knows no short secrets, the legacy route only those of
        tokens that may use it."""
        offered, found = _digest(secret), None
        for known, is_weak, token in self._known:
            if hmac.compare_digest(offered, known) and (token.legacy if at == "legacy" else not is_weak):
                found = token
        return found

    def without_secrets(self, text: str) -> str:
        """For a log: whoever puts a secret where none belongs, such as the name, gets it refused, and quoted, maybe cut.

        Strong ones alone: a short one may be the name of its app, and what a text is about.
        """
        for secret in self._strong:
            pieces = text.split(secret[:STRONG])
            text = "[secret]".join(pieces[:1] + [_behind(secret[STRONG:], piece) for piece in pieces[1:]])
        return text


def _behind(rest: str, text: str) -> str:
    """`text` without as much of `rest` as it begins with."""
    same = next((place for place, (one, other) in enumerate(zip(rest, text, strict=False)) if one != other), None)
    return text[min(len(rest), len(text)) if same is None else same :]


def fingerprint(secret: str) -> str:
    """To tell the secrets of one token apart, for people; it is no help to guess one."""
    return _digest(secret).hex()[:8]


def _digest(secret: str) -> bytes:
    # a header may hold bytes that are no UTF-8; aiohttp hands them over as surrogates, which a plain encode refuses
    return sha256(secret.encode("utf-8", "backslashreplace")).digest()


def check_source(caller: Caller) -> None:
    """May the token be used from there? Raises Refused."""
    if not in_networks(caller.ip, caller.token.sources):
        raise Refused(
            Code.SOURCE_FORBIDDEN,
            f"token {caller.token.name!r} may not be used from {caller.ip}",
            "widen `sources` of the token, or call from inside it",
        )


def check_name(token: Token, name: str) -> None:
    """May the token use this registration name? Raises Refused."""
    if not token.may_use_name(name):
        allowed = ", ".join(token.names or (token.name,))
        raise Refused(
            Code.NAME_FORBIDDEN,
            f"token {token.name!r} may not register the name {name!r} (it may: {allowed})",
            "use an allowed name, or widen `names` of the token",
        )


def check_port(token: Token, port: int, reserved: frozenset[int]) -> None:
    """May the token open this frontend port? `reserved` are pylb's own. Raises Refused."""
    if port in reserved:
        raise Refused(Code.PORT_FORBIDDEN, f"port {port} is pylb's own (webhook, admin or metrics)", "use another port")
    if not token.may_open(port):
        raise Refused(
            Code.PORT_FORBIDDEN,
            f"token {token.name!r} may not open port {port} (it may: {_scope(token)})",
            "use an allowed port, or widen `ports` of the token",
        )


def _scope(token: Token) -> str:
    if token.any_port_except is None:
        return str(token.ports) or "none"
    return "any except " + ", ".join(str(port) for port in sorted(token.any_port_except))
