"""A webhook over real HTTP, in front of a real registry and a real engine, and what callers send it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from pylb.core.auth import ANYWHERE
from pylb.web.types import Handler
from pylb.web.webhook import Webhook
from tests.web.loopback import Reply, ask, serving
from tests.web.running import SECRET, Control, running

NATIVE = {"Authorization": f"Bearer {SECRET}"}
LEGACY = {"X-Funkypenguin-Token": SECRET}


@dataclass
class Face:
    control: Control
    webhook: Webhook
    port: int

    async def put(self, path: str, body: object, headers: dict[str, str] = NATIVE) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await ask(self.port, "PUT", f"/v1/registrations/{path}", headers=headers, body=data)

    async def delete(self, path: str, headers: dict[str, str] = NATIVE) -> Reply:
        return await ask(self.port, "DELETE", f"/v1/registrations/{path}", headers=headers)

    async def hook(self, body: object, headers: dict[str, str] = LEGACY) -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await ask(self.port, "POST", "/hooks/update-haproxy", headers=headers, body=data)


def body_for(port: int) -> dict[str, object]:
    return {"frontends": [{"port": port, "target_port": 30000}]}


def legacy_body(port: int, target: int, action: str = "add") -> dict[str, str]:
    return {
        "dst-ip": "",
        "frontend-port": str(port),
        "backend-port": str(target),
        "action": action,
        "name": "mosquitto",
        "send-proxy": "",
    }


@asynccontextmanager
async def facing(state_dir: Path, *, legacy: bool = True, legacy_from: str = "", **options: Any) -> AsyncIterator[Face]:
    networks = (ip_network(legacy_from),) if legacy_from else ANYWHERE if legacy else ()
    async with running(state_dir) as control:
        webhook = Webhook(control.registry.calls, lambda: control.keyring, legacy=networks, **options)
        handler: Handler = webhook.handler()
        async with serving(handler, long_body=webhook.long_body) as server:
            yield Face(control, webhook, server.port)
