"""Intervals that contradict each other, and checks that do not test what they seem to."""

from collections.abc import Iterator

from pylb.config import values as v
from pylb.config.entries import Finding, Parts, ReadablePart
from pylb.config.frontends import FrontendEntry
from pylb.config.yamlplace import Loc
from pylb.core import policy as core
from pylb.core.auth import NODE_PORTS


def health_findings(parts: Parts) -> Iterator[Finding]:
    if parts.defaults is None:
        return
    defaults = parts.defaults.policy(core.Policy())
    yield from _max_interval(defaults.health, ("defaults", "health", "max_interval"))
    for part in parts.frontends:
        if not part.broken & {"health", "servers"}:
            yield from _health(part, defaults)


def random_pod(port: int) -> tuple[str, str]:
    """What is wrong with a check through that port, and how to fix it."""
    what = f"the check through NodePort {port} asks a random pod, unless the Service says externalTrafficPolicy: Local"
    return f"{what}: one bad pod takes a node out now and then", "externalTrafficPolicy: Local, or a port of this pod alone"


def _max_interval(health: core.HealthPolicy, loc: Loc | None) -> Iterator[Finding]:
    if 0 < health.max_interval < health.interval:
        hint = f"{v.duration_text(health.interval)} or more"
        yield Finding(loc, "max_interval is shorter than interval and would have no effect", hint)


def _health(part: ReadablePart[FrontendEntry], defaults: core.Policy) -> Iterator[Finding]:
    entry, frontend = part.entry, part.entry.frontend(defaults)
    health = frontend.policy.health
    if "max_interval" in entry.health.model_fields_set or "interval" in entry.health.model_fields_set:
        yield from _max_interval(health, part.at("health"))
    asked: dict[int, int | None] = {}
    for index, line in enumerate(frontend.servers):
        own = line.health.over(health)
        used = own or health
        port = used.check.port or line.address.port
        if used.check != core.CONNECT and used.mode is not core.HealthMode.NONE and port in NODE_PORTS:
            asked[port] = index if own is not None and line.health.check is not None else None
    for port, at in asked.items():
        yield Finding(part.at("health") if at is None else part.at("servers", at, "health"), *random_pod(port), "warning")
