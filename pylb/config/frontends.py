"""The models of frontends, their routes by server name, and their servers."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

import pylb.core.policy as core
from pylb.config import addresses as a
from pylb.config import models as m
from pylb.config import values as v
from pylb.config.problems import wrong
from pylb.config.section import Section
from pylb.config.value_type import show
from pylb.core.address import TCP, UDP, Address, HostPort


class ServerEntry(Section):
    short: ClassVar[dict[str, Any] | None] = {"type": "string"}
    address: a.ServersAt = Field(description="the server's address; in a frontend with a range, one port for all or as many")
    name: v.Name | None = Field(None, description="its name in logs, metrics and commands; unset: its address")
    weight: v.Weight = Field(1, description="its share of new sessions; 0: none")
    backup: v.Flag = Field(False, description="used only while no other server is usable")
    max_connections: v.Connections = Field(
        0, description="sessions at once on this server; while all servers are full, clients wait; 0: no limit"
    )
    health: m.ServerHealth = Field(default_factory=m.ServerHealth)
    resolve: Literal["ipv4", "ipv6", "any"] = Field("any", description="which addresses of a host name are servers")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        return {"address": data} if isinstance(data, str) else data


class RouteProxyProtocol(Section):
    send: Literal["none", "v1", "v2"] = Field("none", description="the PROXY header that the route's servers get")


class RouteEntry(Section):
    """What is not set here is as the frontend has it."""

    server_names: a.ServerNames = Field(
        description="the names of TLS (SNI): `git.example.net`, `*.example.net` for one label, `**.example.net` for one or more"
    )
    servers: tuple[ServerEntry, ...] = Field((), description="as those of a frontend; may be empty")
    balance: v.BalanceName = Field(core.Balance.LEASTCONN, description="how a server is chosen; each name does so by itself")
    retries: v.Retries = Field(3, description="how many other servers are tried when one does not answer")
    timeouts: m.RouteTimeouts = Field(default_factory=m.RouteTimeouts)
    health: m.HealthSection = Field(default_factory=m.HealthSection)
    proxy_protocol: RouteProxyProtocol = Field(default_factory=RouteProxyProtocol)

    def policy(self, base: core.Policy) -> core.Policy:
        """`base`, the frontend's, with the keys that are written here on top."""
        timeouts = {key: getattr(self.timeouts, key) for key in self.timeouts.model_fields_set}
        plain: dict[str, Any] = {key: getattr(self, key) for key in ("balance", "retries") if key in self.model_fields_set}
        if "send" in self.proxy_protocol.model_fields_set:
            plain["send_proxy"] = core.ProxyProtocol(self.proxy_protocol.send)
        return replace(
            base,
            **plain,
            timeouts=replace(base.timeouts, **timeouts),
            health=replace(base.health, **self.health.said()),
        )


class FrontendEntry(m.PolicySection):
    reserved: ClassVar[dict[str, str]] = {"bind": "only for ports opened by registrations; a static frontend has `listen`"}
    name: v.Name = Field(description="its name in logs, metrics and commands, and that of the registrations that may join it")
    protocol: Literal["tcp", "udp"] = Field(
        "tcp", description="`udp`: it forwards datagrams; the same as `/udp` behind the port of `listen`"
    )
    listen: a.ListensAt = Field(description="where it listens; a range of ports is one frontend")
    servers: tuple[ServerEntry, ...] = Field(
        (), description="`IP:PORT`, `HOST:PORT` (all its addresses are servers), or a mapping; may be empty"
    )
    registrations: Literal["name", "legacy", "any"] = Field(
        "name",
        description="which registrations may join: `name`: those with the frontend's name; `legacy`: these, and calls of old "
        "containers, whatever name they give; `any`: all",
    )

    routes: tuple[RouteEntry, ...] = Field(
        (),
        description="servers for clients that ask for certain names by TLS; the frontend's `servers` are the default route, "
        "for all other clients",
    )
    names: Literal["allowed"] | None = Field(
        None,
        description="`allowed`: registrations that may join may also add routes by server name, as with `routes`; then clients "
        "wait until they have said a name",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_protocol(cls, data: Any) -> Any:
        """It may be written in `listen` or as a key of its own: from here on `listen` has it."""
        if not isinstance(data, dict) or not isinstance(listen := data.get("listen"), str):
            return data
        protocol, (_, slash, behind) = data.get("protocol"), listen.rpartition("/")
        if slash and protocol in (TCP, UDP) and behind != protocol:
            raise wrong(f"protocol {protocol} contradicts listen: {show(listen)}", "remove one of them")
        return {**data, "listen": f"{listen}/{UDP}"} if protocol == UDP and not slash else data

    def frontend(self, defaults: core.Policy) -> core.StaticFrontend:
        """The frontend, without its routes."""
        protocol = self.listen.protocol
        policy, joining = self.policy(defaults.inherited_by(protocol)), core.JoinRule(self.registrations)
        allows_names = self.names is not None or bool(self.routes)
        return core.StaticFrontend(self.name, self.listen, _servers(self.servers, protocol), policy, joining, allows_names)

    def routed(self, defaults: core.Policy) -> Iterator[core.StaticFrontend]:
        """Its routes, one for each server name."""
        frontend = self.frontend(defaults)
        for route in self.routes:
            policy, servers = route.policy(frontend.policy), _servers(route.servers, TCP)
            for name in route.server_names:
                listen = frontend.listen._replace(server_name=name)
                yield core.StaticFrontend(f"{self.name}:{name}", listen, servers, policy, frontend.joining)


def _of_protocol(address: Address | HostPort, protocol: str) -> Address | HostPort:
    """The protocol of a server is its frontend's; that of a host name comes when it is resolved."""
    return address._replace(protocol=protocol) if isinstance(address, Address) and protocol != TCP else address


def _servers(entries: Iterable[ServerEntry], protocol: str) -> tuple[core.StaticServer, ...]:
    return tuple(
        core.StaticServer(
            _of_protocol(entry.address, protocol),
            entry.weight,
            entry.backup,
            entry.max_connections,
            entry.name or "",
            health=entry.health.own(),
            resolve=core.Family(entry.resolve),
        )
        for entry in entries
    )
