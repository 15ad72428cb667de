"""The controller's environment, parsed once into frozen values. What concerns pylb is read by phonehome.settings."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from phonehome.controller.desired import Rules
from phonehome.controller.kube import Access
from phonehome.controller.status import Address
from phonehome.settings import ReadFile, Settings, SettingsError, parse
from phonehome.values import Endpoint, NotationError, parse_url

POD_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
NAME = "kubernetes"  # settings want a name; registrations have the names of Services

HELP = """\
usage: phonehome controller

Opens a port on pylb for each Service of type LoadBalancer, for a whole cluster, and shows the address in its status.

  PYLB_JOIN, or PYLB_URL and PYLB_TOKEN, and their _FILE forms: as `phonehome --help` describes them; several pylbs too
  PYLB_PUBLIC_ADDRESS   what the status shows: 203.0.113.9, or a host name; for several pylbs one each, in their order, or
                        any other number that they share (default: the hosts of PYLB_JOIN or PYLB_URL)
  PYLB_DEFAULT_CLASS    true: also Services without a loadBalancerClass (default: only pylb.io/pylb)
  PYLB_NODE_SELECTOR    "pool=edge,zone=a": only nodes with these labels
  PYLB_NODE_ADDRESS     external (default: ExternalIP, else InternalIP) or internal
  PYLB_KUBE_API         https://HOST:PORT of the API server (default: the pod's)
  PYLB_KUBE_TOKEN_FILE  (default: the pod's service account)
  PYLB_KUBE_CA          a PEM file (default: the pod's service account's)
"""


class Options(NamedTuple):
    settings: Settings  # of the pylbs
    access: Access
    addresses: tuple[Address, ...]
    rules: Rules


def read(environ: Mapping[str, str], read_file: ReadFile) -> Options:
    """Raises SettingsError with all problems."""
    problems: list[str] = []
    settings: Settings | None = None
    try:
        named = {**environ, "PYLB_NAME": NAME, "PYLB_FRONTENDS": "", "FRONTEND_PORT": "", "BACKEND_PORT": ""}
        settings = parse(named, hostname=NAME, read_file=read_file, need_frontends=False)
    except SettingsError as exc:
        problems += exc.problems
    values = {key: value.strip() for key, value in environ.items()}
    access = _access(values, problems.append)
    rules = Rules(
        _choice(values, "PYLB_DEFAULT_CLASS", ("false", "true"), problems.append) == "true",
        _selector(values.get("PYLB_NODE_SELECTOR", ""), problems.append),
        _choice(values, "PYLB_NODE_ADDRESS", ("external", "internal"), problems.append) == "external",
    )
    addresses = _addresses(values.get("PYLB_PUBLIC_ADDRESS", ""), settings.endpoints if settings else (), problems.append)
    if problems or settings is None:
        raise SettingsError(problems)
    return Options(settings, access, addresses, rules)


Wrong = Callable[[str], None]


def _access(values: Mapping[str, str], wrong: Wrong) -> Access:
    host, port = values.get("KUBERNETES_SERVICE_HOST", ""), values.get("KUBERNETES_SERVICE_PORT", "443")
    pod = f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else ""
    text = values.get("PYLB_KUBE_API", "") or pod
    endpoint = Endpoint(True, "", 443)
    if not text:
        wrong("PYLB_KUBE_API: missing, and this does not run in a pod; example: PYLB_KUBE_API=https://198.51.100.2:6443")
    else:
        try:
            endpoint = parse_url(text)
        except NotationError as exc:
            wrong(f"PYLB_KUBE_API: {exc}; example: PYLB_KUBE_API=https://198.51.100.2:6443")
    ca = values.get("PYLB_KUBE_CA", "") or (f"{POD_FOLDER}/ca.crt" if endpoint.secure else None)
    return Access(endpoint, values.get("PYLB_KUBE_TOKEN_FILE", "") or f"{POD_FOLDER}/token", ca)


def _choice(values: Mapping[str, str], name: str, choices: tuple[str, str], wrong: Wrong) -> str:
    """The first is the default."""
    value = values.get(name, "").lower() or choices[0]
    if value not in choices:
        wrong(f"{name}: {value[:60]!r} is neither {choices[0]} nor {choices[1]}")
    return value


def _selector(text: str, wrong: Wrong) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key:
            wrong(f"PYLB_NODE_SELECTOR: {part[:60]!r} is not LABEL=VALUE; example: PYLB_NODE_SELECTOR=pool=edge")
        found.append((key.strip(), value.lstrip("=").strip()))  # == is kubectl's other spelling
    return tuple(found)


def _addresses(text: str, endpoints: tuple[Endpoint, ...], wrong: Wrong) -> tuple[Address, ...]:
    found = [part for part in text.replace(",", " ").split() if part]
    for one in found:
        if not _is_address(one):
            wrong(f"PYLB_PUBLIC_ADDRESS: {one[:60]!r} is neither an IP address nor a host name")
    if not found:
        return tuple(Address(one.host, one.label) for one in endpoints)
    if len(found) == len(endpoints):
        return tuple(Address(address, one.label) for address, one in zip(found, endpoints))  # noqa: B905  Python 3.9
    return tuple(Address(address, None) for address in found)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        # Not four numbers, or the API server takes a mistyped IP address for a host name and refuses each status.
        label = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
        return re.fullmatch(rf"(?:{label}\.)*{label}", text) is not None and not text.rpartition(".")[2].isdigit()
    return True
