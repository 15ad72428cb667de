"""`pylb cluster`: who shares this table, what differs, and what an operator may say about it."""

from collections.abc import Mapping
from typing import Any

from pylb.control.registry import Registry
from pylb.control.sharing import ClusterView, Sharing
from pylb.core.errors import Code, Refused
from pylb.web.control_socket import Verb


def cluster_verbs(registry: Registry) -> dict[str, Verb]:
    def sharing() -> Sharing:
        if registry.sharing is None:
            raise Refused(Code.NOT_FOUND, "this pylb shares its table with nobody", "cluster.etcd: docs/high-availability.md")
        return registry.sharing

    async def status(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"cluster": cluster_json(sharing().view())}

    async def diff(_request: Mapping[str, Any]) -> dict[str, Any]:
        return {"rows": await sharing().differences()}

    async def resync(_request: Mapping[str, Any]) -> dict[str, Any]:
        sharing().resync()
        return {"lines": ["everything is listed and compared again; `pylb cluster diff` shows what still differs"]}

    async def forget(request: Mapping[str, Any]) -> dict[str, Any]:
        name = request.get("balancer")
        if not isinstance(name, str) or not name:
            raise Refused(Code.INVALID, "balancer: text is needed")
        sharing().forget(name)
        return {"lines": [f"forgotten: {name}, and what only it hears; if it comes back, it starts from what the others have"]}

    async def accept(_request: Mapping[str, Any]) -> dict[str, Any]:
        found = sharing().accept()
        return {"lines": [f"released: {name}" for name in found] or ["no release was held back"]}

    return {
        "cluster": status,
        "cluster diff": diff,
        "cluster resync": resync,
        "cluster forget": forget,
        "cluster accept": accept,
    }


def cluster_json(view: ClusterView) -> dict[str, Any]:
    return {
        "name": view.name,
        "connected": not view.trouble,
        "trouble": view.trouble,
        "trouble_for": round(view.trouble_for, 1),
        "endpoint": view.endpoint,
        "heard_here": view.heard_here,
        "heard_elsewhere": view.heard_elsewhere,
        "unwritten": view.unwritten,
        "held": list(view.held),
        "unserved": list(view.unserved),
        "members": [
            {
                "name": member.name,
                "present": member.present,
                "here": member.here,
                "writes": member.count,
                "hears": member.entries,
                "behind": member.behind,
                "needs": list(member.needs),
            }
            for member in view.members
        ],
    }
