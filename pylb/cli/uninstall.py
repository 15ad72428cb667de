"""`pylb uninstall-service`: takes off the machine what `pylb install-service` has put there, and names what stays.

What the administrator or the running service wrote stays: config, tokens, state, logs, settings of `systemctl edit`, and the
user, to whom some of these files belong. So a service that is installed again goes on where this one stopped.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pylb.cli.client import say
from pylb.cli.install import USER, InstallError, Run, execute
from pylb.cli.installed import command_link, is_ours, manual_link

PROGRAM = "/opt/pylb/bin/pylb"  # what the unit of install-service starts
STAYS = ("etc/pylb", "var/lib/pylb", "var/log/pylb", "etc/systemd/system/pylb.service.d")


class Step(NamedTuple):
    text: str
    do: Callable[[], None]


def uninstall_service(
    *, agreed: Callable[[], bool], prefix: Path = Path("/"), run: Run = execute, systemd: bool | None = None
) -> int:
    """Show every step, and do them if that is `agreed`. Returns the exit code: 0 done, or nothing to do; 1 not.

    `prefix` and `run` as in install_service. `systemd`: does it know the unit? By default if the prefix is /.
    """
    if os.geteuid() != 0:
        say("pylb uninstall-service: this needs root\n  what to do: run it with sudo", err=True)
        return 1
    steps = list(_steps(prefix, run, systemd=prefix == Path("/") if systemd is None else systemd))
    if not steps:
        say("no pylb is installed as a service here: nothing to remove")
        return 0
    say("\n".join(["This takes the service off the machine:", *(f"  {step.text}" for step in steps), *_stays(prefix)]))
    if not agreed():
        say("nothing was removed", err=True)
        return 1
    for step in steps:
        try:
            step.do()
        except (InstallError, OSError) as error:
            text = "what is done stays done; run this again once the reason is gone"
            say(f"pylb uninstall-service: {step.text}: {error}\n  what to do: {text}", err=True)
            return 1
    say("removed")
    return 0


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
    there = [str(prefix / name) for name in STAYS if (prefix / name).exists()]
    yield f"What stays: the user {USER}{''.join(f', {path}' for path in there)}"
    remove = f"rm -r {' '.join(there)}; " if there else ""
    yield f"  to remove that too, afterwards: {remove}userdel {USER}"
