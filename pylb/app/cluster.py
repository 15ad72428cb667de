"""Several balancers with one table, if the config asks for it: what is needed for it is loaded here, and nowhere else."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pylb.app.background import Background
from pylb.app.errors import CannotStart
from pylb.config import Config
from pylb.config.cluster import Etcd
from pylb.config.etcd import findings_in_files, read_password
from pylb.config.pem import MOST_BYTES
from pylb.config.values import NAME
from pylb.control.storage.files import read_regular
from pylb.control.tasks import Part
from pylb.host.files import Watch
from pylb.web.tls import load_pair

if TYPE_CHECKING:
    from pylb.cluster.etcd import Credentials
    from pylb.cluster.examination import Answer
    from pylb.cluster.shared import Shared

Report = Callable[[str, str, bool], None]  # kind, text, alarm


class Cluster:
    """`shared`, with the files that it needs for etcd: read again when they change."""

    def __init__(self, shared: "Shared", etcd: Etcd, wrong: str, report: Report) -> None:
        self.shared = shared
        self._etcd = etcd
        self._complaint = wrong
        self._report = report

    def begin(self, background: Background) -> None:
        background.forever(Part.CLUSTER, self.shared.run)
        if any(self._files()):
            background.forever(Part.CERTIFICATES, Watch(self._files, self._read).run)

    def _files(self) -> Iterator[Path]:
        several = (self._etcd.ca, self._etcd.certificate, self._etcd.key, self._etcd.password_file)
        return (path for path in several if path is not None)

    async def _read(self) -> None:
        """What cannot be used is reported, and what is in use stays: a certificate and its key are rarely replaced at once."""
        found = await asyncio.to_thread(read_credentials, self._etcd)
        if not found.wrong:
            self.shared.use(found)
        elif found.wrong != self._complaint:
            self._report("cluster", f"{found.wrong}; what was read before stays in use", True)
        self._complaint = found.wrong


async def make_cluster(config: Config, report: Report) -> Cluster | None:
    """None without `cluster.etcd`. Raises CannotStart."""
    etcd = config.cluster.etcd
    if etcd is None:
        return None
    from pylb.cluster.etcd import Etcd as Client  # noqa: PLC0415 - whoever has one balancer does not pay for several
    from pylb.cluster.etcd import Waits  # noqa: PLC0415
    from pylb.cluster.shared import ClusterSettings, Shared  # noqa: PLC0415

    credentials = await asyncio.to_thread(read_credentials, etcd)
    waits = Waits(call=etcd.timeout)
    settings = ClusterSettings(balancer_name(config), etcd.prefix, config.state_dir, etcd.timeout)
    shared = Shared(settings, lambda known: Client(etcd.endpoints, known, waits=waits), report, credentials=credentials)
    return Cluster(shared, etcd, credentials.wrong, report)


async def examine(config: Config) -> "list[Answer]":
    """What etcd answers to `pylb doctor`; nothing without `cluster.etcd`. Raises CannotStart."""
    etcd = config.cluster.etcd
    if etcd is None:
        return []
    from pylb.cluster.etcd import Waits  # noqa: PLC0415
    from pylb.cluster.examination import examine as answers  # noqa: PLC0415

    credentials = await asyncio.to_thread(read_credentials, etcd)
    waits = Waits(call=etcd.timeout, silence=etcd.timeout)
    return [one async for one in answers(balancer_name(config), etcd.endpoints, etcd.prefix, credentials, waits)]


def read_credentials(etcd: Etcd) -> "Credentials":
    """Reads files, so call it in a thread. What is wrong with one is part of the answer: pylb serves what it knows then."""
    from pylb.cluster.etcd import Credentials, Login  # noqa: PLC0415

    for finding in findings_in_files(etcd):
        if finding.severity == "error":
            return Credentials(wrong=f"{finding.message} ({finding.hint})")
    try:
        login = None
        if etcd.username is not None and etcd.password_file is not None:
            login = Login(etcd.username, read_password(etcd.password_file))
        return Credentials(login, _tls(etcd))
    except (OSError, ValueError) as error:  # OpenSSL is stricter, or a file was replaced at this moment
        return Credentials(wrong=f"the files of cluster.etcd cannot be used: {error}")


def _tls(etcd: Etcd) -> ssl.SSLContext | None:
    """Reads files, so call it in a thread. Raises OSError, ValueError."""
    if not any(url.startswith("https:") for url in etcd.endpoints):
        return None
    context = ssl.create_default_context(cadata=None if etcd.ca is None else read_regular(etcd.ca, MOST_BYTES).decode("ascii"))
    if etcd.certificate is not None and etcd.key is not None:
        load_pair(context, etcd.certificate, etcd.key)
    return context


def balancer_name(config: Config) -> str:
    """Raises CannotStart."""
    if config.cluster.name is not None:
        return config.cluster.name
    host = socket.gethostname()
    if NAME.fullmatch(host) is None:
        raise CannotStart(f"the host name {host!r} cannot be the name of a balancer: set cluster.name")
    return host
