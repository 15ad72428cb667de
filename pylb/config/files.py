"""The files that the config names: the tokens' secrets, certificates and keys."""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from pylb.config import models as m
from pylb.config.entries import Finding, Parts
from pylb.config.etcd import findings_in_files
from pylb.config.root import Secrets
from pylb.config.yamlplace import Loc
from pylb.control.storage.files import read_regular
from pylb.core.auth import STRONG

_MAX_SECRETS = 4096  # bytes of a file


def secrets(parts: Parts, *, read_files: bool) -> tuple[Secrets, list[Finding]]:
    """The secrets of each token, and the problems with them. Without `read_files` only inline secrets."""
    found: Secrets = {}
    owners: dict[str, tuple[str, Loc | None]] = {}
    out: list[Finding] = []
    for part in parts.tokens:
        entry = part.entry
        if part.broken & {"secret", "secret_file"} or (entry.secret is None) == (entry.secret_file is None):
            continue
        at = part.at("secret")
        several: tuple[str, ...] = (entry.secret,) if entry.secret is not None else ()
        if entry.secret_file is not None:
            at = part.at("secret_file")
            several, problems = _read_secrets(at, entry.secret_file) if read_files else ((), [])
            out += problems
        if not several:
            continue
        found[entry.name] = several
        for secret in several:
            if "allow_weak" not in part.broken:
                out += _strength(at, entry, secret)
            name, first = owners.setdefault(secret, (entry.name, at))
            if first != at:
                message = f"tokens {name!r} and {entry.name!r} have the same secret"
                out.append(Finding(at, message, f"the first is at {parts.where(first)}; calls with it could belong to either"))
    return found, out


def read_again(tokens: Iterable[m.TokenEntry], before: Secrets) -> tuple[Secrets, list[str]]:
    """The current content of the secret files. If a file cannot be used, its token keeps its secrets and the text says so."""
    after, complaints = dict(before), list[str]()
    for entry in tokens:
        if entry.secret_file is None:
            continue
        several, findings = _read_secrets(None, entry.secret_file)
        findings = [found for found in findings if found.severity == "error"]
        findings += [found for secret in several for found in _strength(None, entry, secret) if found.severity == "error"]
        taken = {secret for name, held in after.items() if name != entry.name for secret in held}
        if not findings and not taken.isdisjoint(several):
            findings = [Finding(None, f"token {entry.name!r} has the same secret as another token")]
        if findings:
            complaints += [f"{found.message}: the secret of token {entry.name!r} stays as it was" for found in findings]
        else:
            after[entry.name] = several
    return after, complaints


def _strength(at: Loc | None, entry: m.TokenEntry, secret: str) -> Iterator[Finding]:
    if len(secret) >= STRONG:
        return
    message = f"the secret of token {entry.name!r} has {len(secret)} characters, {STRONG} are needed"
    if entry.allow_weak:
        yield Finding(at, f"{message}: it works on the legacy route only", "make one with: pylb token", "warning")
    else:
        yield Finding(at, message, "make one with: pylb token; or allow_weak: true, for the legacy route only")


def _read_secrets(at: Loc | None, path: Path) -> tuple[tuple[str, ...], list[Finding]]:
    """One secret per line; none if anything is wrong."""
    try:
        raw = read_regular(path, _MAX_SECRETS)
        mode = path.stat().st_mode
    except OSError as error:
        return (), [Finding(at, f"{path} cannot be read: {error.strerror}", "it must be readable by pylb's user")]
    except ValueError as error:
        return (), [Finding(at, f"{path} is {error}")]
    out = []
    if mode & stat.S_IROTH:
        out.append(Finding(at, f"every user of this machine can read {path}", f"chmod o-r {path}", "warning"))
    lines = tuple(dict.fromkeys(filter(None, raw.decode("ascii", "replace").replace("\r\n", "\n").split("\n"))))
    if not lines or not all(line.isascii() and line.isprintable() and line == line.strip() for line in lines):
        hint = "one secret per line; several while one replaces another"
        return (), [*out, Finding(at, f"{path} is empty, or a line of it is not printable ASCII", hint)]
    return lines, out


def unreadable(parts: Parts) -> Iterator[Finding]:
    """Certificates, keys and log files that pylb could not open at its start."""
    for part in parts.webhook:
        if (tls := part.entry.tls) is None:
            continue
        for key, path in (("certificate", tls.certificate), ("key", tls.key)):
            try:
                if path is not None:
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as error:
                yield Finding(part.at("tls", key), f"{path} cannot be read: {error.strerror}")
    if parts.cluster is not None and parts.cluster.etcd is not None:
        yield from findings_in_files(parts.cluster.etcd)
    if parts.log is not None and parts.log.target.kind == "file":
        place = Path(parts.log.target.place)
        if place.is_dir() or not place.parent.is_dir():
            what = f"{place} is a directory" if place.is_dir() else f"there is no directory {place.parent}"
            yield Finding(("log", "target"), what, "a file in a directory where pylb's user may write")
