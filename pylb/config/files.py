"""What the config names on disk: the tokens' secrets, certificates and keys."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pylb.config import models as m
from pylb.config.parts import Finding, Parts
from pylb.config.yamlplace import Loc
from pylb.core.auth import STRONG

_MAX_SECRET = 4096  # bytes


def secrets(parts: Parts, *, read_files: bool) -> tuple[dict[str, str], list[Finding]]:
    """The secret of each token by its name, and what is wrong with them. Without `read_files` only inline ones."""
    found: dict[str, str] = {}
    owners: dict[str, tuple[str, Loc | None]] = {}
    out: list[Finding] = []
    for part in parts.tokens:
        entry = part.entry
        if part.broken & {"secret", "secret_file"} or (entry.secret is None) == (entry.secret_file is None):
            continue
        at, secret = part.at("secret"), entry.secret
        if entry.secret_file is not None:
            at = part.at("secret_file")
            secret, problems = _read_secret(at, entry.secret_file) if read_files else (None, [])
            out += problems
        if secret is None:
            continue
        found[entry.name] = secret
        if "allow_weak" not in part.broken:
            out += _strength(at, entry, secret)
        name, first = owners.setdefault(secret, (entry.name, at))
        if first != at:
            message = f"tokens {name!r} and {entry.name!r} have the same secret"
            out.append(Finding(at, message, f"the first is at {parts.where(first)}; a call could not be told apart"))
    return found, out


def _strength(at: Loc | None, entry: m.TokenEntry, secret: str) -> Iterator[Finding]:
    if len(secret) >= STRONG:
        return
    message = f"the secret of token {entry.name!r} has {len(secret)} characters, {STRONG} are needed"
    if entry.allow_weak:
        yield Finding(at, f"{message}: it works on the legacy route only", "make one with: pylb token", "warning")
    else:
        yield Finding(at, message, "make one with: pylb token; or allow_weak: true, for the legacy route only")


def _read_secret(at: Loc | None, path: Path) -> tuple[str | None, list[Finding]]:
    """Never blocks: a FIFO or device in its place is refused (O_NONBLOCK, then fstat of what was opened)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode):
                return None, [Finding(at, f"{path} is not a regular file")]
            raw = os.read(fd, _MAX_SECRET + 1)
        finally:
            os.close(fd)
    except OSError as error:
        return None, [Finding(at, f"{path} cannot be read: {error.strerror}", "it must be readable by pylb's user")]
    if len(raw) > _MAX_SECRET:
        return None, [Finding(at, f"{path} is larger than {_MAX_SECRET} bytes")]
    out = []
    if mode & stat.S_IROTH:
        out.append(Finding(at, f"everybody on this machine can read {path}", f"chmod o-r {path}", "warning"))
    secret = raw.decode("ascii", "replace").rstrip("\r\n")
    if not secret or not secret.isascii() or not secret.isprintable() or secret != secret.strip():
        return None, [*out, Finding(at, f"{path} is empty or not one line of printable ASCII")]
    return secret, out


def unreadable(parts: Parts) -> Iterator[Finding]:
    """Certificates and keys that pylb could not open at its start."""
    for part in parts.webhook:
        if (tls := part.entry.tls) is None:
            continue
        for key, path in (("certificate", tls.certificate), ("key", tls.key)):
            try:
                if path is not None:
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            except OSError as error:
                yield Finding(part.at("tls", key), f"{path} cannot be read: {error.strerror}")
