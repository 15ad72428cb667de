"""`pylb uninstall-service`: takes off the machine what `pylb install-service` has put there, and names what stays.

What the administrator or the running service wrote stays: config, tokens, state, logs, settings of `systemctl edit`, and the
user, to whom some of these files belong. So a service that is installed again goes on where this one stopped.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pylb.cli.client import FAILED, report, say
from pylb.cli.install import USER, InstallError, Run, execute, execute_beside_json
from pylb.cli.installed import command_link, is_ours, manual_link

PROGRAM = "/opt/pylb/bin/pylb"  # what the unit of install-service starts
STAYS = ("etc/pylb", "var/lib/pylb", "var/log/pylb", "etc/systemd/system/pylb.service.d")


class Step(NamedTuple):
    text: str
    do: Callable[[], None]


def uninstall_service(
    *,
    agreed: Callable[[], bool],
    prefix: Path = Path("/"),
    run: Run | None = None,
    systemd: bool | None = None,
    as_json: bool = False,
) -> int:
    """Show every step, and do them if that is `agreed`. Returns the exit code: 0 done, or nothing to do; 1 not.

    `prefix`, `run` and `as_json` as in install_service. `systemd`: does it know the unit? By default if the prefix is /.
    """
    run = run or (execute_beside_json if as_json else execute)
    if os.geteuid() != 0:
        return _failed("this needs root", "run it with sudo")
    steps = list(_steps(prefix, run, systemd=prefix == Path("/") if systemd is None else systemd))
    if not steps:
        say(_done(prefix, steps) if as_json else "no pylb is installed as a service here: nothing to remove")
        return 0
    shown = ["This takes the service off the machine:", *(f"  {step.text}" for step in steps), *_stays(prefix)]
    say("\n".join(shown), err=as_json)
    if not agreed():
        report("nothing was removed", FAILED, hint="without a person: --yes")
        say("nothing was removed", err=True)
        return 1
    for step in steps:
        try:
            step.do()
        except (InstallError, OSError) as error:
            return _failed(f"{step.text}: {error}", "what is done stays done; run this again once the reason is gone")
    say(_done(prefix, steps) if as_json else "removed")
    return 0


def _failed(text: str, remedy: str) -> int:
    report(text, FAILED, hint=remedy)
    say(f"pylb uninstall-service: {text}\n  what to do: {remedy}", err=True)
    return 1


def _done(prefix: Path, steps: Sequence[Step]) -> str:
    return json.dumps({"done": [step.text for step in steps], "stays": _left(prefix)})


def _steps(prefix: Path, run: Run, *, systemd: bool) -> Iterator[Step]:
    """The program's own files last: until then it may still load a module."""
    unit, link, home = prefix / "etc/systemd/system/pylb.service", command_link(prefix), prefix / "opt/pylb"
    if unit.is_file() and PROGRAM in unit.read_text(errors="replace"):
        if systemd:
            stop = ("systemctl", "disable", "--now", "pylb")
            text = "stop the service: live sessions have timeouts.shutdown (5 s), then they are reset"
            yield Step(f"{text} ({' '.join(stop)})", lambda: run(stop))
        yield Step(f"remove {unit}", unit.unlink)
        if systemd:
            reload = ("systemctl", "daemon-reload")
            yield Step(f"tell systemd ({' '.join(reload)})", lambda: run(reload))
    if (entry := prefix / "etc/sysusers.d/pylb.conf").is_file():
        yield Step(f"remove {entry}", entry.unlink)
    for one in (link, manual_link(prefix)):
        if is_ours(one):
            yield Step(f"remove {one.path}", one.path.unlink)
    if (home / "bin").is_symlink():
        yield Step(f"remove {home / 'bin'}", (home / "bin").unlink)
    if (home / "versions").is_dir():
        yield Step(f"remove {home / 'versions'}", lambda: _remove_versions(home))


def _remove_versions(home: Path) -> None:
    shutil.rmtree(home / "versions")
    if not any(home.iterdir()):
        home.rmdir()


def _stays(prefix: Path) -> Iterator[str]:
    there = _left(prefix)
    yield f"What stays: the user {USER}{''.join(f', {path}' for path in there)}"
    remove = f"rm -r {' '.join(there)}; " if there else ""
    yield f"  to remove that too, afterwards: {remove}userdel {USER}"


def _left(prefix: Path) -> list[str]:
    return [str(prefix / name) for name in STAYS if (prefix / name).exists()]
