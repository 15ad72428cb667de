"""The fields of a frontend, a server and a registration that all JSON lists have in common. Each list adds its own."""

from typing import Any

from pylb.control.views import FrontendView, RegistrationView, ServerView
from pylb.core.address import TCP, Listen
from pylb.core.server_set import Member


def port_json(port: int, protocol: str, last: int = 0, server_name: str = "") -> dict[str, Any]:
    """A port in a list or an answer. One of TCP has no `protocol`, only a range has a `last_port`, and only a route has a
    `server_name`: so all of them looked before there were others."""
    found: dict[str, Any] = {"port": port}
    if last:
        found["last_port"] = last
    if protocol != TCP:
        found["protocol"] = protocol
    if server_name:
        found["server_name"] = server_name
    return found


def listen_json(listen: Listen) -> dict[str, Any]:
    return port_json(listen.port, listen.protocol, listen.last, listen.server_name)


def frontend_json(view: FrontendView) -> dict[str, Any]:
    return {
        "name": view.name,
        "listen": str(view.listen),
        **listen_json(view.listen),
        "balance": str(view.frontend.policy.balance),
        "unbound": view.unbound,  # why the port could not be opened; null: it is open
    }


def server_json(view: ServerView) -> dict[str, Any]:
    return {
        "name": view.server,
        "address": str(view.address),
        "weight": view.weight,
        "rank": view.rank,
        "state": view.state,
        "proxy_protocol": str(view.send_proxy),
        "reason": view.reason,
    }


def registration_json(view: RegistrationView) -> dict[str, Any]:
    return {
        "token": view.token,
        "name": view.name,
        "instance": view.instance,
        "legacy": view.legacy,
        "state": view.state,
        "address": view.address,
    } | ({"servers": [_member_json(one) for one in view.members]} if view.members else {})


def _member_json(one: Member) -> dict[str, Any]:
    return {"instance": one.instance, "address": one.ip} | ({} if one.weight is None else {"weight": one.weight})


def tenths(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
