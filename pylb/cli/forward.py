"""`pylb run --listen PORT --to SERVER`: a config in words, for a forward that needs no file.

It is written as one in the end, into a directory of its own below the default state directory. So every other command works
with it, whoever likes it has a file to begin with, and a pylb with registrations beside it shares nothing with it.
"""

import errno
import json
import os
import socket
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from pylb.cli.client import die
from pylb.cli.instance import answers_in
from pylb.config import default_state_dir
from pylb.config.addresses import parse_listen_at, parse_server_at
from pylb.config.source import FORWARDS
from pylb.control.storage.files import write_private
from pylb.core.address import UDP, Address, HostPort, Listen
from pylb.upgrade.protocol import VARIABLE as HAND_OVER

ADMIN_PORTS = range(8404, 8414)  # the first free one
ASK_SECONDS = 1.0


class Forward(NamedTuple):
    listen: Listen
    servers: tuple[Address | HostPort, ...]

    def __str__(self) -> str:
        return f"{self.listen} -> {', '.join(map(str, self.servers))}"

    @property
    def options(self) -> str:
        listen = str(self.listen).removeprefix("*:")
        return f"--listen {listen} --to {','.join(map(str, self.servers))}"


def forwards(listens: Sequence[str], to: Sequence[str]) -> list[Forward]:
    """Raises click.UsageError."""
    if not listens or not to:
        raise click.UsageError("a forward needs both: --listen 8443 --to 127.0.0.1:8000")
    if len(listens) == 1:
        to = [",".join(to)]
    if len(listens) != len(to):
        text = f"{len(listens)} --listen and {len(to)} --to: each --listen needs its own --to, in the same order"
        raise click.UsageError(f"{text} (several servers for one: --to 10.0.0.1:80,10.0.0.2:80)")
    found = [Forward(_listen(one), tuple(_servers(servers))) for one, servers in zip(listens, to, strict=True)]
    for number, one in enumerate(found):
        if one.listen in {other.listen for other in found[:number]}:
            raise click.BadParameter(f"{one.listen} is named twice", param_hint="--listen")
    return found


def _listen(text: str) -> Listen:
    port = text.strip().removeprefix(":")
    if text.strip().endswith(f"/{UDP}"):
        what = f"{text.strip()!r}: without a config only TCP is forwarded: write one with `protocol: udp`, see docs/udp.md"
        raise click.BadParameter(what, param_hint="--listen")
    try:
        return parse_listen_at(f"*:{port}" if port.isdigit() else text.strip())
    except ValueError as error:
        what = f"{error}: write a port, or ADDRESS:PORT; several ports need a --listen and a --to each"
        raise click.BadParameter(what, param_hint="--listen") from None


def _servers(texts: str) -> Iterator[Address | HostPort]:
    for text in (part.strip() for part in texts.split(",")):
        port = text.removeprefix(":")
        try:
            yield parse_server_at(f"127.0.0.1:{port}" if port.isdigit() else text)
        except ValueError as error:
            what = f"{error}: write a port of this machine, or HOST:PORT; several servers with a comma between them"
            raise click.BadParameter(what, param_hint="--to") from None


def written(found: Sequence[Forward]) -> Path:
    """The config of these forwards, as a file. Raises OSError."""
    folder = default_state_dir(os.environ) / f"{FORWARDS}{found[0].listen.port}"
    path = folder / "pylb.yaml"
    if HAND_OVER in os.environ and path.is_file():  # the pylb that started this one has it in use
        return path
    if answers_in(folder):
        die(f"a forward of port {found[0].listen.port} runs already: pylb status -c {path}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, (_head(found) + _yaml(found, folder)).encode(), sync=False)
    return path


def _head(found: Sequence[Forward]) -> str:
    return (
        f"# Written anew by each `pylb run {' '.join(one.options for one in found)}`.\n"
        "# To keep it and to change it: copy it, name another state_dir, and use `pylb run -c COPY`. All keys: docs/config.md\n"
    )


def _yaml(found: Sequence[Forward], folder: Path) -> str:
    """The config file as text. Strings and lists are written as JSON, which is YAML too."""
    lines = [
        "webhook: []                  # nobody registers here",
        f'admin: {{listen: "127.0.0.1:{_admin_port({one.listen.port for one in found})}"}}',
        f"state_dir: {json.dumps(str(folder))}",
        "frontends:",
    ]
    ports = [one.listen.port for one in found]
    for one in found:
        name = f"port-{one.listen.port}" if ports.count(one.listen.port) == 1 else _name_of(one.listen)
        keys = f'name: "{name}", listen: "{one.listen}", servers: {json.dumps([str(server) for server in one.servers])}'
        lines.append(f"  - {{{keys}}}")
    return "\n".join(lines) + "\n"


def _name_of(listen: Listen) -> str:
    """The name of a frontend, with its address: two of them may have the same port."""
    return f"port-{listen.port}-{'any' if listen.ip == '*' else listen.ip.replace(':', '-').strip('-')}"


def _admin_port(taken: Container[int]) -> int:
    free = [port for port in ADMIN_PORTS if port not in taken]
    for port in free:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
                sock.listen(1)  # two binds with SO_REUSEADDR succeed; listen is exclusive
            except OSError:
                continue
        return port
    return (free or ADMIN_PORTS)[0]  # whose bind then says what is wrong


def closed(found: Iterable[Forward]) -> Iterator[str]:
    """What to say about ports that cannot be opened. pylb itself would start, and try again every five seconds."""
    from pylb.app.endpoints import remedy  # noqa: PLC0415 - slow to load, and the words come first
    from pylb.web.listener import bind  # noqa: PLC0415

    if HAND_OVER in os.environ:  # the pylb before has them open
        return
    for one in found:
        try:
            bind(one.listen).close()
        except OSError as error:
            what = remedy(error, one.listen, "port")
            yield f"{one.listen} cannot be opened: {error.strerror}. {what}choose another port for --listen."


def silent(found: Iterable[Forward]) -> Iterator[str]:
    """A warning for each server that does not accept connections now."""
    if HAND_OVER in os.environ:  # nobody reads it, and the pylb before waits for this one
        return
    for server in dict.fromkeys(server for one in found for server in one.servers):
        host, port = (server.ip, server.port) if isinstance(server, Address) else (server.host, server.port)
        try:
            socket.create_connection((host, port), ASK_SECONDS).close()
        except OSError as error:
            why = "refused" if error.errno == errno.ECONNREFUSED else error.strerror or "no answer in time"
            yield f"{server} does not accept connections yet ({why}): until it does, clients are reset"
