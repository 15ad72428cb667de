"""The operator's rules, indexed once: which frontend a registration's port belongs to, and the addresses of its servers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from pylb.core.address import ANY, TCP, UDP, Address, Listen, PortKey, is_loopback, refused_class
from pylb.core.claims import Claims
from pylb.core.errors import Code, Refused
from pylb.core.policy import Family, JoinRule, Policy, Rules, StaticFrontend, StaticServer
from pylb.core.registration import FrontendRequest, Registration


class StaticRules:
    """Read-only once it is made. A reload makes a new one, and so does a host name that resolves to other addresses.

    `resolved`: canonical addresses by host name.
    """

    def __init__(self, rules: Rules, resolved: Mapping[str, tuple[str, ...]] = MappingProxyType({})) -> None:
        self.rules = rules
        self.own_ips = rules.own_ips
        self.own_ports = frozenset(
            [(TCP, port) for port in rules.reserved_ports]
            + [(frontend.listen.protocol, port) for frontend in rules.frontends for port in frontend.listen.ports]
        )
        self.frontends = {
            frontend.listen: replace(frontend, servers=tuple(self._servers(frontend, resolved))) for frontend in rules.frontends
        }
        # Host names among a frontend's servers that have no address yet.
        self.unresolved = {one.listen: names for one in rules.frontends if (names := _unresolved(one, resolved))}
        # Ports of this machine that static servers aim at: a registration that opened one of them would close a loop.
        self.aimed_here = frozenset(
            (line.address.protocol, port)
            for frontend in self.frontends.values()
            for line in frontend.servers
            if isinstance(line.address, Address) and self.is_here(line.address.ip)
            for port in line.address.ports
        )
        checks = [policy.health.check for policy in (rules.defaults, *(frontend.policy for frontend in rules.frontends))]
        # Of checks that other frontends, of either protocol, may inherit.
        self.check_ports = frozenset(
            (check.protocol(protocol), check.port) for check in checks for protocol in (TCP, UDP) if check.port
        )
        self._names = frozenset(frontend.name for frontend in rules.frontends)
        self.defaults = {TCP: rules.defaults, UDP: rules.defaults.inherited_by(UDP)}
        self._by_port: dict[PortKey, list[StaticFrontend]] = {}
        for frontend in rules.frontends:
            if frontend.listen.server_name:
                continue
            for number in frontend.listen.ports:
                self._by_port.setdefault((frontend.listen.protocol, number), []).append(frontend)

    def _servers(self, frontend: StaticFrontend, resolved: Mapping[str, tuple[str, ...]]) -> Iterator[StaticServer]:
        """With all addresses of each host name, except those that a static server may not have."""
        protocol = frontend.listen.protocol
        for line in frontend.servers:
            if isinstance(line.address, Address):
                yield (
                    line
                    if protocol == line.address.protocol
                    else replace(line, address=line.address._replace(protocol=protocol))
                )
                continue
            for ip in resolved.get(line.address.host, ()):
                ports = Address(ip, line.address.port, protocol, line.address.last).ports
                loop = self.is_here(ip) and any((protocol, port) in self.own_ports for port in ports)
                wanted = line.resolve is Family.ANY or (line.resolve is Family.IPV6) is (":" in ip)
                if wanted and not loop and refused_class(ip) is None:
                    yield replace(
                        line,
                        address=Address(ip, line.address.port, protocol, line.address.last),
                        name=f"{line.address}@{ip}",
                        of_host=str(line.address),
                    )

    def place(self, item: FrontendRequest, one: Registration) -> Listen:
        """Where a port of the registration listens: at the static frontend that it joins, else at `defaults.bind`.

        Raises Refused if the port is pylb's own, or a static frontend's that it may not join or that has no routes.
        """
        found = self._port_of(item, one)
        if not item.server_name:
            return found
        static = self.frontends.get(found)
        if static is not None and not static.allows_names:
            raise Refused(
                Code.PORT_OWNED,
                f"port {item.port_text} is the static frontend {static.name!r}, which has no routes: its clients do not wait "
                f"for a hello, because its servers may be the ones to speak first",
                "let the frontend say `names: allowed`",
                port=item.port_text,
            )
        return found._replace(server_name=item.server_name)

    def _port_of(self, item: FrontendRequest, one: Registration) -> Listen:
        port = item.port_text
        if item.protocol == TCP and not self.rules.reserved_ports.isdisjoint(item.ports):
            detail = f"port {port} is pylb's own (webhook, admin or metrics)"
            raise Refused(Code.PORT_FORBIDDEN, detail, "use another port", port=port)
        free = Listen(item.protocol, self.rules.defaults.bind, item.port, item.last)
        near = self._by_port.get(item.port_key) if not item.last else self._in_range(item)
        if not near:
            return free
        statics = [frontend for frontend in near if frontend.listen.ports == item.ports]  # a range is joined as a whole
        open_to = (JoinRule.ANY, JoinRule.LEGACY) if one.key.is_legacy else (JoinRule.ANY,)
        joins = [frontend for frontend in statics if frontend.name == one.name]
        joins += [frontend for frontend in statics if frontend.joining in open_to]
        if joins:
            return joins[0].listen
        taken = next((frontend for frontend in near if frontend.listen.overlaps(free)), None)
        if taken is not None:
            raise Refused(
                Code.PORT_OWNED,
                f"port {port} is the static frontend {taken.name!r}, which {one.name!r} may not join",
                f"name the registration {taken.name!r}, or let the frontend say `registrations: {open_to[-1]}`",
                port=port,
            )
        return free

    def _in_range(self, item: FrontendRequest) -> list[StaticFrontend]:
        """The static frontends with any port of a range, each once."""
        found = (frontend for port in item.ports for frontend in self._by_port.get((item.protocol, port), ()))
        return list({frontend.listen: frontend for frontend in found}.values())

    def joins_by_name(self, port: int, name: str) -> bool:
        """Is there a static frontend on the TCP port that only a registration of its name may join?"""
        statics = self._by_port.get((TCP, port), ())
        return any(frontend.name == name and frontend.joining is JoinRule.NAME for frontend in statics)

    def label(self, name: str, listen: Listen) -> str:
        """The label of a frontend that the registration `name` opened. If a static frontend has that name already, it gets an
        "@", which no name can contain: so in logs, metrics and `pylb ctl` no registration can pass for a frontend from the
        config. A route is its frontend's label, a colon and the server name."""
        if listen.server_name:
            static = self.frontends.get(listen.default)
            return f"{self.label(name, listen.default) if static is None else static.name}:{listen.server_name}"
        port = listen.port_text.replace("/", "-")
        label = f"{name}-{port}"
        return f"{name}@{port}" if label in self._names else label

    def is_here(self, ip: str) -> bool:
        """Is it an address of this machine?"""
        return is_loopback(ip) or ip in self.own_ips

    def comes_back(self, address: Address, claims: Claims) -> bool:
        """Would a session that is sent there enter a frontend again? Exact, because static servers may be a service on another
        address of this machine, or the admin port."""
        keys = [(address.protocol, port) for port in address.ports]
        listens = [frontend.listen for key in keys for frontend in self._by_port.get(key, ())]
        registered = (listen for key in keys for listen in claims.listens(key))
        wildcards = (ANY, "::" if address.is_ipv6 else "0.0.0.0")
        return any(
            listen.ip == address.ip or (listen.ip in wildcards and self.is_here(address.ip))
            for listen in (*listens, *registered)
        )

    def joined_by_any(self, listen: Listen) -> bool:
        static = self.frontends.get(listen.default)
        return static is not None and static.joining is JoinRule.ANY

    def policy(self, listen: Listen) -> Policy:
        """The policy of a static frontend, of its route, or of a route that a registration adds to it; else the defaults."""
        static = self.frontends.get(listen)
        if static is None and listen.server_name:
            static = self.frontends.get(listen.default)
        return self.defaults[listen.protocol] if static is None else static.policy


def _unresolved(frontend: StaticFrontend, resolved: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    hosts = dict.fromkeys(line.address.host for line in frontend.servers if not isinstance(line.address, Address))
    return tuple(host for host in hosts if not resolved.get(host))
