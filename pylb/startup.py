"""The first minute: which config counts, the token that a first run makes, and what is printed for the person in front."""

import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from pylb.config import Config, ConfigErrors, default_state_dir, load, parse
from pylb.core.address import ANY, is_loopback
from pylb.keys import TOKEN_FILE
from pylb.machine import outgoing_address
from pylb.web.certificate import write_private

LAST_GOOD = "config.last-good"
_STATE_DIR_LINE = re.compile(r"""^[ \t{]*["']?state_dir["']?\s*:\s*["']?([^"'#\n]+?)["']?,?\s*(?:#.*)?$""", re.MULTILINE)


class ConfigSource:
    """Where the config comes from: a file, or nothing. Remembers the last good one in the state directory."""

    def __init__(self, path: Path | None, environ: Mapping[str, str]) -> None:
        self.path = path
        self._environ = environ

    def load(self) -> Config:
        """What the file says now. Raises ConfigErrors."""
        return load(self.path, self._environ)

    def read(self, path: Path, text: str) -> Config:
        """What `text`, as the file at `path`, would mean. Raises ConfigErrors."""
        return load(path, self._environ, text=text)

    def last_good(self) -> Config | None:
        """What was in force when pylb last ran with this file, if it is remembered and still valid.

        A secret file that is gone costs its token's calls, not the ports: they serve what is registered.
        """
        if self.path is None:
            return None
        kept = self.state_dir() / LAST_GOOD
        try:
            text = kept.read_text()
            try:
                return load(self.path, self._environ, text=text)
            except ConfigErrors:
                return parse(text, str(self.path), self._environ)
        except (OSError, ValueError, ConfigErrors):
            return None

    def keep(self, config: Config) -> None:
        """Remember the file as it is now, for a start with a broken one. Raises OSError."""
        if self.path is not None:
            write_private(config.state_dir / LAST_GOOD, self.path.read_bytes())

    def state_dir(self) -> Path:
        """Of a file that may not even be YAML: its state_dir line, else the default."""
        try:
            found = _STATE_DIR_LINE.search(self.path.read_text()) if self.path is not None else None
        except (OSError, ValueError):
            found = None
        if found is None or self.path is None:
            return default_state_dir(self._environ)
        return self.path.absolute().parent / found.group(1).strip()  # an absolute one stays as it is


def program(path: Path | None) -> tuple[str, str]:
    """How the CLI was called, to be typed again: the command, and the option that names the config."""
    called = sys.argv[0]
    name = Path(called).name
    if name == "__main__.py":
        name = called = f"{Path(sys.executable).name} -m pylb"
    elif (found := shutil.which(name)) is not None and Path(found).absolute() == Path(called).absolute():
        called = name
    return called, "" if path is None else f" -c {shlex.quote(str(path))}"


def banner(
    config: Config, *, limit: int, restored: int, secret: str | None, terminal: bool, called: tuple[str, str] = ("pylb", "")
) -> str:
    """What `pylb run` prints when it is up. The token itself is shown on a terminal only: a journal keeps what it is told."""
    doors = ", ".join(str(one.listen) for one in config.webhook)
    ports = "1 port" if restored == 1 else f"{restored} ports"
    lines = [
        f"pylb is up: webhook on {doors}, admin on http://{config.admin.listen}, state in {config.state_dir}",
        f"{ports} served from the state directory and the config, room for {limit} sessions",
    ]
    if secret is not None:
        kept = shlex.quote(str(config.state_dir / TOKEN_FILE))
        lines += _first_steps(config, secret if terminal else f"$(cat {kept})", called)
    return "\n".join(lines)


def _first_steps(config: Config, token: str, called: tuple[str, str]) -> list[str]:
    webhook = config.webhook[0]
    scheme = "http" if webhook.tls is None else "https"
    everywhere = webhook.listen.ip in (ANY, "0.0.0.0", "::")
    here = _url(scheme, "localhost" if everywhere else webhook.listen.ip, webhook.listen.port)
    there = _url(scheme, config.advertise or outgoing_address(), webhook.listen.port) if everywhere else here
    own_certificate = webhook.tls is not None and webhook.tls.self_signed
    certificate = shlex.quote(str(config.state_dir / "tls" / "cert.pem"))
    command, option = called
    lines = [
        "",
        "Try it here: port 8443 to whatever listens on this machine's port 8000 (python3 -m http.server 8000)",
        f"  curl{f' --cacert {certificate}' if own_certificate else ''} -X PUT {here}/v1/registrations/try/me \\",
        f'    -H "Authorization: Bearer {token}" -H "Content-Type: application/json" \\',
        """    -d '{"frontends":[{"port":8443,"target_port":8000}],"address":"127.0.0.1","ttl":null}'""",
        f"  curl http://localhost:8443/    and see it with: {command} routes{option}",
        "",
        "From this machine only, for the webhook listens on loopback, a phone-home's environment:"
        if not everywhere and is_loopback(webhook.listen.ip)
        else "From a pod, the phone-home's environment (deploy/kubernetes has it ready to apply):",
        f"  PYLB_URL={there}",
        f"  PYLB_TOKEN={token}",
        "  PYLB_NAME=traefik",
        '  PYLB_FRONTENDS="443:30443 80:30080"',
    ]
    if own_certificate:
        lines.append(f"  PYLB_CA={certificate}    a copy of that file, or its text")
    create = f"{command} token create traefik --ports 80,443{option}"
    return [*lines, "", f"Better, one text instead of all that, with a token for this app alone: {create}", ""]


def _url(scheme: str, host: str, port: int) -> str:
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
