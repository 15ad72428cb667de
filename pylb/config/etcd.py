"""Mistakes in `cluster.etcd`, and the files that it names."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pylb.config.cluster import Etcd
from pylb.config.entries import Finding
from pylb.config.value_type import show
from pylb.config.yamlplace import Loc
from pylb.control.storage.files import read_regular
from pylb.core.address import is_loopback, parse_ip

_AT: Loc = ("cluster", "etcd")
_MOST_PASSWORD, _MOST_PEM = 1024, 1 << 20  # bytes


def etcd_findings(etcd: Etcd) -> Iterator[Finding]:
    if not etcd.endpoints:
        yield Finding((*_AT, "endpoints"), "etcd has no endpoints", 'endpoints: ["https://10.0.0.5:2379"]')
    for index, url in enumerate(etcd.endpoints):
        at = (*_AT, "endpoints", index)
        if url in etcd.endpoints[:index]:
            yield Finding(at, f"the endpoint {show(url)} is there twice", "remove one of them")
        elif urlsplit(url).scheme == "http" and not _on_loopback(url):
            if not etcd.insecure:
                hint = "https://, as deploy/etcd does, or insecure: true"
                yield Finding(at, f"plain HTTP to {show(url)}: whoever is on the path can open any port", hint)
            else:
                yield Finding(at, f"plain HTTP to {show(url)}: whoever is on the path can open any port", "", "warning")
    if etcd.insecure and not any(urlsplit(url).scheme == "http" and not _on_loopback(url) for url in etcd.endpoints):
        yield Finding((*_AT, "insecure"), "insecure has no effect: no endpoint is plain http:// beyond loopback", "remove it")
    tls = [key for key in ("ca", "certificate", "key") if getattr(etcd, key) is not None]
    if tls and etcd.endpoints and not any(url.startswith("https:") for url in etcd.endpoints):
        yield Finding((*_AT, tls[0]), f"{tls[0]} has no effect: no endpoint is https://", "endpoints: [https://…]")
    for one, other in (("certificate", "key"), ("username", "password_file")):
        for said, missing in ((one, other), (other, one)):
            if getattr(etcd, said) is not None and getattr(etcd, missing) is None:
                yield Finding((*_AT, said), f"{said} without {missing} has no effect", f"set cluster.etcd.{missing} too")


def unreadable_of_etcd(etcd: Etcd) -> Iterator[Finding]:
    """The files that pylb could not read at its start."""
    for key in ("ca", "certificate", "key"):
        path: Path | None = getattr(etcd, key)
        try:
            if path is not None:
                read_regular(path, _MOST_PEM)
        except OSError as error:
            yield Finding((*_AT, key), f"{path} cannot be read: {error.strerror}", "it must be readable by pylb's user")
        except ValueError as error:
            yield Finding((*_AT, key), f"{path} is {error}", "a file in PEM form")
    if etcd.password_file is not None:
        try:
            read_password(etcd.password_file)
        except OSError as error:
            hint = "it must be readable by pylb's user"
            yield Finding((*_AT, "password_file"), f"{etcd.password_file} cannot be read: {error.strerror}", hint)
        except ValueError as error:
            yield Finding((*_AT, "password_file"), f"{etcd.password_file} is {error}", "the password, on one line")


def read_password(path: Path) -> str:
    """Raises OSError or ValueError."""
    text = read_regular(path, _MOST_PASSWORD).decode("utf-8", "replace").strip("\r\n")
    if not text or not text.isprintable():
        raise ValueError("empty, or more than one line of printable text")
    return text


def _on_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return is_loopback(parse_ip(host))
    except ValueError:
        return host == "localhost"
