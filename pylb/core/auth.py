"""Tokens: who is calling, and which ports the token may open. scope.py decides which targets it may have, conflicts.py
whether it gets a port that another registration holds.

A token's scope is checked on every call and never stored with a registration, so a reload that narrows it takes effect at the
next heartbeat.
"""

import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from pylb.core.address import TCP, UDP, Network, Ports, in_networks, port_text
from pylb.core.errors import Code, Refused
from pylb.core.server_names import covers

STRONG = 22  # characters: 128 bits in base64, as `secrets.token_urlsafe(16)` gives
Interface = Literal["native", "legacy"]
ANY_NAME = ("*",)
ANYWHERE: tuple[Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
NODE_PORTS = Ports(((30000, 32767),))  # Kubernetes' default service-node-port-range


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of `tokens:`. `names` defaults to the token's own name; `("*",)` allows any."""

    name: str
    secrets: tuple[str, ...] = field(repr=False)
    ports: Ports
    names: tuple[str, ...] = ()
    takeover: bool = False
    targets: tuple[Network, ...] = ()
    target_ports: Ports = NODE_PORTS
    sources: tuple[Network, ...] = ANYWHERE
    legacy: bool = True  # may it be used on the legacy route?
    replaces: tuple[str, ...] = ()  # tokens whose registrations it takes over, as far as its own scope allows them
    server_names: tuple[str, ...] = ()  # that it may register (server_names.py); ("*",): any; (): only default routes
    # The first run's token: every port of every protocol except these numbers; `ports` is ignored
    any_port_except: frozenset[int] | None = None

    def may_open(self, port: int, protocol: str = TCP) -> bool:
        return self.ports.has(port, protocol) if self.any_port_except is None else port not in self.any_port_except

    def may_route(self, server_name: str) -> bool:
        """May it register a route for this server name? "" is the default route, which the port decides."""
        return not server_name or any(covers(scope, server_name) for scope in self.server_names)

    def may_use_name(self, name: str) -> bool:
        return self.names == ANY_NAME or name in (self.names or (self.name,))


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller: the canonical IP of its TCP connection, its token, and the API that it uses."""

    ip: str
    token: Token
    at: Interface = "native"


class Keyring:
    """All tokens. A secret is compared by digest with all of them on every call, so that timing reveals nothing."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self.tokens = tuple(tokens)
        self._by_name = {token.name: token for token in self.tokens}
        # strip: a secret file usually ends with a newline, which no header can contain
        stripped = [(secret.strip(), token) for token in self.tokens for secret in token.secrets]
        self._heirs = [token for token in self.tokens if token.replaces]
        self._strong = [secret for secret, _ in stripped if len(secret) >= STRONG]
        self._known = [(_digest(secret), len(secret) < STRONG, token) for secret, token in stripped if secret]

    def has(self, token: Token) -> bool:
        """Does the keyring contain exactly this token?"""
        known = self._by_name.get(token.name)
        return known is token or known == token

    @property
    def has_heirs(self) -> bool:
        """Does any token replace another?"""
        return bool(self._heirs)

    def heir(
        self,
        token: str,
        name: str,
        ports: Iterable[int],
        *,
        legacy: bool,
        udp: Iterable[int] = (),
        server_names: Iterable[str] = (),
    ) -> str:
        """The owner of the registrations of `token`: itself, or the token that replaces it and could have made them.

        A registration that the replacing token could not own as a whole stays where it is.
        The name of a legacy registration is only a description.
        """
        for one in self._heirs:
            may = one.legacy if legacy else one.may_use_name(name)
            may = may and all(map(one.may_route, server_names))
            opens = all(one.may_open(port) for port in ports) and all(one.may_open(port, UDP) for port in udp)
            if token in one.replaces and may and opens:
                return one.name
        return token

    def find(self, secret: str, at: Interface = "native") -> Token | None:
        """The token with `secret`; "" belongs to nobody. The native API accepts no short secrets, the legacy route accepts
        those of tokens that may use it."""
        offered, found = _digest(secret), None
        for known, is_weak, token in self._known:
            if hmac.compare_digest(offered, known) and (token.legacy if at == "legacy" else not is_weak):
                found = token
        return found

    def without_secrets(self, text: str) -> str:
        """`text` for a log, with secrets removed: a secret in the wrong place, such as the name, is refused and quoted, maybe
        cut.

        Only strong secrets: a short one may be the name of an app, and then it is the subject of the text.
        """
        for secret in self._strong:
            pieces = text.split(secret[:STRONG])
            text = "[secret]".join(pieces[:1] + [_behind(secret[STRONG:], piece) for piece in pieces[1:]])
        return text


def _behind(rest: str, text: str) -> str:
    """`text` without the beginning that it shares with `rest`."""
    same = next((place for place, (one, other) in enumerate(zip(rest, text, strict=False)) if one != other), None)
    return text[min(len(rest), len(text)) if same is None else same :]


def fingerprint(secret: str) -> str:
    """Lets people tell the secrets of one token apart; it does not help to guess one."""
    return _digest(secret).hex()[:8]


def _digest(secret: str) -> bytes:
    # A header may contain bytes that are not UTF-8; aiohttp passes them on as surrogates, which a plain encode refuses.
    return sha256(secret.encode("utf-8", "backslashreplace")).digest()


def check_source(caller: Caller) -> None:
    """May the token be used from the caller's address? Raises Refused."""
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


def check_server_name(token: Token, server_name: str) -> None:
    """May the token have a route for this server name? Raises Refused."""
    if not token.may_route(server_name):
        allowed = ", ".join(token.server_names) or "none"
        raise Refused(
            Code.NAME_FORBIDDEN,
            f"token {token.name!r} may not register the server name {server_name!r} (it may: {allowed})",
            "use an allowed name, or widen `server_names` of the token",
        )


def check_ports(token: Token, ports: Iterable[int], reserved: frozenset[int], protocol: str) -> None:
    """May the token open all of these frontend ports? Raises Refused."""
    for port in ports:
        check_port(token, port, reserved, protocol)


def check_port(token: Token, port: int, reserved: frozenset[int], protocol: str = TCP) -> None:
    """May the token open this frontend port? `reserved` are pylb's own, of TCP. Raises Refused."""
    if protocol == TCP and port in reserved:
        detail = f"port {port} is pylb's own (webhook, admin or metrics)"
        raise Refused(Code.PORT_FORBIDDEN, detail, "use another port", port=str(port))
    if not token.may_open(port, protocol):
        text = port_text(port, protocol)
        raise Refused(
            Code.PORT_FORBIDDEN,
            f"token {token.name!r} may not open port {text} (it may: {_scope(token)})",
            "use an allowed port, or widen `ports` of the token",
            port=text,
        )


def _scope(token: Token) -> str:
    if token.any_port_except is None:
        return str(token.ports) or "none"
    return "any except " + ", ".join(str(port) for port in sorted(token.any_port_except))
