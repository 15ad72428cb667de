"""Mistakes in `cluster.etcd`, and the files that it names."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pylb.config.cluster import Etcd
from pylb.config.entries import Finding
from pylb.config.value_type import show
from pylb.config.yamlplace import Loc
from pylb.control.storage.files import read_regular
from pylb.core.address import is_loopback, parse_ip

_AT: Loc = ("cluster", "etcd")
_MOST_PASSWORD = 1024  # bytes
_READABLE = "it must be readable by pylb's user"


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


def findings_in_files(etcd: Etcd) -> Iterator[Finding]:
    """What is wrong with the files that pylb reads for etcd."""
    if etcd.ca is not None or etcd.certificate is not None or etcd.key is not None:
        yield from _tls_findings(etcd)
    if (path := etcd.password_file) is not None:
        yield from _readable_by_all("password_file", path)
        try:
            read_password(path)
        except OSError as error:
            yield Finding((*_AT, "password_file"), f"{path} cannot be read: {error.strerror}", _READABLE)
        except ValueError as error:
            yield Finding((*_AT, "password_file"), f"{path} is {error}", "the password, on one line")


def _tls_findings(etcd: Etcd) -> Iterator[Finding]:
    from pylb.config import pem  # noqa: PLC0415 - see there

    found: dict[str, Any] = {}
    for name, read in (("ca", pem.read_certificates), ("certificate", pem.read_certificates), ("key", pem.read_private_key)):
        path: Path | None = getattr(etcd, name)
        if path is None:
            continue
        at = (*_AT, name)
        try:
            found[name] = read(path)
        except OSError as error:
            yield Finding(at, f"{path} cannot be read: {error.strerror}", _READABLE)
        except pem.UnusableFile as error:
            yield Finding(at, f"{path} {error}", error.hint)
        except ValueError as error:
            yield Finding(at, f"{path} is {error}", "a file in PEM form")
        else:
            if name != "key" and (reason := pem.outside_its_time(found[name])):
                yield Finding(at, f"{path} {reason}", "renew it, or set this machine's clock", "warning")
    if etcd.key is not None:
        yield from _readable_by_all("key", etcd.key)
    if "certificate" in found and "key" in found and not pem.belongs_to(found["certificate"][0], found["key"]):
        hint = "the key for which the first certificate of that file was made"
        yield Finding((*_AT, "key"), f"{etcd.key} does not belong to {etcd.certificate}", hint)
    if "certificate" in found and etcd.username is not None and (name := pem.common_name(found["certificate"][0])):
        message = f"{etcd.certificate} has the CommonName {show(name)}: etcd's gateway refuses it if etcd has users"
        yield Finding(
            (*_AT, "certificate"), message, "a certificate without one, or only username and password_file", "warning"
        )


def _readable_by_all(key: str, path: Path) -> Iterator[Finding]:
    try:
        if path.stat().st_mode & stat.S_IROTH:
            yield Finding((*_AT, key), f"every user of this machine can read {path}", f"chmod o-r {path}", "warning")
    except OSError:
        return  # reported by whoever reads it


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
