"""Runs every verb of the CLI under bad circumstances, one process for each, made by fork from one that has loaded them all.

`python -m tests.cli.every_verb CIRCUMSTANCE` prints a JSON object: for each command line its exit code and what it wrote.
"""

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from pylb.cli.main import main

OPERANDS = {  # of verbs that need some, of the right form
    "cluster forget": ["lb-b"],
    "ctl drain": ["127.0.0.1"],
    "ctl maint": ["127.0.0.1"],
    "ctl ready": ["127.0.0.1"],
    "ctl weight": ["https/app", "5"],
    "ctl shutdown session": ["0x1a"],
    "ctl shutdown sessions": ["https/app"],
    "explain": ["443"],
    "import": ["haproxy.cfg"],
    "install-service": ["--print"],  # without it root would install
    "plan": ["-c", "pylb.yaml"],
    "release": ["443"],
    "token create": ["mosquitto", "--ports", "8443"],
    "token revoke": ["mosquitto"],
    "token rotate": ["mosquitto"],
}


def verbs(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """All that are not groups, and not hidden."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, (*path, name))
        elif not command.hidden:
            yield (*path, name), command


def with_option(option: str) -> list[tuple[str, ...]]:
    return [path for path, command in verbs() if any(option in one.opts for one in command.params)]


def run(argv: list[str], stdout: int, during: Callable[[int], None] = lambda _pid: None) -> dict[str, Any]:
    """A verb to its end. `during` gets its process number."""
    with tempfile.TemporaryFile() as stderr, Path(os.devnull).open("rb") as stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(stdin.fileno(), 0)  # nobody says yes
            os.dup2(stdout, 1)
            os.dup2(stderr.fileno(), 2)
            sys.argv = ["pylb", *argv]
            signal.alarm(30)  # nothing of it is left, whatever becomes of us
            try:
                main()
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else 1
                try:
                    sys.stdout.flush()
                except OSError:  # as at the end of every Python program
                    status = 120
                os._exit(status)
            finally:
                os._exit(99)  # nothing but SystemExit may come out of it
        during(pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stderr.seek(0)
        return {"code": code, "stderr": stderr.read().decode()}


def full() -> dict[str, Any]:
    """Each --help, on a full disk."""
    with Path("/dev/full").open("wb") as out:
        return {" ".join(path): run([*path, "--help"], out.fileno()) for path, _command in verbs()}


def left() -> dict[str, Any]:
    """Each --help, whose reader has left."""
    found = {}
    for path, _command in verbs():
        reading, writing = os.pipe()
        os.close(reading)
        found[" ".join(path)] = run([*path, "--help"], writing)
        os.close(writing)
    return found


def as_json(*more: str) -> dict[str, Any]:
    """Each verb that has --json, with it, where no pylb runs and nothing is written."""
    found = {}
    for path in with_option("--json"):
        if path == ("uninstall-service",) and os.geteuid() == 0:
            continue  # it could remove the service of this machine
        with tempfile.TemporaryFile() as out:
            argv = [*path, *OPERANDS.get(" ".join(path), []), "--json", *more]
            ended = run(argv, out.fileno())
            out.seek(0)
            found[" ".join(path)] = ended | {"stdout": out.read().decode()}
    return found


def interrupted() -> dict[str, Any]:
    """Each verb that asks the running pylb, which does not answer until Ctrl-C."""
    folder = Path.cwd() / "state"
    folder.mkdir()
    found = {}
    with socket.socket(socket.AF_UNIX) as listening, Path(os.devnull).open("wb") as out:
        listening.bind(str(folder / "control.sock"))
        listening.listen(8)
        listening.settimeout(20)
        clients = []

        def interrupt(pid: int) -> None:
            while True:  # it connects once to see whether anybody is there, and once to ask
                client = listening.accept()[0]
                client.settimeout(20)
                if client.recv(65536):
                    break
                client.close()
            clients.append(client)
            os.kill(pid, signal.SIGINT)

        for path in ASKING:
            argv = [*path, *OPERANDS.get(" ".join(path), [])]
            found[" ".join(path)] = run(argv, out.fileno(), interrupt)
            clients.pop().close()
    return found


ASKING = [
    *(("cluster", verb) for verb in ("status", "diff", "forget")),
    *(("ctl", verb) for verb in ("drain", "list", "weight")),
    *((verb,) for verb in ("explain", "history", "plan", "release", "reload", "routes", "sessions", "status", "upgrade")),
]

LAZY = (
    "app.tokens",
    "cli.doctor",
    "cli.install",
    "cli.uninstall",
    "haproxy.legacy_import",
    "haproxy.translate",
    "host.machine",
)

if __name__ == "__main__":
    for module in LAZY:  # a verb imports them when it needs them, each in its own process again
        import_module(f"pylb.{module}")
    circumstances: dict[str, Callable[..., dict[str, Any]]] = {
        "full": full,
        "left": left,
        "json": as_json,
        "interrupted": interrupted,
    }
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
    sys.stdout.write(json.dumps(circumstances[sys.argv[1]](*sys.argv[2:])))
