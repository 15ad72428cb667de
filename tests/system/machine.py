"""A machine of its own: Debian with a real systemd as its process 1, booted by systemd-nspawn, in a network of the tests."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.support import cgroups
from tests.support.netns import Namespace
from tests.support.peers import need
from tests.support.processes import Process, Processes
from tests.support.waiting import eventually

# What a Debian server has; no procps: there is no /bin/kill then, and the unit must not need it. make: for the README's way.
PACKAGES = ("systemd-sysv", "dbus", "make", "logrotate")
BOOT_SECONDS = 90.0
STOP = signal.SIGRTMIN + 4  # what poweroff sends to systemd (systemd(1), SIGNALS)
# PATH: root's in a Debian (/etc/profile; sudo's secure_path is the same).
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRON = {"HOME": "/root", "PATH": _PATH, "LC_ALL": "C.UTF-8"}
# The machine's cgroup is our own: with --keep-unit nspawn makes its own below the one it was started in, where another may be.
_BOOT = """
set -e
group=$1; shift
for root in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
  [ -e "$root/cgroup.procs" ] || continue
  mkdir "$root/$group"
  echo $$ > "$root/$group/cgroup.procs"
done
exec "$@"
"""


def install(base: Path, root: Path, *packages: str) -> Path:
    """A copy of `base` with systemd, and what else is wanted."""
    _do("cp", "--archive", str(base), str(root))  # devices too
    _do("chroot", str(root), "apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES, *packages)
    return root


def _do(*argv: str) -> None:
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


class Machine:
    """Use as a context manager: it is up inside. `root` is its file system, also while it runs."""

    def __init__(self, root: Path, network: Namespace, processes: Processes) -> None:
        self.root = root
        self.network = network
        self._processes = processes
        self._group = cgroups.own()

    def __enter__(self) -> Self:
        nspawn = [need("systemd-nspawn"), "--quiet", f"--directory={self.root}", "--machine=pylb", "--boot"]
        shape = ["--register=no", "--keep-unit", "--console=pipe", f"--network-namespace-path={self.network.path}"]
        self._nspawn: Process = self._processes.start("machine", ["sh", "-c", _BOOT, "sh", self._group, *nspawn, *shape])
        try:
            self._init = eventually(self._systemd, within=BOOT_SECONDS, what="nspawn starts systemd")
            state = eventually(self._booted, within=BOOT_SECONDS, what=f"systemd is up\n{self._nspawn.text()}")
            assert state == "running", self.run("systemctl", "--failed", "--no-pager", check=False).stdout
        except BaseException:
            self._nspawn.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._init, STOP)
        self._nspawn.wait(60)
        cgroups.remove(self._group)

    def _systemd(self) -> int:
        """Among the children of nspawn, of which others only prepare, the one that is process 1 inside. 0: not yet."""
        return next((pid for pid in self._nspawn.children() if _pids(pid)[1:] == [1]), 0)

    def _booted(self) -> str:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state if state in ("running", "degraded") else ""

    def command(self, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> list[str]:
        """`argv` as root inside the machine."""
        settings = [f"{key}={value}" for key, value in (_ENVIRON | dict(environ or {})).items()]
        enter = [
            "nsenter",
            f"--target={self._init}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
            "--root",
            "--wd",
        ]
        return [*enter, "env", "-i", *settings, *argv]

    def run(
        self, *argv: str, check: bool = True, environ: Mapping[str, str] | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(argv, environ), capture_output=True, text=True, timeout=timeout, check=False)
        assert not check or done.returncode == 0, f"{' '.join(argv)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def sh(self, script: str, *, check: bool = True, environ: Mapping[str, str] | None = None) -> str:
        """What a shell in the machine answers."""
        return self.run("sh", "-ec", script, check=check, environ=environ, timeout=300).stdout

    def outside(self, pid: int) -> int:
        """A process of the machine, by its pid out here."""
        space = os.readlink(f"/proc/{self._init}/ns/pid")
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if _pids(int(folder.name))[-1] == pid and os.readlink(folder / "ns/pid") == space:
                    return int(folder.name)
            except (FileNotFoundError, ProcessLookupError):
                pass  # it has just ended
        raise LookupError(pid)

    def file(self, path: str) -> Path:
        """Where a file of the machine is seen from here."""
        return self.root / path.lstrip("/")


def _pids(pid: int) -> list[int]:
    """Of one process, in every namespace from ours to its own (proc(5), NSpid)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return [int(number) for number in status.partition("NSpid:")[2].partition("\n")[0].split()]
