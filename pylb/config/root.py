"""The whole file as one frozen value, and the parts that the other layers take from it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, PrivateAttr

from pylb.config import addresses as a
from pylb.config import models as m
from pylb.config import values as v
from pylb.config.cluster import Cluster
from pylb.config.frontends import FrontendEntry
from pylb.config.problems import Problem, in_short
from pylb.config.section import Section
from pylb.config.value_type import OneOrMore, one_or_more
from pylb.core.address import ANY, Ports, is_loopback, parse_ip, parse_network, ports_of
from pylb.core.auth import ANYWHERE, Keyring, Token
from pylb.core.policy import LeaseBounds, Policy, Rules, SourceLimits

_LOOPBACK = (parse_network("127.0.0.0/8"), parse_network("::1/128"))
_EVERY_PORT = Ports(((1, 65535),), ((1, 65535),))

Secrets = dict[str, tuple[str, ...]]  # by the token's name; several while one replaces another


def default_webhook() -> tuple[m.WebhookListener, ...]:
    return (m.WebhookListener.model_validate({"listen": "*:9000", "tls": "self-signed"}),)


class Config(Section):
    """pylb.yaml. Made only by `load` and `parse`."""

    webhook: Annotated[tuple[m.WebhookListener, ...], BeforeValidator(one_or_more), OneOrMore()] = Field(
        default_factory=default_webhook,
        description="one listener or a list; default: self-signed TLS on `*:9000`; `[]`: none, only with `frontends`",
    )
    advertise: a.Host | None = Field(None, description="the name or address by which others reach this machine")
    public_addresses: a.Ips = Field((), description="this machine's public addresses, if it is behind 1:1 NAT")
    trusted_proxies: a.Networks = Field(
        (), description="proxies in front of the webhook that are believed when they name the caller's address"
    )
    admin: m.Admin = Field(default_factory=m.Admin)
    metrics: m.Metrics = Field(default_factory=m.Metrics)
    cluster: Cluster = Field(default_factory=Cluster, description="several machines that share an address")
    state_dir: v.FilePath = Field(
        Path("/var/lib/pylb"),
        description="snapshot, generated token, control socket; default: `$STATE_DIRECTORY`, else `~/.local/state/pylb`",
    )
    runtime_socket: v.FilePath | None = Field(
        None, description="unix socket that speaks HAProxy's runtime dialect; default: `haproxy.sock` in `state_dir`"
    )
    workers: v.Workers = Field(
        0, description="processes that forward; 0: one process does everything; `auto`: one per processor"
    )
    log: m.Log = Field(default_factory=m.Log)
    recorder: m.Recorder = Field(default_factory=m.Recorder)
    leases: m.Leases = Field(default_factory=m.Leases)
    bounds: m.Bounds = Field(default_factory=m.Bounds, description="bounds on all registrations together")
    tokens: tuple[m.TokenEntry, ...] = Field(
        default_factory=tuple, description="who may register; without any, one is generated at the first run"
    )
    defaults: m.Defaults = Field(default_factory=m.Defaults)
    frontends: tuple[FrontendEntry, ...] = Field(
        default_factory=tuple, description="ports that this file opens: the static frontends"
    )

    _warnings: tuple[Problem, ...] = PrivateAttr(())
    _secrets: Secrets = PrivateAttr(default_factory=dict)

    def completed(self, secrets: Secrets, warnings: Iterable[Problem]) -> Self:
        """A copy with the tokens' secrets and the warnings found on the way."""
        copy = self.model_copy()
        copy._secrets, copy._warnings = dict(secrets), tuple(warnings)  # noqa: SLF001 - our own class
        return copy

    def with_secrets(self, change: Callable[[tuple[m.TokenEntry, ...], Secrets], Secrets]) -> Self:
        """A copy with other secrets of the same tokens."""
        return self.completed(change(self.tokens, self._secrets), self._warnings)

    def secrets_of(self, name: str) -> tuple[str, ...]:
        """None if they were not read (`parse`)."""
        return self._secrets.get(name, ())

    @property
    def warnings(self) -> tuple[str, ...]:
        """What works but should be changed, in printable lines; `all_warnings` has all of them."""
        return tuple(in_short(self._warnings))

    @property
    def all_warnings(self) -> tuple[Problem, ...]:
        return self._warnings

    @property
    def reserved_ports(self) -> frozenset[int]:
        """pylb's own ports: no registration may have them."""
        own = [listener.listen for listener in self.webhook] + [self.admin.listen]
        own += [self.metrics.listen] if self.metrics.listen is not None else []
        return frozenset(listen.port for listen in own)

    @property
    def insecure(self) -> bool:
        """Does a webhook accept tokens in plain HTTP from beyond loopback?"""
        return any(one.tls is None and one.insecure and not is_loopback(one.listen.ip) for one in self.webhook)

    @property
    def own_names(self) -> tuple[str, ...]:
        """The names and addresses of this machine for others: `advertise`, `public_addresses` and `cluster.addresses`."""
        return (*((self.advertise,) if self.advertise else ()), *self.public_addresses, *self.cluster.addresses)

    @property
    def own_ips(self) -> frozenset[str]:
        """Those of `own_names` that are addresses. The caller resolves names: no network I/O here."""
        try:
            named = {parse_ip(self.advertise)} if self.advertise is not None else set()
        except ValueError:
            named = set()
        return frozenset(named.union(self.public_addresses, self.cluster.addresses))

    def rules(self, own_ips: frozenset[str] = frozenset()) -> Rules:
        """What control needs. `own_ips`: the addresses of this machine's interfaces, and those that `advertise` resolves to."""
        defaults = self.defaults.policy(Policy(limits=SourceLimits(source_share=m.SOURCE_SHARE)))
        return Rules(
            frontends=tuple(one for entry in self.frontends for one in (entry.frontend(defaults), *entry.routed(defaults))),
            defaults=defaults,
            leases=LeaseBounds(self.leases.min_ttl, self.leases.max_ttl, self.leases.keep_stale, self.leases.yield_after),
            bounds=self.bounds.bounds(),
            reserved_ports=self.reserved_ports,
            own_ips=own_ips | self.own_ips,
            resolve_interval=self.defaults.resolve_interval,
        )

    def keyring(self, *generated: Token) -> Keyring:
        """The tokens of the file, with the secrets as they were when it was loaded, and the `generated` ones.

        A token whose secret was not read (`parse`) is left out: nobody can call with it.
        """
        known = (token_of(entry, self._secrets[entry.name]) for entry in self.tokens if entry.name in self._secrets)
        return Keyring((*known, *generated))


def first_run_token(secret: str, reserved_ports: frozenset[int]) -> Token:
    """The token that pylb generates if none is configured: any port but 22 and pylb's own, any name, loopback allowed.

    Loopback, so that one curl line can try it; ports that another program listens on cannot be bound anyway.
    """
    return Token(
        name="generated",
        secrets=(secret,),
        ports=_EVERY_PORT,
        names=(ANY,),
        takeover=False,
        targets=_LOOPBACK,
        target_ports=_EVERY_PORT,
        sources=ANYWHERE,
        server_names=(ANY,),
        any_port_except=reserved_ports | {22},
    )


def token_of(entry: m.TokenEntry, secrets: tuple[str, ...]) -> Token:
    names = entry.names if entry.names is not None else (entry.name,)
    return Token(
        name=entry.name,
        secrets=secrets,
        ports=ports_of(entry.ports),
        names=(ANY,) if ANY in names else names,
        takeover=entry.takeover,
        targets=entry.targets,
        target_ports=ports_of(entry.target_ports),
        sources=entry.sources,
        legacy=entry.legacy,
        replaces=entry.replaces,
        server_names=entry.server_names,
        any_port_except=None,
    )
