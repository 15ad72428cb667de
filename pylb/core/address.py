"""Addresses, ports and networks, parsed once from text into frozen values; and the kinds of address that are never a target.

An IP is stored as its canonical text ("203.0.113.7", "2001:db8::7"): cheap to hash and compare, and what the kernel takes.
IPv4-mapped IPv6 ("::ffff:203.0.113.7", RFC 4291 2.5.5.2) becomes IPv4 when it is parsed, so it cannot evade a rule.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from pylb.core.server_names import parse_server_name
from pylb.core.text import whole_number

Network = IPv4Network | IPv6Network
ANY = "*"
TCP, UDP = "tcp", "udp"
PortKey = tuple[str, int]  # protocol and number: port 443 of TCP and port 443 of UDP are two ports


class Address(NamedTuple):
    """One `ip:port` that bytes may be sent to. A tuple, because it is the key of nearly every mapping: a dataclass's hash is a
    function in Python, and such hashes were a quarter of all calls when a registration moved.

    The protocol is part of it, so that nothing known about a TCP server is taken for knowledge about a UDP server.
    `last` is the last port of a range; 0: it is one port.
    """

    ip: str
    port: int
    protocol: str = TCP
    last: int = 0

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.ip

    @property
    def ports(self) -> range:
        return range(self.port, (self.last or self.port) + 1)

    @property
    def without_protocol(self) -> str:
        ports = f"{self.port}-{self.last}" if self.last else f"{self.port}"
        return f"[{self.ip}]:{ports}" if self.is_ipv6 else f"{self.ip}:{ports}"

    def __str__(self) -> str:
        """`203.0.113.7:30443`, or `203.0.113.7:30443/udp`."""
        if self.protocol == TCP and not self.last:  # as nearly always
            return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"
        return self.without_protocol if self.protocol == TCP else f"{self.without_protocol}/{self.protocol}"


@dataclass(frozen=True, slots=True, order=True)
class HostPort:
    """A server that the config names by host; control resolves it to addresses."""

    host: str  # lower case, without a dot at the end
    port: int
    last: int = 0  # as for an Address

    def __str__(self) -> str:
        return f"{self.host}:{self.port}-{self.last}" if self.last else f"{self.host}:{self.port}"


class Listen(NamedTuple):
    """Where a frontend listens: the key of the table. `ip` is `*` for all addresses, dual-stack. A tuple, like Address.

    `last` is the last port of a range, which is one frontend; 0: it is one port.
    `server_name`: of a route, which has the clients of that port that ask for this name (server_names.py). "": the default
    route, which has all others, and is the port itself.
    """

    protocol: str
    ip: str
    port: int
    last: int = 0
    server_name: str = ""

    @property
    def default(self) -> "Listen":
        """The default route of its port."""
        return self._replace(server_name="") if self.server_name else self

    @property
    def ports(self) -> range:
        return range(self.port, (self.last or self.port) + 1)

    def each(self) -> "Iterable[Listen]":
        """What has a socket of its own: itself, or each port of a range. A route has none."""
        if self.server_name:
            return ()
        return (self,) if not self.last else (Listen(self.protocol, self.ip, port) for port in self.ports)

    def has(self, port: PortKey) -> bool:
        """Is this port its port, or one of its range?"""
        protocol, number = port
        return protocol == self.protocol and number in self.ports

    def is_named(self, text: str) -> bool:
        """Does `text` mean it: `443`, `443/udp`, `20000-20099` or one port of it, or with the address, `*:443`?"""
        if not self.last:
            return text in (self.port_text, str(self))
        try:
            return text == str(self) or self.has(parse_port_key(text))
        except ValueError:
            return False

    @property
    def port_key(self) -> PortKey:
        return self.protocol, self.port

    @property
    def port_text(self) -> str:
        """For people: `443`, `443/udp`, or `20000-20099`."""
        return port_text(self.port, self.protocol, self.last)

    @property
    def route_text(self) -> str:
        """`port_text`, and for a route the server name: `443 git.example.net`."""
        return f"{self.port_text} {self.server_name}" if self.server_name else self.port_text

    def __str__(self) -> str:
        """`*:443`, `*:443/udp`, `*:20000-20099`, or `*:443 git.example.net`."""
        place = f"[{self.ip}]:{self.port_text}" if ":" in self.ip else f"{self.ip}:{self.port_text}"
        return f"{place} {self.server_name}" if self.server_name else place

    def overlaps(self, other: "Listen") -> bool:
        """Would the kernel refuse to have both?"""
        if self.protocol != other.protocol or max(self.port, other.port) > min(
            self.last or self.port, other.last or other.port
        ):
            return False
        one, two = self.ip, other.ip
        if one == two or ANY in (one, two):
            return True
        # A wildcard covers every address of its family; only `*` covers both families.
        return (":" in one) is (":" in two) and not {"0.0.0.0", "::"}.isdisjoint((one, two))


PortRanges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Ports:
    """A set of ports as inclusive ranges. A number alone means TCP."""

    ranges: PortRanges
    udp: PortRanges = ()

    def __contains__(self, port: int) -> bool:
        return self.has(port, TCP)

    def has(self, port: int, protocol: str) -> bool:
        return any(low <= port <= high for low, high in (self.ranges if protocol == TCP else self.udp))

    def __str__(self) -> str:
        return ", ".join([_range_text(*one) for one in self.ranges] + [f"{_range_text(*one)}/{UDP}" for one in self.udp])


def _range_text(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def port_text(port: int, protocol: str, last: int = 0) -> str:
    """For people: `443`, `443/udp`, or `20000-20099`."""
    ports = f"{port}-{last}" if last else f"{port}"
    return ports if protocol == TCP else f"{ports}/{protocol}"


def parse_ip(text: str) -> str:
    """The canonical text of an IP address. Zones ("fe80::1%eth0") are refused: they mean nothing to another machine.

    Raises ValueError that says what is wrong.
    """
    try:
        ip = ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            raise ValueError(f"{text!r} has a zone; write the address without %{ip.scope_id}")
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
    return str(ip)


def parse_port(text: str) -> int:
    """A port 1-65535 in plain decimal. Raises ValueError."""
    if not (port := whole_number(text, 65535)):
        raise ValueError(f"{text!r} is not a port (1-65535)")
    return port


def parse_port_range(text: str) -> tuple[int, int]:
    """The first and the last of `"20000-20099"`; the last is 0 for `"443"`. Raises ValueError."""
    low, dash, high = text.partition("-")
    if not dash:
        return parse_port(text), 0
    first, last = parse_port(low), parse_port(high)
    if first >= last:
        raise ValueError(f"{text!r}: a range begins below its end")
    return first, last


def _split(text: str) -> tuple[str, str]:
    """Host and port, or ports."""
    if "://" in text:
        raise ValueError(f"{text!r} is a URL: HOST:PORT is enough, without http:// and a path")
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r} is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], port
    if text.startswith("[") and text.endswith("]"):
        raise ValueError(f"{text!r} has no port: {text}:443")
    if ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as in [2001:db8::7]:443")
    return host, port


def parse_address(text: str) -> Address:
    """`"203.0.113.7:30443"` or `"[2001:db8::7]:30443"`. Raises ValueError."""
    host, port = _split(text)
    return Address(parse_ip(host), parse_port(port))


def parse_addresses(text: str) -> Address:
    """An address, or a range of its ports: `"203.0.113.7:30000-30099"`. Raises ValueError."""
    host, ports = _split(text)
    first, last = parse_port_range(ports)
    return Address(parse_ip(host), first, TCP, last)


def written_address(text: str) -> Address:
    """From the text of an Address. Raises ValueError."""
    place, protocol = _without_protocol(text)
    return parse_addresses(place)._replace(protocol=protocol)


def written_listen(text: str) -> Listen:
    """From the text of a Listen. Raises ValueError."""
    port, space, server_name = text.partition(" ")
    place, protocol = _without_protocol(port)
    return parse_listens(place)._replace(protocol=protocol, server_name=parse_server_name(server_name) if space else "")


def parse_listens_of(text: str) -> Listen:
    """Like `parse_listens`; the protocol may stand behind it: `"*:443/udp"`. Raises ValueError."""
    place, protocol = _without_protocol(text)
    return parse_listens(place)._replace(protocol=protocol)


def parse_port_key(text: str) -> PortKey:
    """`"443"`, which means TCP, `"443/udp"`, or a range, which its first port stands for. Raises ValueError."""
    numbers, protocol = _without_protocol(text)
    return protocol, parse_port_range(numbers)[0]


def _without_protocol(text: str) -> tuple[str, str]:
    rest, slash, protocol = text.partition("/")
    if slash and protocol not in (TCP, UDP):
        raise ValueError(f"{text!r}: the protocol is neither {TCP} nor {UDP}")
    return rest, protocol or TCP


def parse_listen(text: str, protocol: str = TCP) -> Listen:
    """`"*:443"`, `"203.0.113.9:443"` or `"[2001:db8::9]:443"`. Raises ValueError."""
    host, port = _split(text)
    return Listen(protocol, ANY if host == ANY else parse_ip(host), parse_port(port))


def parse_listens(text: str) -> Listen:
    """A listen, or a range: `"*:20000-20099"`. Raises ValueError."""
    host, ports = _split(text)
    first, last = parse_port_range(ports)
    return Listen(TCP, ANY if host == ANY else parse_ip(host), first, last)


class PortsOf(NamedTuple):
    """Ports of one protocol, both ends included."""

    low: int
    high: int
    protocol: str = TCP

    def __str__(self) -> str:
        """The text that `parse_ports_of` reads."""
        return port_text(self.low, self.protocol, self.high if self.high != self.low else 0)


def parse_ports_of(text: str) -> PortsOf:
    """`"8443"`, `"8883-8899"` or `"443/udp"`. Raises ValueError."""
    numbers, protocol = _without_protocol(text)
    low_text, dash, high_text = numbers.partition("-")
    low = parse_port(low_text.strip())
    high = parse_port(high_text.strip()) if dash else low
    if low > high:
        raise ValueError(f"{text!r}: the range ends before it starts")
    return PortsOf(low, high, protocol)


def ports_of(found: Iterable[PortsOf]) -> Ports:
    """All these ports as one set."""
    tcp, udp = ([(one.low, one.high) for one in sorted(found) if one.protocol == protocol] for protocol in (TCP, UDP))
    return Ports(tuple(tcp), tuple(udp))


def parse_ports(items: Iterable[int | str]) -> Ports:
    """`[8443, "8883-8899", "443/udp"]`. Raises ValueError that names the item."""
    return ports_of([parse_ports_of(str(item)) for item in items])


def parse_network(text: str) -> Network:
    """A CIDR block or a single address. Host bits are an error (they hide a typo). Raises ValueError."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network ({error})") from None


# A phone-home calls from the same address every few seconds, and each call checks it four times, at 3 µs.
_parsed = lru_cache(maxsize=4096)(ip_address)


def in_networks(ip: str, networks: Iterable[Network]) -> bool:
    """Is the canonical `ip` inside one of the networks?"""
    address = _parsed(ip)
    return any(address.version == network.version and address in network for network in networks)


@lru_cache(maxsize=4096)
def refused_class(ip: str) -> str | None:
    """The reason why the canonical `ip` is never a target, or None. (RFC 6890; loopback depends on the token.)"""
    address = _parsed(ip)
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_multicast:
        return "multicast"
    if address.is_link_local:
        return "link-local"
    if ip == "255.255.255.255":
        return "the broadcast address"
    if in_networks(ip, _NOBODYS):
        return "a reserved range"
    if in_networks(ip, _METADATA):
        return "a cloud's metadata address"
    if isinstance(address, IPv6Address) and _embeds_ipv4(address):
        return "an IPv4 address written as an IPv6 address"
    return None


_NOBODYS: tuple[Network, ...] = (
    IPv4Network("0.0.0.0/8"),  # "this network", RFC 791 3.2: Linux takes 0.0.0.0 for loopback
    IPv4Network("240.0.0.0/4"),  # reserved, RFC 1112 4
)
# Where clouds hand out credentials, apart from link-local addresses, where most do (169.254.169.254 of nearly all,
# 169.254.170.2 and .23 of ECS and EKS, 169.254.42.42 of Scaleway, 169.254.0.23 of Tencent, fe80::a9fe:a9fe of OpenStack).
_METADATA: tuple[Network, ...] = (
    IPv4Network("100.100.100.200"),  # Alibaba ECS: alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata
    IPv6Network("fd00:100::100:200"),  # the same over IPv6
    IPv4Network(
        "168.63.129.16"
    ),  # Azure WireServer: learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    IPv4Network(
        "192.0.0.192"
    ),  # Oracle Cloud Classic: docs.oracle.com/en/cloud/iaas/compute-iaas-cloud/stcsg (instance metadata)
    IPv6Network("fd00:c1::a9fe:a9fe"),  # Oracle OCI over IPv6: oci-python-sdk, instance_principals_security_token_signer.py
    # AWS over IPv6, all of it: metadata ::254, pod identity ::23, DNS ::253, time ::123:
    # docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    IPv6Network("fd00:ec2::/32"),
    IPv6Network("fd20:ce::254"),  # Google Cloud, IPv6-only instances: cloud.google.com/compute/docs/metadata/querying-metadata
    IPv6Network("fd00:42::42"),  # Scaleway: docs.cloud-init.io/en/latest/reference/datasources/scaleway.html
    IPv6Network("fd00:a9fe:a9fe::1"),  # Akamai (Linode): techdocs.akamai.com/cloud-computing/docs/metadata-service-api
)


def is_loopback(ip: str) -> bool:
    """Is the canonical `ip` in 127.0.0.0/8, or ::1?"""
    return ip.startswith("127.") or ip == "::1"


def names_loopback(network: Network) -> bool:
    """Does the network lie inside loopback? One that is wider merely contains loopback."""
    return network.subnet_of(_LOOPBACK[0]) if isinstance(network, IPv4Network) else network == _LOOPBACK[1]


_LOOPBACK = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


def _embeds_ipv4(address: IPv6Address) -> bool:
    """Forms that reach an IPv4 host in spite of the rules: ::a.b.c.d, ::ffff:a.b.c.d, ::ffff:0:a.b.c.d, 6to4, Teredo, NAT64.

    RFC 4291 2.5.5, 2765 2.1, 3056, 4380, 6052, 8215.
    """
    number = int(address)
    within = number >> 32 in (0, 0xFFFF, 0xFFFF0000) and not address.is_loopback
    nat64 = number >> 32 == 0x0064FF9B << 64 or number >> 80 == 0x0064FF9B0001
    return within or nat64 or address.sixtofour is not None or address.teredo is not None
