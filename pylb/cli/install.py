"""`pylb install-service`: pylb as a systemd service, in steps that can be read first and repeated safely.

`plan` is pure: what this host offers in, a tuple of steps out. `install_service` prints each step and does it, or with
`print_only` shows the steps, the unit and the starter config. What exists and belongs to the administrator (config,
token) is never overwritten; what belongs to pylb (unit, sysusers entry) is brought up to date. Each installation has
its own directory in /opt/pylb/versions, and the link /opt/pylb/bin leads to the one in use. So the files of a running pylb are
never replaced, and going back takes one step. `pylb uninstall-service` is uninstall.py.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO
from urllib.parse import unquote, urlsplit

from pylb import DISTRIBUTION, __version__
from pylb.cli.client import FAILED, report, say
from pylb.cli.installed import (
    CommandLink,
    Link,
    OldVersions,
    command_link,
    is_ours,
    manual_link,
    offer,
    point,
    prune,
    superfluous,
    version_in_use,
)
from pylb.host.machine import deployed

USER = "pylb"
# What ProtectHome=yes of the unit hides: an interpreter in there would not be found by the service.
HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"))
PYTHONS = ((3, 11), (3, 14))  # from, and before: as `requires-python`

Run = Callable[[Sequence[str]], None]


class InstallError(Exception):
    """What went wrong; `remedy` says what to do about it."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Directory:
    path: Path
    mode: int
    group: str


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    text: str
    mode: int
    group: str
    keep: bool  # an existing file is the administrator's: its text stays, its mode and group are set
    secret: bool = False  # the text is never shown


@dataclass(frozen=True, slots=True)
class Command:
    argv: tuple[str, ...]


Action = Directory | File | Command | Link | CommandLink | OldVersions


class Step(NamedTuple):
    title: str
    action: Action
    remedy: str


class Host(NamedTuple):
    """What the plan needs to know of this machine; `host()` finds it out."""

    interpreter: Path  # a Python outside the home directories, with venv
    requirement: str  # pip's argument: a directory, a URL or NAME==VERSION
    lock: Path | None  # requirements.lock, where the source has one
    configured: bool  # a pylb.yaml is there already: then no starter config and no token of ours
    token: str  # for the starter config, ≥ 22 characters
    release: str  # a directory name that no earlier installation has
    before: str  # that of the version which is in use until then; "": none


def install_service(*, print_only: bool, prefix: Path = Path("/"), run: Run | None = None, as_json: bool = False) -> int:
    """Install the service, or show how. Returns the exit code: 0 done or shown, 1 not (with the reason on stderr).

    `prefix` is another directory to lay the files out in, for tests and inspection: the unit and the environment still
    expect to run at /. `run` executes one command and raises InstallError or OSError; the default shows its output.
    `as_json`: what people read goes to stderr, and the steps to stdout, as one object.
    """
    try:
        if not print_only:
            _need_root()
            if prefix == Path("/"):
                need_systemd()
            _need_no_package(prefix)
        here = host(prefix)
        steps = plan(here, prefix)
        outcomes = [""] * len(steps)
        if not print_only:
            outcomes = _install(steps, prefix, run or (execute_beside_json if as_json else execute), as_json)
        elif not as_json:
            _show(steps)
        if as_json:
            say(_as_json(here, steps, outcomes))
    except InstallError as exc:
        report(str(exc), FAILED, hint=exc.remedy)
        say(f"pylb install-service: {exc}\n  what to do: {exc.remedy}", err=True)
        return 1
    return 0


# ---------------------------------------------------------------- the plan


def plan(host: Host, prefix: Path) -> tuple[Step, ...]:
    """Every step in order. Each may be repeated; the token comes before the config that names it, the unit last."""
    etc, home = prefix / "etc/pylb", prefix / "opt/pylb"
    venv = home / "versions" / host.release
    steps = [*_user(prefix), *_config(host, etc), *_environment(host, venv)]
    unit = File(prefix / "etc/systemd/system/pylb.service", data("pylb.service"), 0o644, "root", keep=False)
    steps.append(Step("write the unit", unit, "see that the directory is writable"))
    if prefix == Path("/"):
        check = (str(venv / "bin/pylb"), "check", "-c", str(etc / "pylb.yaml"))
        steps.append(Step("check the config with it", Command(check), "correct the file at the places named above"))
    link = Link(home / "bin", f"versions/{host.release}/bin")
    steps.append(Step("make it the version that counts", link, f"{home} is of an older layout: move it away"))
    steps.append(Step("put the command on the PATH", command_link(prefix), "see that /usr/local/bin is writable"))
    steps.append(Step("put the manual page where man looks", manual_link(prefix), "see that /usr/local/share is writable"))
    if prefix == Path("/"):
        reload = ("systemctl", "daemon-reload")
        steps.append(Step("tell systemd", Command(reload), "this needs a machine that runs systemd; else use a container"))
    old = OldVersions(home / "versions", host.release, host.before)
    steps.append(Step("remove older versions", old, f"see what is in {old.folder}"))
    return tuple(steps)


def _user(prefix: Path) -> list[Step]:
    entry = File(prefix / "etc/sysusers.d/pylb.conf", data("sysusers.conf"), 0o644, "root", keep=False)
    root = () if prefix == Path("/") else (f"--root={prefix}",)
    return [
        Step("describe the user pylb", entry, "see that the directory is writable"),
        Step("create the user pylb", Command(("systemd-sysusers", *root, "pylb.conf")), "apt install systemd"),
    ]


def _config(host: Host, etc: Path) -> list[Step]:
    """The config's directory and files. The service reads them through its group and writes none of them."""
    writable = f"see that {etc} is writable"
    steps = [
        Step("make the config directory", Directory(etc, 0o750, USER), writable),
        Step("make the token directory", Directory(etc / "tokens", 0o750, USER), writable),
    ]
    if not host.configured:
        token = File(etc / "tokens/default", f"{host.token}\n", 0o640, USER, keep=True, secret=True)
        steps.append(Step("generate the token `default`", token, writable))
    config = File(etc / "pylb.yaml", data("pylb.yaml"), 0o640, USER, keep=True)
    steps.append(Step("write the starter config", config, writable))
    return steps


def _environment(host: Host, venv: Path) -> list[Step]:
    # -I: no PYTHONPATH and no user site of whoever calls sudo.
    make = (str(host.interpreter), "-I", "-m", "venv", str(venv))
    pip = (str(venv / "bin/python"), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input")
    writable = "see that /opt is writable"
    remedy = "pip says why above; without a way to PyPI set PIP_INDEX_URL or PIP_FIND_LINKS to a mirror and try again"
    if host.lock:
        needs = Step("install what pylb needs into it", Command((*pip, "--require-hashes", "-r", str(host.lock))), remedy)
        install = [needs, Step("install pylb into it", Command((*pip, "--no-deps", host.requirement)), remedy)]
    else:
        install = [Step("install pylb into it", Command((*pip, host.requirement)), remedy)]
    return [
        # By themselves, with a mode of their own: another umask would shut the service out, or let others in.
        Step("make the program's directory", Directory(venv.parent.parent, 0o755, "root"), writable),
        Step("make the directory of its versions", Directory(venv.parent, 0o755, "root"), writable),
        Step("make the virtual environment", Command(make), "apt install python3-venv"),
        *install,
    ]


def data(name: str) -> str:
    """The text of a file of deploy/systemd."""
    return deployed(f"systemd/{name}")


# ---------------------------------------------------------------- what this host offers


def host(prefix: Path) -> Host:
    """The facts about this machine. Raises InstallError when there is no usable Python or no source to install from."""
    requirement = origin(_direct_url(), __version__)
    lock = Path(requirement) / "requirements.lock"
    return Host(
        interpreter=_interpreter((Path(sys.base_prefix) / "bin" / _python_name(), Path("/usr/bin/python3"))),
        requirement=requirement,
        lock=lock if lock.is_file() else None,
        configured=(prefix / "etc/pylb/pylb.yaml").exists(),
        token=secrets.token_urlsafe(24),  # 32 characters, 192 bits
        release=f"{__version__}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}",
        before=version_in_use(prefix / "opt/pylb"),
    )


def origin(direct_url: str | None, version: str) -> str:
    """pip's argument for the pylb that runs now, from its direct_url.json (PEP 610); without one it came from an index.

    Raises InstallError when it was installed from a directory or file that is gone.
    """
    if direct_url is None:
        return f"{DISTRIBUTION}=={version}"
    record = json.loads(direct_url)
    url, vcs = str(record["url"]), record.get("vcs_info")
    if vcs:
        return f"{DISTRIBUTION} @ {vcs['vcs']}+{url}@{vcs['commit_id']}"
    parts = urlsplit(url)
    if parts.scheme != "file":
        return url
    path = Path(unquote(parts.path))
    if not path.exists():
        raise InstallError(f"pylb was installed from {path}, which is gone", "install pylb again, then repeat this")
    return str(path)


def _direct_url() -> str | None:
    try:
        return importlib.metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        root = Path(__file__).resolve().parents[2]  # run from a source tree that is not installed
        return json.dumps({"url": root.as_uri()}) if (root / "pyproject.toml").is_file() else None


def _python_name() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _interpreter(candidates: Sequence[Path], hidden: Sequence[Path] = HIDDEN) -> Path:
    """The first that the service can reach (outside `hidden`), is new enough and can make an environment with pip."""
    probe = f"import sys, venv, ensurepip; sys.exit(not {PYTHONS[0]} <= sys.version_info < {PYTHONS[1]})"
    for path in candidates:
        real = path.resolve()
        if not real.is_file() or any(real.is_relative_to(folder) for folder in hidden):
            continue
        if subprocess.run([path, "-I", "-c", probe], capture_output=True, check=False).returncode == 0:  # noqa: S603
            return path
    raise InstallError(
        "no Python 3.11 to 3.13 with the venv module outside /home and /root (the unit may not look in there)",
        "apt install python3-venv",
    )


# ---------------------------------------------------------------- doing it


def _need_root() -> None:
    if os.geteuid() != 0:
        raise InstallError("this needs root", "run it with sudo; `pylb install-service --print` only shows the steps")


def need_systemd(runs: Path = Path("/run/systemd/system")) -> None:
    """Before anything is done: is systemd this machine's process 1 (sd_booted(3))? Raises InstallError."""
    if not runs.is_dir():
        raise InstallError(
            "this machine does not run systemd",
            "use the image (deploy/README.md), or have your supervisor start `pylb run -c /etc/pylb/pylb.yaml`",
        )


def _need_no_package(prefix: Path) -> None:
    """Both would run a pylb.service, with the same config and state. The package's preinst looks for ours."""
    if (prefix / "usr/lib/pylb/bin/pylb").exists():
        raise InstallError(
            "pylb is installed as a Debian package here",
            "a newer package upgrades it; to install it this way instead: apt remove pylb (config and state stay)",
        )


def _show(steps: Sequence[Step]) -> None:
    for number, step in enumerate(steps, 1):
        say(f"{number}. {step.title}: {_describe(step.action)}")
    for step in steps:
        if isinstance(step.action, File) and not step.action.secret:
            say(f"\n# ---- {step.action.path}\n{step.action.text}", nl=False)


def _describe(action: Action) -> str:
    if isinstance(action, Command):
        return shlex.join(action.argv)
    if isinstance(action, Link | CommandLink):
        return f"{action.path} -> {action.target}"
    if isinstance(action, OldVersions):
        return f"{', '.join(superfluous(action)) or 'none'} of {action.folder}; what runs and what was in use before stays"
    return f"{action.path} ({action.mode:04o} root:{action.group})"


def _as_json(here: Host, steps: Sequence[Step], outcomes: Sequence[str]) -> str:
    done = [
        {"title": step.title, "action": _describe(step.action), "outcome": outcome}
        for step, outcome in zip(steps, outcomes, strict=True)
    ]
    return json.dumps({"version": here.release, "before": here.before, "steps": done})


def _install(steps: Sequence[Step], prefix: Path, run: Run, as_json: bool) -> list[str]:
    """Returns what there is to say about each step."""
    outcomes = []
    for number, step in enumerate(steps, 1):
        say(f"{number}/{len(steps)} {step.title}: {_describe(step.action)}", err=as_json)
        try:
            outcome = _perform(step.action, prefix, run)
        except (InstallError, OSError, KeyError) as exc:
            again = "what is done stays done and may be repeated"
            raise InstallError(f"step {number}, {step.title}: {exc}", f"{step.remedy}; then run this again ({again})") from exc
        if outcome:
            say(f"    {outcome}", err=as_json)
        outcomes.append(outcome)
    say(NEXT_STEPS, err=as_json)
    if not is_ours(link := command_link(prefix)):
        say(f"\n`pylb` above is {link.program}: {link.path} is another program's", err=True)
    return outcomes


def _perform(action: Action, prefix: Path, run: Run) -> str:
    """Returns what there is to say about it, or "" """
    if isinstance(action, Command):
        run(action.argv)
        return ""
    if isinstance(action, Link):
        return point(action)
    if isinstance(action, CommandLink):
        return offer(action)
    if isinstance(action, OldVersions):
        return prune(action)
    gid = group_id((prefix / "etc/group"), action.group) if action.group != "root" else 0
    if isinstance(action, Directory):
        action.path.mkdir(parents=True, exist_ok=True)
        os.chown(action.path, 0, gid)
        action.path.chmod(action.mode)
        return ""
    return _write(action, gid)


def group_id(group_file: Path, name: str) -> int:
    """The number of a group in an etc/group file. Not grp: that knows only the running system, not a prefix."""
    for line in group_file.read_text(encoding="utf-8").splitlines():
        fields = line.split(":")
        if len(fields) >= 3 and fields[0] == name:
            return int(fields[2])
    raise InstallError(f"no group {name} in {group_file}", "create the user first")


def _write(file: File, gid: int) -> str:
    exists = file.path.exists()
    same = exists and file.path.read_text(encoding="utf-8") == file.text
    if exists and (same or file.keep):
        os.chown(file.path, 0, gid)
        file.path.chmod(file.mode)
        return "is there and up to date" if same else "is there: kept as it is"
    file.path.parent.mkdir(parents=True, exist_ok=True)
    draft = file.path.with_name(f".{file.path.name}.new")
    draft.unlink(missing_ok=True)
    # 0600 until owner and group are right; renamed only when complete, so that no half file is ever in force.
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(file.text)
        os.fchown(stream.fileno(), 0, gid)
        os.fchmod(stream.fileno(), file.mode)
    draft.replace(file.path)
    return "replaced; changes of your own belong into `systemctl edit pylb`" if exists else ""


def execute_beside_json(argv: Sequence[str]) -> None:
    """Run a command whose output is for people: stdout is for programs. Raises InstallError."""
    execute(argv, sys.stderr)


def execute(argv: Sequence[str], out: TextIO | None = None) -> None:
    """Run a command, which shows its own output, or writes it to `out`. Raises InstallError."""
    if shutil.which(argv[0]) is None:
        raise InstallError(f"{argv[0]} is not installed", "install it")
    # The service's user must be able to read what root makes here, whatever root's umask is.
    code = subprocess.run(list(argv), check=False, umask=0o022, stdout=out).returncode  # noqa: S603  no shell, fixed words
    if code != 0:
        raise InstallError(f"`{shlex.join(argv)}` ended with {code}", "see its output")


NEXT_STEPS = """
Installed. Next (as root; every command finds /etc/pylb/pylb.yaml by itself):
  look at the config          /etc/pylb/pylb.yaml   (check: pylb check)
  start it, now and at boot   systemctl enable --now pylb
  it runs already             pylb upgrade   (closes no connection)
  a token and a join string   pylb token create NAME --ports 8443
  see it work                 pylb status;  journalctl -u pylb -f
  back to the one before      ln -sfn versions/OLD/bin /opt/pylb/bin, and pylb upgrade
  take it off the machine     pylb uninstall-service"""
