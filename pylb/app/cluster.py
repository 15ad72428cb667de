"""Several balancers with one table, if the config asks for it: what is needed for it is loaded here, and nowhere else."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from pylb.app.errors import CannotStart
from pylb.config import Config
from pylb.config.cluster import Etcd
from pylb.config.etcd import read_password
from pylb.config.values import NAME
from pylb.control.storage.files import read_regular
from pylb.web.tls import MOST_BYTES, load_pair

if TYPE_CHECKING:
    from pylb.cluster.shared import Shared


async def make_cluster(config: Config, report: Callable[[str, str, bool], None]) -> "Shared | None":
    """None without `cluster.etcd`. Raises CannotStart."""
    etcd = config.cluster.etcd
    if etcd is None:
        return None
    from pylb.cluster.etcd import Etcd as Client  # noqa: PLC0415 - whoever has one balancer does not pay for several
    from pylb.cluster.etcd import Login, Waits  # noqa: PLC0415
    from pylb.cluster.shared import ClusterSettings, Shared  # noqa: PLC0415

    try:
        tls = await asyncio.to_thread(_tls, etcd)
        password = "" if etcd.password_file is None else await asyncio.to_thread(read_password, etcd.password_file)
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise CannotStart(f"cluster.etcd: {error}") from None
    login = None if etcd.username is None else Login(etcd.username, password)
    waits = Waits(call=etcd.timeout)
    settings = ClusterSettings(_name(config), etcd.prefix, config.state_dir, etcd.timeout)
    return Shared(settings, lambda: Client(etcd.endpoints, login=login, tls=tls, waits=waits), report)


def _tls(etcd: Etcd) -> ssl.SSLContext | None:
    """Reads files, so call it in a thread. Raises OSError, ValueError."""
    if not any(url.startswith("https:") for url in etcd.endpoints):
        return None
    context = ssl.create_default_context(cadata=None if etcd.ca is None else read_regular(etcd.ca, MOST_BYTES).decode("ascii"))
    if etcd.certificate is not None and etcd.key is not None:
        load_pair(context, etcd.certificate, etcd.key)
    return context


def _name(config: Config) -> str:
    """Raises CannotStart."""
    if config.cluster.name is not None:
        return config.cluster.name
    host = socket.gethostname()
    if NAME.fullmatch(host) is None:
        raise CannotStart(f"the host name {host!r} cannot be the name of a balancer: set cluster.name")
    return host
