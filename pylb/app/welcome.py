"""The first minute: the banner for the person at the terminal, and the first steps that the status page shows."""

import json
import logging
import shlex
import shutil
import sys
from functools import cache
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from pylb.app.descriptors import Budget
from pylb.app.settings import Settings
from pylb.app.tokens import TOKEN_FILE
from pylb.config import Config
from pylb.config.models import TokenEntry
from pylb.control.storage.places import SYSTEM_FILE
from pylb.core.address import ANY, TCP, is_loopback, port_text, ports_of
from pylb.core.auth import NODE_PORTS
from pylb.core.text import counted
from pylb.host.machine import outgoing_address

log = logging.getLogger("pylb")


def program(path: Path | None) -> tuple[str, str]:
    """How the CLI was called, to be typed again: the command, and the option for a config that is not found by itself."""
    called = sys.argv[0]
    name = Path(called).name
    if name == "__main__.py":
        name = called = f"{Path(sys.executable).name} -m pylb"
    elif (found := shutil.which(name)) is not None and Path(found).resolve() == Path(called).resolve():
        called = name
    return called, "" if path in (None, SYSTEM_FILE) else f" -c {shlex.quote(str(path))}"


def greet(settings: Settings, room: Budget, called: tuple[str, str], file: Path | None, *, restored: int) -> None:
    """pylb serves: warnings go to the log, the banner to the terminal."""
    config = settings.config
    for warning in config.warnings:
        log.warning("%s", warning)
    if settings.complaint:
        log.error("the config is broken, the last good one is in force:\n%s", settings.complaint)
    terminal = sys.stdout.isatty()
    text = banner(
        config,
        file=file,
        room=(room.most_sessions, room.reserve),
        restored=restored,
        secret=settings.keys.secret,
        terminal=terminal,
        called=called,
    )
    try:
        print(text, file=sys.stdout if terminal else sys.stderr, flush=True)
    except OSError:
        pass  # the reader has closed the pipe: no reason to stop serving


def banner(
    config: Config,
    *,
    file: Path | None,
    room: tuple[int, int],
    restored: int,
    secret: str | None,
    terminal: bool,
    called: tuple[str, str] = ("pylb", ""),
) -> str:
    """What `pylb run` prints when it is up. The token itself is shown on a terminal only: a journal keeps what it gets.

    `room`: sessions, and descriptors beside them.
    """
    webhooks = ", ".join(str(one.listen) for one in config.webhook)
    webhook = f"webhook on {webhooks}" if webhooks else "no webhook"
    lines = [
        f"pylb is up: {webhook}, admin on http://{config.admin.listen}, state in {config.state_dir}",
        f"config: {file or 'the embedded defaults'}",
        f"{counted(restored, 'port')} served from the state directory and the config, {_room(*room)}",
    ]
    if secret is not None and config.webhook:
        kept = shlex.quote(str(config.state_dir / TOKEN_FILE))
        lines += _first_steps(config, secret if terminal else f"$(cat {kept})", called)
    return "\n".join(lines)


def _first_steps(config: Config, token: str, called: tuple[str, str]) -> list[str]:
    webhook = WebhookAddress(config)
    command, option = called
    lines = [
        "",
        "Try it here: port 8443 to whatever listens on this machine's port 8000 (python3 -m http.server 8000)",
        *(f"  {line}" for line in _curl(webhook, webhook.here, token, ExampleRegistration())),
        f"  curl http://localhost:8443/    and see it with: {command} routes{option}",
        f"  or in a browser, where it appears by itself: {_page(config)}",
        "",
        "From this machine only, for the webhook listens on loopback, a phone-home's environment:"
        if webhook.only_here
        else "From a pod, the phone-home's environment (deploy/kubernetes has it ready to apply):",
        f"  PYLB_URL={webhook.there}",
        f"  PYLB_TOKEN={token}",
        "  PYLB_NAME=traefik",
        '  PYLB_FRONTENDS="443:30443 80:30080"',
    ]
    if webhook.certificate:
        lines.append(f"  PYLB_CA={webhook.certificate}    a copy of that file, or its text")
    create = f"{command} token create traefik --ports 80,443{option}"
    return [*lines, "", f"Better, one text instead of all that, with a token for this app alone: {create}", ""]


def _page(config: Config) -> str:
    ip, port = config.admin.listen.ip, config.admin.listen.port
    return _url("http", "localhost" if ip in EVERYWHERE else ip, port) + "/"


def _room(sessions: int, descriptors: int) -> str:
    return f"room for {sessions} sessions beside {descriptors} descriptors for calls, pages, checks and files"


EVERYWHERE = (ANY, "0.0.0.0", "::")


class WebhookAddress:
    """The first webhook, as it is called from here and from elsewhere."""

    def __init__(self, config: Config) -> None:
        webhook = config.webhook[0]
        scheme = "http" if webhook.tls is None else "https"
        self.everywhere = webhook.listen.ip in EVERYWHERE
        self.only_here = not self.everywhere and is_loopback(webhook.listen.ip)
        self.here = _url(scheme, "localhost" if self.everywhere else webhook.listen.ip, webhook.listen.port)
        named = config.advertise or outgoing_address()
        self.there = _url(scheme, named, webhook.listen.port) if self.everywhere else self.here
        own = webhook.tls is not None and webhook.tls.self_signed
        self.certificate = shlex.quote(str(config.state_dir / "tls" / "cert.pem")) if own else ""


class ExampleRegistration(NamedTuple):
    """A registration to try. `address`: what the token may name; "": the caller's own."""

    name: str = "try"
    port: int = 8443
    target_port: int = 8000
    address: str = "127.0.0.1"
    protocol: str = TCP


def _curl(webhook: WebhookAddress, url: str, token: str, trial: ExampleRegistration) -> list[str]:
    """`token` as a shell may read it inside double quotes."""
    frontend: dict[str, Any] = {"port": trial.port, "target_port": trial.target_port}
    body: dict[str, Any] = {"frontends": [frontend | ({"protocol": trial.protocol} if trial.protocol != TCP else {})]}
    body |= {"address": trial.address} if trial.address else {}
    text = json.dumps(body | {"ttl": None}, separators=(",", ":"))
    ca = f" --cacert {webhook.certificate}" if webhook.certificate else ""
    return [
        f"curl{ca} -X PUT {url}/v1/registrations/{trial.name}/me \\",
        f'  -H "Authorization: Bearer {token}" -H "Content-Type: application/json" \\',
        f"  -d '{text}'",
    ]


def first_steps(config: Config, *, generated: bool) -> dict[str, str] | None:
    """What the status page shows while nothing is registered: with this machine's address, and never with a secret.

    `generated`: does the first run's token count? None without a webhook: there are frontends then.
    """
    if not config.webhook:
        return None
    webhook, kept, trial = WebhookAddress(config), str(config.state_dir / TOKEN_FILE), ExampleRegistration()
    if not generated:
        found = next((one for one in config.tokens if one.secret_file is not None), None)
        kept = str(found.secret_file) if found is not None else ""
        if any_token := found or next(iter(config.tokens), None):
            trial = _trial(any_token)
    token = f"$(cat {shlex.quote(kept)})" if kept else "$PYLB_TOKEN"
    secret = ["kubectl create secret generic pylb", f"--from-file=token={shlex.quote(kept) if kept else 'FILE'}"]
    secret += [f"--from-file=ca.pem={webhook.certificate}"] if webhook.certificate else []
    node_port = trial.target_port if trial.target_port in NODE_PORTS else node_port_of(trial.port)
    sidecar = _sidecar().substitute(
        URL=scalar(webhook.there),
        CA="      - {name: PYLB_CA, value: /run/secrets/pylb/ca.pem}\n" if webhook.certificate else "",
        NAME=scalar(trial.name if trial.name != "try" else "my-app"),
        FRONTENDS=scalar(f"{port_text(trial.port, trial.protocol)}:{node_port}"),
    )
    return {
        "curl": "\n".join(_curl(webhook, webhook.here if trial.address else webhook.there, token, trial)),
        "try": f"port {trial.port} to whatever listens on port {trial.target_port} of "
        + ("this machine" if trial.address else "the machine it is called from"),
        "elsewhere": f"Or from your cluster, once it can reach the webhook, which listens on {config.webhook[0].listen} alone:"
        if webhook.only_here
        else "Or from your cluster:",
        "secret": " ".join(secret),
        "sidecar": sidecar,
    }


def scalar(text: str) -> str:
    """The text as a YAML scalar that no reader takes for anything else. Without quotes `yes`, `1234`, `0x10`, `null` and `1e3`
    are not texts, and each reader (YAML 1.1, 1.2, kubectl's) has a list of its own. JSON's strings are YAML's in quotes."""
    return json.dumps(text)


@cache
def _sidecar() -> Template:
    """Read once: whoever replaces the files of a running pylb changes nothing until the next start."""
    return Template((files("pylb.statuspage") / "ui" / "sidecar.yaml.in").read_text(encoding="utf-8"))


def _trial(token: TokenEntry) -> ExampleRegistration:
    """A registration that the token allows."""
    names = token.names or (token.name,)
    ports = sorted(token.ports, key=lambda one: one.protocol != TCP)  # one of TCP, which curl can try
    port, protocol = (8443, TCP) if 8443 in ports_of(token.ports) else (ports[0].low, ports[0].protocol)
    target = 8000 if 8000 in ports_of(token.target_ports) else token.target_ports[0].low
    here = any(ip_address("127.0.0.1") in network for network in token.targets)
    return ExampleRegistration("try" if ANY in names else names[0], port, target, "127.0.0.1" if here else "", protocol)


def node_port_of(port: int) -> int:
    """443 -> 30443, 8443 -> 30843, as the manifests in deploy/ have it."""
    return 30000 + (port if port < 1000 else port // 1000 * 100 + port % 100)


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
