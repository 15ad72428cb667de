"""What the control socket offers: the changes that only this machine may make, and the views of the CLI."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pylb.config import ConfigErrors
from pylb.control.admission import Imported
from pylb.control.registry import Registry
from pylb.core.address import Address
from pylb.core.errors import Code, Refused
from pylb.core.legacy import parse_legacy
from pylb.core.table import Diff
from pylb.routes import rows
from pylb.web.socket import Verb

MOST_IMPORTED = 10_000


def verbs(registry: Registry, reload: Callable[[], Awaitable[Diff]]) -> dict[str, Verb]:
    async def ping(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"generation": registry.table.generation}

    async def routes(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"routes": rows(registry)}

    async def rejected(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"rejected": [_rejection(one) for one in registry.rejected()]}

    async def release(request: Mapping[str, Any]) -> dict[str, Any]:
        return {"released": await registry.release_any(_text(request, "what"))}

    async def import_(request: Mapping[str, Any]) -> dict[str, Any]:
        items = request.get("items")
        if not isinstance(items, list) or len(items) > MOST_IMPORTED:
            raise Refused(Code.INVALID, f"items: a list of at most {MOST_IMPORTED} legacy bodies is needed")
        return {"lines": await registry.import_legacy([_imported(item) for item in items], _text(request, "token"))}

    async def reload_(_request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            change = await reload()
        except ConfigErrors as errors:
            raise Refused(Code.INVALID, str(errors), "nothing was changed") from None
        return {"opened": len(change.opened), "closed": len(change.closed), "changed": len(change.changed)}

    return {
        "ping": ping,
        "routes": routes,
        "rejected": rejected,
        "release": release,
        "import": import_,
        "reload": reload_,
    }


def _rejection(one: Any) -> dict[str, Any]:
    return {"time": one.at, "address": one.ip, "token": one.token, "what": one.what, "error": one.code, "detail": one.detail}


def _text(request: Mapping[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise Refused(Code.INVALID, f"{key}: text is needed")
    return value


def _imported(item: Any) -> Imported:
    """One body of the legacy route, which names its address. Raises Refused."""
    call = parse_legacy(json.dumps(item).encode())
    if call.address is None:
        raise Refused(Code.INVALID, f"port {call.port}: dst-ip is no address")
    return Imported(call.port, Address(call.address, call.target_port), call.name, call.send_proxy)
