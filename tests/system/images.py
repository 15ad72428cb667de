"""Debian in a folder, images built from the Dockerfile without an engine, and a container as an engine would start it."""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.netns import Namespace
from tests.support.peers import need
from tests.support.processes import ROOT, Process, Processes

SUITE = "bookworm"
CERTIFICATES = "/etc/ssl/certs"  # the machine's: there may be one more between it and the package registries
# What a container has of the machine: /proc of its own, /dev, an empty /tmp, its volumes; the rest is read-only. Its process
# has no capability and cannot get one (no_new_privs).
_ENTER = """
set -e
root=$1 user=$2 volume=$3; shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
[ -z "$volume" ] || mount --bind "$volume" "$root/var/lib/pylb"
mount -o remount,ro,bind "$root"
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --bounding-set=-all --inh-caps=-all \
  --no-new-privs -- env -i "$@"
"""


def debootstrap(folder: Path, packages: Iterable[str]) -> Path:
    """A minimal Debian with these packages. Takes half a minute."""
    root = folder / "debian"
    _run(need("debootstrap"), "--variant=minbase", f"--include={','.join(packages)}", SUITE, str(root))
    return root


class Image(NamedTuple):
    root: Path  # its file system, mounted
    config: Mapping[str, Any]  # as the Docker format has it: User, Env, Entrypoint, Cmd, Healthcheck, Volumes

    @property
    def environ(self) -> list[str]:
        found: list[str] = self.config["Env"]
        return found

    @property
    def command(self) -> list[str]:
        return [*self.config["Entrypoint"], *(self.config.get("Cmd") or ())]

    @property
    def health(self) -> list[str]:
        """The command of HEALTHCHECK, without the word CMD."""
        found: list[str] = self.config["Healthcheck"]["Test"]
        assert found[0] == "CMD"
        return found[1:]


class Builder:
    """buildah with a store of its own below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._buildah = (need("buildah"), "--root", str(folder / "storage"), "--runroot", str(folder / "run"))
        self._environ = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
        self._pip = folder / "pip.conf"
        self._pip.write_text(f"[global]\ncert = {CERTIFICATES}/ca-certificates.crt\n")
        self._containers: list[str] = []

    def base(self, name: str, root: Path) -> None:
        """An image of one layer, from a folder."""
        container = self._do("from", "scratch")
        self._do("add", "--quiet", container, str(root), "/")
        self._do("commit", "--quiet", container, name)
        self._do("rm", container)

    def build(self, target: str, base: str) -> Image:
        arguments = [f"--build-arg={name}={base}" for name in ("PYLB_BASE", "PHONEHOME_BASE")]
        volumes = [f"--volume={CERTIFICATES}:{CERTIFICATES}:ro", f"--volume={self._pip}:/etc/pip.conf:ro"]
        name = f"localhost/{target}"
        # In the Docker format: an OCI image has no HEALTHCHECK.
        self._do("build", "--quiet", "--format=docker", f"--target={target}", f"--tag={name}", *arguments, *volumes, str(ROOT))
        container = self._do("from", "--pull-never", name)
        self._containers.append(container)
        config = json.loads(self._do("inspect", "--type=image", name))["Docker"]["config"]
        return Image(Path(self._do("mount", container)), config)

    def remove(self) -> None:
        for container in self._containers:
            self._do("umount", container)
            self._do("rm", container)
        self._do("rmi", "--all", "--force")

    def _do(self, *words: str) -> str:
        return _run(*self._buildah, *words, env=self._environ).strip()


def start(
    processes: Processes,
    name: str,
    image: Image,
    at: Namespace,
    *,
    command: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    volume: Path | None = None,
) -> Process:
    """A container of the image; its process 1 is the only child of what is returned. `volume` is mounted at /var/lib/pylb."""
    for program in ("unshare", "chroot", "setpriv"):
        need(program)
    user = image.config["User"].partition(":")[0]
    settings = [*image.environ, *(f"{key}={value}" for key, value in (environ or {}).items())]
    inside = [*settings, *(command or image.command)]
    argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "sh", "-c", _ENTER, "sh"]
    return processes.start(name, [*argv, str(image.root), user, str(volume or ""), *inside], at=at)


def beside(container: Process, image: Image, command: Sequence[str], environ: Iterable[str] = ()) -> list[str]:
    """argv that runs `command` in a running container, as `docker exec` does."""
    [inner] = container.children()
    enter = ["nsenter", "--target", str(inner), "--mount", "--pid", "--net", "--root"]
    user = image.config["User"].partition(":")[0]
    drop = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--"]
    return [*enter, *drop, "env", "-i", "-C", "/", *image.environ, *environ, *command]


def files(root: Path) -> list[str]:
    """Every path of an image, from its root."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def _run(*argv: str, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
