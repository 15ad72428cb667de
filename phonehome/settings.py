"""The environment, parsed once into frozen values. Names of the legacy image work too; PYLB_* wins over them.

An empty variable counts as unset, because manifests and the legacy image pass on unset values as "".
NamedTuples instead of dataclasses: the import of dataclasses alone costs 0.9 MiB of the 25 this process may have.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Mapping
from typing import NamedTuple

from phonehome.values import (
    MAX_TTL,
    MIN_TTL,
    Endpoint,
    Frontend,
    NotationError,
    Token,
    clean_token,
    is_name,
    parse_frontend,
    parse_host_port,
    parse_join,
    parse_port,
    parse_seconds,
    parse_ttl,
    parse_url,
)

DEFAULT_TTL = 60  # seconds
SOURCES = ("source", "source4", "source6")
LEGACY_PROXY = {"": "none", "send-proxy": "v1", "send-proxy-v2": "v2"}  # HAProxy's server keywords

ReadFile = Callable[[str], str]


class SettingsError(Exception):
    """Everything that is wrong with the environment; `problems` has one line each, never a secret."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


class Settings(NamedTuple):
    endpoints: tuple[Endpoint, ...]
    token: Token
    token_file: str | None  # read again before every call, so that a rotated Secret needs no restart
    join_file: str | None  # as token_file: join strings instead of URL, token and CA
    ca_file: str | None  # as token_file
    name: str
    instance: str
    frontends: tuple[Frontend, ...]
    address: str  # source | source4 | source6 | an IP address
    ttl: int | None  # seconds; None: the registration never goes stale
    once: bool  # a single call instead of heartbeats
    wait: tuple[tuple[str, int], ...]  # what must accept a TCP connect first
    ca: str | None  # PEM text to trust instead of the system's store


class _Environment:
    """Reads variables and collects their mistakes, so that one start shows all of them."""

    def __init__(self, environ: Mapping[str, str], read_file: ReadFile) -> None:
        self._environ = environ
        self.read_file = read_file
        self.problems: list[str] = []

    def get(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def first(self, *names: str) -> tuple[str, str]:
        """The first variable that is set, as (name, value); else the first name with an empty value."""
        return next(((name, value) for name in names if (value := self.get(name))), (names[0], ""))

    def wrong(self, name: str, what: str, example: str) -> None:
        self.problems.append(f"{name}: {what}" + (f"; example: {name}={example}" if example else ""))


def parse(
    environ: Mapping[str, str],
    *,
    hostname: str,
    read_file: ReadFile,
    once: bool = False,
    need_frontends: bool = True,
) -> Settings:
    """Raise SettingsError with all problems. `once` and `need_frontends` come from the verb of the command line."""
    env = _Environment(environ, read_file)
    ttl, single = _lease(env, once=once)
    joined, name = _join(env)
    token, token_file = (Token(), None) if name else _token(env)
    settings = Settings(
        endpoints=joined if name else _endpoints(env),
        token=token,
        token_file=token_file,
        join_file=env.get("PYLB_JOIN_FILE") or None,
        name=_label(env, "PYLB_NAME", "NAME", default=name),
        instance=_label(env, "PYLB_INSTANCE", default=hostname),
        frontends=_frontends(env, need_frontends),
        address=_address(env),
        ttl=ttl,
        once=single,
        wait=_wait(env),
        ca=_ca(env),
        ca_file=_ca_file(env),
    )
    _check_families(env, settings)
    if env.problems:
        raise SettingsError(env.problems)
    return settings


def _join(env: _Environment) -> tuple[tuple[Endpoint, ...], str]:
    """The load balancers in the join strings, and the name of their tokens; no name if there are none."""
    example = "pylb://mosquitto:SECRET@lb.example.net:9000/PIN"
    path, text, variable = env.get("PYLB_JOIN_FILE"), env.get("PYLB_JOIN"), "PYLB_JOIN"
    if path and text:
        env.wrong("PYLB_JOIN_FILE", "set together with PYLB_JOIN; keep one of them", "/run/secrets/pylb/join")
    elif path:
        variable = "PYLB_JOIN_FILE"
        try:
            text = env.read_file(path)
        except (OSError, ValueError) as exc:
            env.wrong(variable, f"cannot read {path} ({_reason(exc)})", "/run/secrets/pylb/join")
            return (), "unknown"
        if not text.strip():
            env.wrong(variable, f"{path} is empty", "/run/secrets/pylb/join")
            return (), "unknown"
    if not text:
        return (), ""
    other = next((name for name in ("PYLB_URL", "PYLB_TOKEN", "PYLB_TOKEN_FILE", "PYLB_CA") if env.get(name)), None)
    if other:
        env.wrong(other, f"set together with {variable}, which has all of it; remove one of them", "")
    found, names = parse_joins(text, lambda problem: env.wrong(variable, problem, example))
    if len(set(names)) > 1 and not env.get("PYLB_NAME"):
        env.wrong("PYLB_NAME", f"missing: the join strings have several names ({', '.join(sorted(set(names)))})", names[0])
    return found, names[0] if names else "unknown"


def parse_joins(text: str, wrong: Callable[[str], None]) -> tuple[tuple[Endpoint, ...], list[str]]:
    """All join strings in a text, separated by blanks, commas or line breaks, and the names in them.

    They may be preceded by `export`, from where they were copied.
    """
    found: list[Endpoint] = []
    labels: set[str] = set()
    names: list[str] = []
    parts = [part for part in text.replace(",", " ").split() if part != "export"]
    for number, part in enumerate(parts, 1):
        try:
            name, endpoint = parse_join(part)
        except NotationError as exc:
            wrong(f"number {number}: {exc}")  # not its text, which is a secret
            continue
        if endpoint.label in labels:
            wrong(f"{endpoint.label} is listed twice")
        labels.add(endpoint.label)
        found.append(endpoint)
        names.append(name)
    return tuple(found), names


def _endpoints(env: _Environment) -> tuple[Endpoint, ...]:
    name, value = env.first("PYLB_URL", "WEBHOOK")
    example = "https://lb.example.net:9000"
    if not value:
        what = "missing; the address of the load balancer, or a comma list of several"
        env.wrong(name, f"{what}; or PYLB_JOIN with the output of `pylb token create`, which contains everything", example)
        return ()
    found: dict[Endpoint, None] = {}
    for text in filter(None, (part.strip() for part in value.split(","))):
        try:
            # Of a legacy WEBHOOK only scheme, host and port count: its path belongs to the old protocol.
            endpoint = parse_url(text)._replace(prefix="") if name == "WEBHOOK" else parse_url(text)
        except NotationError as exc:
            env.wrong(name, str(exc), example)
            continue
        if endpoint in found:
            env.wrong(name, f"{endpoint.label} is listed twice", example)
        found[endpoint] = None
    return tuple(found)


def _token(env: _Environment) -> tuple[Token, str | None]:
    path = env.get("PYLB_TOKEN_FILE")
    example = "/run/secrets/pylb/token"
    if path and env.get("PYLB_TOKEN"):
        env.wrong("PYLB_TOKEN_FILE", "set together with PYLB_TOKEN; keep one of them", example)
        return Token(), path
    name, text = env.first("PYLB_TOKEN", "WEBHOOK_TOKEN")
    if path:
        name = "PYLB_TOKEN_FILE"
        try:
            text = env.read_file(path)
        except (OSError, ValueError) as exc:
            env.wrong(name, f"cannot read {path} ({_reason(exc)})", example)
            return Token(), path
    token = clean_token(text)
    if token is None:
        what = "empty or missing" if not text.strip() else "contains spaces or characters that no HTTP header can carry"
        env.wrong(name, f"{what}; the token that pylb has for this app", example if path else "the-token-from-pylb")
        return Token(), path or None
    return token, path or None


def _label(env: _Environment, *names: str, default: str) -> str:
    name, value = env.first(*names)
    value = value or default
    example = "mosquitto" if name != "PYLB_INSTANCE" else "mosquitto-7d4b9c"
    if not value:
        env.wrong(name, "missing; the name of this app, as its token allows it", example)
    elif not is_name(value):
        rule = "letters, digits, '.', '_' and '-', at most 253, first and last a letter or digit"
        env.wrong(name, f"{value[:60]!r} is not a name ({rule})", example)
    return value


def _frontends(env: _Environment, needed: bool) -> tuple[Frontend, ...]:
    text, example = env.get("PYLB_FRONTENDS"), '"443:30443 25:30025/proxy=v2"'
    if not text:
        return _legacy_frontend(env, needed, example)
    found: list[Frontend] = []
    taken: dict[tuple[str, int, str], None] = {}
    for entry in text.split():
        try:
            frontend = parse_frontend(entry)
        except NotationError as exc:
            env.wrong("PYLB_FRONTENDS", f"{entry!r}: {exc}", example)
            continue
        for name in frontend.server_names or ("",):
            places = [(frontend.protocol, port, name) for port in range(frontend.port, (frontend.last or frontend.port) + 1)]
            if any(place in taken for place in places):
                what = f"{name} on port {frontend.text}" if name else f"port {frontend.text}"
                env.wrong("PYLB_FRONTENDS", f"{what} is listed twice", example)
            taken.update(dict.fromkeys(places))
        found.append(frontend)
    return _checked(env, found)


def _checked(env: _Environment, frontends: list[Frontend]) -> tuple[Frontend, ...]:
    """PYLB_HEALTH is one check for all ports, or {"PORT": CHECK, "PORT/udp": CHECK}. The server validates the check itself."""
    text, example = env.get("PYLB_HEALTH"), '{"http": "/health"}'
    if not text:
        return tuple(frontends)
    try:
        health = text if text == "tcp" else json.loads(text)
    except (ValueError, RecursionError):
        health = None
    if health != "tcp" and not (isinstance(health, dict) and health):
        env.wrong("PYLB_HEALTH", f"{text[:60]!r} is neither tcp nor a JSON object", example)
    elif isinstance(health, dict) and all(key[:1].isdigit() for key in health):
        if unknown := sorted(health.keys() - {frontend.text for frontend in frontends}):
            env.wrong("PYLB_HEALTH", f"port {unknown[0]} is not in PYLB_FRONTENDS", example)
        return tuple(frontend._replace(health=health.get(frontend.text)) for frontend in frontends)
    return tuple(frontend._replace(health=health) for frontend in frontends)


def _legacy_frontend(env: _Environment, needed: bool, example: str) -> tuple[Frontend, ...]:
    names = ("FRONTEND_PORT", "BACKEND_PORT")
    values = [env.get(name) for name in names]
    if not any(values):
        if needed:
            env.wrong("PYLB_FRONTENDS", "missing; pairs of frontend port and NodePort", example)
        return ()
    ports: list[int] = []
    for name, value, good in zip(names, values, ("443", "30443")):  # noqa: B905  strict= needs Python 3.10
        try:
            ports.append(parse_port(value))
        except NotationError as exc:
            env.wrong(name, str(exc) if value else "missing", good)
    keyword = env.get("SEND_PROXY")
    if keyword not in LEGACY_PROXY:
        env.wrong("SEND_PROXY", f"{keyword!r} is neither send-proxy nor send-proxy-v2", "send-proxy-v2")
        return ()
    return (Frontend(ports[0], ports[1], LEGACY_PROXY[keyword]),) if len(ports) == 2 else ()


def _address(env: _Environment) -> str:
    value = env.get("PYLB_ADDRESS") or "source"
    if value in SOURCES:
        return value
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        env.wrong("PYLB_ADDRESS", f"{value!r} is neither source, source4, source6 nor an IP address", "source4")
        return "source"


def _check_families(env: _Environment, settings: Settings) -> None:
    """A URL with a literal address of one family cannot be called over the other."""
    version = {"source4": 4, "source6": 6}.get(settings.address)
    for endpoint in settings.endpoints if version else ():
        try:
            literal = ipaddress.ip_address(endpoint.host)
        except ValueError:
            continue
        if literal.version != version:
            env.wrong("PYLB_ADDRESS", f"{settings.address} cannot call {endpoint.label}", f"source{literal.version}")


def _lease(env: _Environment, *, once: bool) -> tuple[int | None, bool]:
    """(ttl, once). REPEAT_INTERVAL only counts while PYLB_TTL is unset: the lease is then three intervals."""
    text = env.get("PYLB_TTL")
    if text:
        try:
            return parse_ttl(text), once
        except NotationError as exc:
            env.wrong("PYLB_TTL", str(exc), "60s")
            return None, once
    interval = env.get("REPEAT_INTERVAL")
    if once or interval == "once":
        return None, True  # a single call must not go stale: nobody would renew it
    if not interval:
        return DEFAULT_TTL, False
    try:
        return min(max(3 * parse_seconds(interval), MIN_TTL), MAX_TTL), False
    except NotationError as exc:
        env.wrong("REPEAT_INTERVAL", f"{exc}, nor once", "300")
        return None, False


def _wait(env: _Environment) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for text in env.get("PYLB_WAIT").replace(",", " ").split():
        try:
            found.append(parse_host_port(text))
        except NotationError as exc:
            env.wrong("PYLB_WAIT", str(exc), '"127.0.0.1:8080"')
    return tuple(found)


def _ca_file(env: _Environment) -> str | None:
    value = env.get("PYLB_CA")
    return None if value.startswith("-----BEGIN") else value or None


def _ca(env: _Environment) -> str | None:
    value = env.get("PYLB_CA")
    example = "/etc/pylb-ca/ca.crt"
    if not value:
        return None
    try:
        pem = env.read_file(value) if _ca_file(env) else value
    except (OSError, ValueError) as exc:
        env.wrong("PYLB_CA", f"cannot read {value} ({_reason(exc)})", example)
        return None
    if "-----BEGIN CERTIFICATE-----" not in pem:
        env.wrong("PYLB_CA", "contains no PEM certificate (-----BEGIN CERTIFICATE-----)", example)
    return pem


def _reason(exc: Exception) -> str:
    return (exc.strerror or type(exc).__name__) if isinstance(exc, OSError) else "not text"
