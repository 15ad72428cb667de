"""The forms in which a token is given to an app: a join string for a phone-home, or manifests for Kubernetes."""

import re
from collections.abc import Sequence
from string import Template
from typing import TYPE_CHECKING, Any

from pylb.cli.client import FAILED, die, say
from pylb.core.address import UDP
from pylb.core.text import whole_number

if TYPE_CHECKING:
    from pylb.config import Config
    from pylb.config.generated_tokens import GeneratedToken

MADE = """\
# Made by `pylb token create --kubernetes-controller`: Services of type LoadBalancer open ports on pylb. The Secret below is a
# password. The program comes as a ConfigMap and runs on a stock Python image; docs/kubernetes.md says the rest.
"""
# Not four numbers: those would be a mistyped address.
HOST_NAME = r"(?=.*[a-z])(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"


def join_string(config: "Config", host: str | None, made: "GeneratedToken") -> str:
    """`pylb://NAME:SECRET@HOST:PORT/PIN/NEXT_PIN`: what a phone-home needs, with nothing that a shell or a URL would change.

    The pins are those of the public key of a self-signed certificate and, if pylb made it, of the key that `switch-key` will
    put in use. Without pins the certificate is verified like any public one.
    """
    from pylb.app.tokens import TLS_FOLDER, names_of_machine  # noqa: PLC0415
    from pylb.core.address import is_loopback  # noqa: PLC0415
    from pylb.host.machine import outgoing_address  # noqa: PLC0415
    from pylb.web.tls import is_self_signed, next_pin, pin, self_signed  # noqa: PLC0415

    if not config.webhook:
        die("this config has no webhook, so nobody can register (webhook: [])", FAILED)
    listener = next((one for one in config.webhook if one.tls is not None), None)
    if listener is None or listener.tls is None:
        die("no webhook listener has TLS, so a join string would show its secret to whoever is on the way: "
            "set tls: self-signed on one", FAILED)  # fmt: skip
    everywhere = listener.listen.ip in ("*", "0.0.0.0", "::")
    called = host or (config.advertise if everywhere or config.advertise else None)
    if called is None:
        called = outgoing_address() if everywhere else listener.listen.ip
        if is_loopback(called):
            say(f"the join string says {called}, which on every machine is that machine itself: set `advertise`, or --host",
                       err=True)  # fmt: skip
        elif everywhere:
            say(f"the join string says {called}: set `advertise`, or --host, if others call this machine differently",
                       err=True)  # fmt: skip
    try:
        if listener.tls.self_signed:
            folder = config.state_dir / TLS_FOLDER
            keys = [pin(self_signed(folder, names_of_machine(config)).path), next_pin(folder)]
        elif listener.tls.certificate is not None and is_self_signed(listener.tls.certificate):
            keys = [pin(listener.tls.certificate)]
        else:
            keys = []
    except (OSError, ValueError) as error:
        die(f"the webhook's certificate cannot be used: {error}. Run it as root or as pylb's own user.")
    where = f"[{called}]" if ":" in called else called
    return "/".join([f"pylb://{made.name}:{made.secrets[0]}@{where}:{listener.listen.port}", *keys])


def manifests_of(made: "GeneratedToken", join: str, options: dict[str, Any]) -> str:
    """The Secret, phone-home, Service and ConfigMap for the options of `pylb token create --kubernetes`."""
    from pylb.app.welcome import node_port_of, scalar  # noqa: PLC0415
    from pylb.core.auth import NODE_PORTS  # noqa: PLC0415
    from pylb.host.machine import deployed  # noqa: PLC0415

    single = (ports for ports in made.ports if ports.low == ports.high)
    frontends = options["frontends"] or [f"{ports}:{node_port_of(ports.low)}" for ports in single]
    if not frontends:
        die('--frontends "443:30443" is needed: the ports of the token are ranges')
    pairs = [_FRONTEND.match(frontend) for frontend in frontends]
    if not all(
        pair is not None and whole_number(pair[1], 65535) and (whole_number(pair[3], 65535) or 0) in NODE_PORTS
        for pair in pairs
    ):
        die(f"--frontends: {' '.join(frontends)!r} is not a list of PORT:NODEPORT (NodePorts are 30000-32767)")
    ports = "\n".join(_service_port(*pair.groups()) for pair in pairs if pair is not None)
    base, namespace = _service_name(made.name), _label("--namespace", options["namespace"] or "default")
    app = options["app"] or made.name
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", app):
        die(f"--app: {app!r} is not a valid label value (letters, digits, inside '.', '_', '-'; at most 63)")
    text = Template(deployed("kubernetes/join.yaml.in")).substitute(
        SERVICE=scalar(_label("NAME", f"{base}-pylb")),
        PHONEHOME=scalar(_label("NAME", f"{base}-phonehome")),
        NAMESPACE=scalar(namespace),
        JOIN=scalar(join),
        FRONTENDS=scalar(" ".join(frontends)),
        APP=scalar(app),
        PORTS=ports,
    )
    config_map = deployed("kubernetes/phonehome-configmap.yaml").replace(
        "  name: phonehome\n", f"  name: phonehome\n  namespace: {scalar(namespace)}\n", 1
    )
    return f"{text}---\n{config_map}"


def for_controller(options: dict[str, Any]) -> dict[str, Any]:
    """What `pylb token create --kubernetes-controller` means where nothing else is said."""
    from pylb.core.auth import NODE_PORTS  # noqa: PLC0415

    if options["kubernetes"]:
        die("--kubernetes and --kubernetes-controller are two ways to open a port: choose one (docs/kubernetes.md)")
    if not options["targets"]:
        die("--targets is needed: the networks of your nodes, such as 198.51.100.0/24 (kubectl get nodes -o wide)")
    for address in options["public_address"] or ():
        if not _is_ip(address) and not re.fullmatch(HOST_NAME, address):
            die(f"--public-address: {address!r} is neither an IP address nor a host name (in lower case)")
    return {
        # A Service with port 22 would be where an operator's ssh goes.
        "ports": options["ports"] or ["1-21", "23-65535", "1-65535/udp"],
        "names": options["names"] or ["*"],
        "target_ports": options["target_ports"] or [str(NODE_PORTS), "10256"],  # the second is kube-proxy's health port
        "namespace": _label("--namespace", options["namespace"] or "pylb-system"),
    }


def controller_manifests(join: str, public_addresses: Sequence[str], options: dict[str, Any]) -> str:
    """All of deploy/kubernetes/controller with the join string, for the options of `--kubernetes-controller`."""
    from pylb.app.welcome import scalar  # noqa: PLC0415
    from pylb.host.machine import deployed  # noqa: PLC0415

    host = join.partition("@")[2].partition("/")[0].rpartition(":")[0].strip("[]")
    shown = options["public_address"] or public_addresses or (host,)
    base, deployment, config_map = (
        deployed(f"kubernetes/controller/{name}.yaml") for name in ("base", "deployment", "configmap")
    )
    pieces = [_filled(base, r"(?m)^(  join: ).*$", scalar(join)), config_map]
    pieces.append(_filled(deployment, r"(?m)^( +- name: PYLB_PUBLIC_ADDRESS\b.*\n +value: ).*$", scalar(",".join(shown))))
    text = "---\n".join(re.sub(r"(?m)\A(#.*\n)+", "", piece) for piece in pieces)
    return MADE + text.replace("pylb-system", scalar(options["namespace"]))


def _filled(text: str, place: str, value: str) -> str:
    found, count = re.subn(place, lambda match: match[1] + value, text)
    if count != 1:
        raise ValueError(f"{count} places are {place}")  # a bug of this pylb, which tests would have found
    return found


def _is_ip(text: str) -> bool:
    from pylb.core.address import parse_ip  # noqa: PLC0415

    try:
        parse_ip(text)
    except ValueError:
        return False
    return True


_FRONTEND = re.compile(r"([0-9]{1,5})(?:/(tcp|udp))?:([0-9]{1,5})(?:/|$)")  # PORT[/udp]:NODEPORT, and options


def _service_port(port: str, protocol: str | None, node_port: str) -> str:
    from pylb.app.welcome import scalar  # noqa: PLC0415

    name, kind = (f"p{port}-udp", "protocol: UDP, ") if protocol == UDP else (f"p{port}", "")
    return f"    - {{name: {scalar(name)}, {kind}port: {port}, targetPort: {port}, nodePort: {node_port}}}"


def _service_name(name: str) -> str:
    """What a Service may be called (RFC 1035): lower case, no dots, no underscores, a letter first."""
    found = re.sub(r"[._]", "-", name.lower())
    return found if found[0].isalpha() else f"app-{found}"


def _label(option: str, name: str) -> str:
    """RFC 1123, as names of objects are."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        die(f"{option}: {name!r} is not a valid name in Kubernetes (lower case, digits, inside '-'; at most 63)")
    return name
