"""Where others reach this pylb, apart from the forwarded ports: webhook, admin and metrics ports, and two Unix sockets."""

import errno
import logging
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack

from pylb.app.descriptors import Budget
from pylb.app.errors import CannotStart
from pylb.app.forwarding import Forwarding
from pylb.app.reporting import Reporting
from pylb.app.settings import Settings
from pylb.config import Config
from pylb.config.models import WebhookListener
from pylb.control.registry import Registry
from pylb.core.address import Listen
from pylb.haproxy.commands import Commands
from pylb.haproxy.exporter import Exporter
from pylb.haproxy.runtime_socket import RuntimeSocket
from pylb.upgrade.sockets import ListeningSockets
from pylb.web import openapi
from pylb.web.admin import Admin, stats_routes
from pylb.web.control_socket import ControlSocket, Verb
from pylb.web.listener import HttpLimits, bind
from pylb.web.server import HttpServer
from pylb.web.types import Handler
from pylb.web.webhook import Webhook

log = logging.getLogger("pylb")


class Endpoints:
    """Bound first, so that a taken port ends the start before anything is changed; opened once calls can be answered."""

    def __init__(self, settings: Settings, listeners: ListeningSockets) -> None:
        self._settings = settings
        self._listeners = listeners
        self._sockets: list[socket.socket] = []  # the webhooks' in their order, the admin's, the metrics'
        self._webhooks: list[Webhook] = []
        self._admin: Admin | None = None
        self.servers: list[HttpServer] = []
        self.local: list[ControlSocket | RuntimeSocket] = []

    def bind(self, stack: AsyncExitStack) -> None:
        """Only these end the start if they cannot be bound. Raises CannotStart."""
        openapi.rendered()  # once, and now: it loads modules, and no port serves yet
        config = self._settings.config
        places = [*(("webhook", one.listen) for one in config.webhook), ("admin", config.admin.listen)]
        if config.metrics.listen is not None:
            places.append(("metrics", config.metrics.listen))
        for what, listen in places:
            try:
                sock = self._listeners.adopt(listen) or self._bind(listen)
            except OSError as error:
                raise CannotStart(
                    f"the {what} address {listen} cannot be bound: {error.strerror}. "
                    f"{remedy(error, listen, what)}set {what}.listen in the config (pylb run -c FILE)."
                ) from None
            stack.callback(sock.close)
            self._sockets.append(sock)

    def _bind(self, listen: Listen) -> socket.socket:
        """Raises OSError."""
        sock = bind(listen)
        self._listeners.note(listen, sock)
        return sock

    async def open(
        self,
        stack: AsyncExitStack,
        *,
        room: Budget,
        registry: Registry,
        forwarding: Forwarding,
        reporting: Reporting,
        offered: Mapping[str, Verb],
    ) -> None:
        """`offered`: on the control socket, and to the commands of the other one. Raises CannotStart."""
        config = self._settings.config
        self._admin = admin = self._make_admin(registry, forwarding, reporting)
        self._webhooks = [self._webhook(registry, one) for one in config.webhook]
        first = len(config.webhook)  # the place of the admin's socket
        for sock, one, webhook, most in zip(self._sockets[:first], config.webhook, self._webhooks, room.webhook, strict=True):
            certificate = await self._settings.load_certificate(one)
            limits = _limits(one, most)
            server = HttpServer(sock, webhook.handler(), limits=limits, tls=certificate, long_body=webhook.long_body)
            self.servers.append(server)
        pages = HttpLimits(connections=room.pages)
        handlers: list[Handler] = [admin.handler()]
        if config.metrics.listen is not None:
            handlers.append(admin.metrics_handler(config.metrics.allow))
        for sock, handler in zip(self._sockets[first:], handlers, strict=True):
            self.servers.append(HttpServer(sock, handler, limits=pages))
        control = ControlSocket(config.state_dir / "control.sock", offered)
        runtime = RuntimeSocket(
            config.runtime_socket or config.state_dir / "haproxy.sock",
            Commands(reporting.haproxy, offered, forwarding.sessions),
        )
        await self._open_local(stack, control, "pylb routes, release and import")
        await self._open_local(stack, runtime, "hatop and what else speaks to HAProxy")
        for server in self.servers:
            server.start()
            stack.push_async_callback(server.stop)

    def follow(self, config: Config) -> None:
        """Take over what a reload has changed."""
        for webhook in self._webhooks:
            webhook.trusted_proxies = config.trusted_proxies
        if self._admin is not None:
            self._admin.set_hosts(config.own_names)

    async def _open_local(self, stack: AsyncExitStack, local: ControlSocket | RuntimeSocket, without: str) -> None:
        try:
            await local.start()
        except OSError as error:
            log.error("a local socket cannot be made (%s will not work): %s", without, error)
        else:
            stack.push_async_callback(local.stop)
            self.local.append(local)

    def _make_admin(self, registry: Registry, forwarding: Forwarding, reporting: Reporting) -> Admin:
        config = self._settings.config
        return Admin(
            registry,
            reporting.counters,
            reporting.metrics.scrape,
            config.own_names,
            reporting.page.routes() | stats_routes(reporting.haproxy.csv),
            live=forwarding,
            haproxy=Exporter(reporting.haproxy).scrape,
            compat=config.metrics.compat == "haproxy",
            also=reporting.troubles,
            host=reporting.host,
        )

    def _webhook(self, registry: Registry, listener: WebhookListener) -> Webhook:
        settings = self._settings
        return Webhook(
            registry.calls,
            lambda: settings.keyring,
            trusted_proxies=settings.config.trusted_proxies,
            legacy=listener.legacy,
            limits=listener.limits.limits(),
            log_beats=settings.config.log.calls == "all",
        )


def _limits(listener: WebhookListener, most: int) -> HttpLimits:
    """`most`: the connections for which there are descriptors."""
    if most < (wanted := listener.limits.connections):
        text = "webhook %s: at most %d connections instead of %d, for want of open files (LimitNOFILE=)"
        log.warning(text, listener.listen, most, wanted)
    return HttpLimits(connections=most, per_address=listener.limits.per_address)


def remedy(error: OSError, listen: Listen, what: str) -> str:
    """The way out of a failed bind, up to "or set …"."""
    match error.errno:
        case errno.EADDRINUSE:
            return f"Is another pylb or HAProxy running? Free the port (ss -ltnp 'sport = :{listen.port}' says who has it), or "
        case errno.EADDRNOTAVAIL:
            return "This machine has no such address (ip address): "
        case errno.EACCES:
            return "Ports below 1024 need CAP_NET_BIND_SERVICE or sysctl net.ipv4.ip_unprivileged_port_start: allow it, or "
    return f"The {what} cannot be served without it: "
