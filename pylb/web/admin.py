"""The read-only pages for operators and Prometheus. Changes go through the control socket."""

import asyncio
import gzip
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.exposition import gzip_accepted

from pylb import __version__
from pylb.control.event_log import Rejection
from pylb.control.health_sentence import condition, overall, said, since_down
from pylb.control.registry import Registry
from pylb.control.steps import in_turns
from pylb.control.views import FrontendView, RegistrationView, ServerView
from pylb.core.address import TCP, Network, in_networks, is_loopback, parse_ip, port_text
from pylb.core.checks import written_health
from pylb.core.errors import Code, Refused, break_cycles
from pylb.core.registration import FrontendRequest
from pylb.forward.counters import Counters
from pylb.metrics import exposition
from pylb.metrics.families import Scrape
from pylb.web.answers import json_refusal
from pylb.web.sessions import FILTERS, SessionSource, ended, living, query_of, reach_json, session_json, trace_json
from pylb.web.types import Answer, Call, Handler, NoRoute, Router, json_answer
from pylb.web.views import frontend_json, port_json, registration_json, server_json, tenths

HEALTH = "/v1/health"  # for other pylbs, whose status pages show it
ACTIVE = "/activez"
HAPROXY = "haproxy"  # the value of ?compat= in a scrape
ITEMS_PER_TURN = 50  # items of a long list in one step, ~1 ms, before the event loop runs other tasks
FRONTENDS_PER_TURN = 10  # in one step, ~2 ms with ten servers each
MOST_LISTED = 100  # sessions, unless the query asks for more
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Admin:
    """Pages that show the registry, the counters and the metrics. `hosts`: names of this machine (`advertise`).

    `haproxy`: the metrics of HAProxy's exporter, which follow pylb's own if the scrape asks for them, or always (`compat`).
    `page`: further routes of admin.listen, for people. `also`: problems of pylb itself. `host`: what this machine is called.
    """

    def __init__(
        self,
        registry: Registry,
        counters: Callable[[], Awaitable[Counters]],
        scrape: Callable[[], Awaitable[Scrape]],
        hosts: Iterable[str] = (),
        page: Mapping[str, Handler] | None = None,
        *,
        live: SessionSource,
        haproxy: Callable[[], Awaitable[Scrape]] | None = None,
        compat: bool = False,
        also: Callable[[], Iterable[str]] = lambda: (),
        host: Callable[[], str] = lambda: "",
    ) -> None:
        self._registry = registry
        self._counters = counters
        self._scrape = scrape
        self._live = live
        self._haproxy = haproxy
        self._compat = compat
        self._also = also
        self._host = host
        self._page = dict(page or {})
        self.set_hosts(hosts)

    def set_hosts(self, hosts: Iterable[str]) -> None:
        """Replace the names of this machine, after a reload."""
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)

    def handler(self) -> Handler:
        """The handler of admin.listen: all pages, for requests whose Host and Origin name this machine."""
        pages = self._monitoring() | {
            "GET /v1/table": self._table,
            "GET /v1/registrations": self._registrations,
            "GET /v1/sessions": self._sessions,
            "GET /v1/sessions/live": self._moved,
            "GET /v1/events": self._events,
            "GET /v1/rejected": self._rejected,
            **self._page,
        }
        return _pages(Router(pages), self._check_host)

    def metrics_handler(self, allow: Sequence[Network]) -> Handler:
        """The handler of metrics.listen: only what Prometheus and other pylbs need, for peers inside `allow`."""

        def check(call: Call) -> None:
            if not in_networks(call.peer, allow):
                raise _forbidden(f"{call.peer} is not in metrics.allow")

        return _pages(Router(self._monitoring()), check)

    def _monitoring(self) -> dict[str, Handler]:
        return {
            "GET /metrics": self._metrics,
            "GET /livez": self._livez,
            "GET /readyz": self._readyz,
            f"GET {ACTIVE}": self._activez,
            f"GET {HEALTH}": self._health,
        }

    def _check_host(self, call: Call) -> None:
        """Refuse requests by which a stranger's page in the operator's browser could read these pages (DNS rebinding).

        Such a page can point its own name at 127.0.0.1, but the browser then sends that name as Host. Therefore Host must be
        loopback, the address that the request came to, or one of our names; so must Origin, if there is one.
        """
        host = _hostname(f"//{call.headers.get('host', '')}")
        if not self._is_ours(host, call.local):
            raise _forbidden(f"Host {str(host)[:80]!r} is not this machine", "set `advertise`, or use the address itself")
        origin = call.headers.get("origin")
        if origin is not None and not self._is_ours(_hostname(origin), call.local):
            raise _forbidden(f"Origin {origin[:80]!r} is not this machine")
        # Another site's page cannot read the answer to such a request, but it could hold streams open and cause long answers.
        # Fetch Metadata tells it from a link that somebody follows: that loads a document. Frames are refused, because a
        # page may contain a hundred invisible ones.
        foreign = call.headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}
        followed = call.headers.get("sec-fetch-mode") == "navigate" and call.headers.get("sec-fetch-dest") == "document"
        if foreign and not followed:
            raise _forbidden("the request comes from a page of another site")

    def _is_ours(self, host: str | None, local: str) -> bool:
        if not host:
            return False
        try:
            ip = parse_ip(host)
        except ValueError:
            return host == "localhost" or host.rstrip(".") in self._hosts
        return ip == local or is_loopback(ip) or ip in self._hosts

    # ------------------------------------------------------------ monitoring

    async def _metrics(self, call: Call) -> Answer:
        form = exposition.accepted(call.headers.get("accept", ""))
        scrapes = [self._scrape]
        if self._haproxy is not None and (self._compat or call.query.get("compat") == HAPROXY):
            scrapes.append(self._haproxy)
        body = await exposition.written(scrapes, form)
        headers = {"Vary": "Accept, Accept-Encoding"}
        if gzip_accepted(call.headers.get("accept-encoding", "")):
            headers["Content-Encoding"] = "gzip"
            body = await asyncio.to_thread(gzip.compress, body, mtime=0)
        return Answer(200, body, form.content_type, headers)

    async def _livez(self, _call: Call) -> Answer:
        return json_answer(200, {"status": "live"})

    async def _readyz(self, _call: Call) -> Answer:
        """Readiness of the process. A port that cannot be bound is a degradation, and no reason for a restart."""
        registry = self._registry
        if not registry.ready:
            return json_answer(503, {"status": "starting"})
        unbound = [{"listen": str(listen), "reason": reason} for listen, reason in registry.unbound().items()]
        trouble = registry.cluster_trouble()
        degraded = unbound or not registry.durable or trouble
        shared = {} if trouble is None else {"shared": not trouble}
        status = "degraded" if degraded else "ready"
        return json_answer(200, {"status": status, "durable": registry.durable, "unbound": unbound, **shared})

    async def _activez(self, _call: Call) -> Answer:
        """Whether this machine may have the floating address, for keepalived's check and for other pylbs. Never a question of
        etcd, of servers or of the disk: with those in trouble everywhere, nobody would have the address."""
        if not self._registry.ready:
            return json_answer(503, {"status": "starting"})
        if left := self._registry.standby.left:
            return json_answer(503, {"status": "standby", "seconds": round(left)})
        return json_answer(200, {"status": "active"})

    async def _health(self, _call: Call) -> Answer:
        """The condition in one word and in one sentence."""
        registry, now, also = self._registry, time.time(), list(self._also())
        down_at = since_down(registry.events())
        frontends = in_turns(registry.each_frontend(), FRONTENDS_PER_TURN)
        conditions = [condition(one, down_at, now) async for one in frontends]
        counters = await self._counters()
        found = {
            "health": overall(conditions, durable=registry.durable, also=also),
            "sentence": said(conditions, also),
            "host": self._host(),
            "version": __version__,
            "sessions": counters.open_sessions,
        }
        return json_answer(200, found)

    # ------------------------------------------------------------ views

    async def _table(self, _call: Call) -> Answer:
        head, frontends = {"generation": self._registry.table.generation}, self._registry.each_frontend()
        return await _long(head, "frontends", frontends, _frontend_json, every=FRONTENDS_PER_TURN)

    async def _registrations(self, _call: Call) -> Answer:
        return await _long({}, "registrations", await self._registry.all_registrations(), _registration_json)

    async def _sessions(self, call: Call) -> Answer:
        """Counts of sessions; with `?live=1` and `?ended=1` also the sessions that match; with `?counts=0` only those."""
        lists = await self._session_lists(call.query)
        if call.query.get("counts", "1") == "0":
            parts = ",".join(f'"{key}":{text}' for key, text in lists.items())
            return Answer(200, f"{{{parts}}}\n".encode())
        counters = await self._counters()
        rows = [
            {
                "frontend": one.name,
                "listen": str(listen),
                "sessions": one.sessions,
                "sessions_total": one.sessions_total,
            }
            for listen, one in counters.frontends.items()
        ]
        head = {"open": counters.open_sessions, "max": counters.max_connections}
        return await _long(head, "frontends", rows, lambda row: row, lists)

    async def _session_lists(self, asked: Mapping[str, str]) -> dict[str, str]:
        """The lists `live` and `ended` as JSON. Raises Refused for an unknown filter, instead of listing all sessions."""
        switches = {name: asked[name] for name in ("live", "ended", "counts") if name in asked}
        wanted = {name for name, value in switches.items() if value != "0"} - {"counts"}
        unknown = [key for key in asked if key not in (switches.keys() | FILTERS if wanted else switches)]
        if unknown or not set(switches.values()) <= {"0", "1"}:
            hint = f"live=1 or ended=1, with {', '.join(sorted(FILTERS))}; counts=0 leaves the counts out"
            raise Refused(Code.INVALID, f"the query is not understood: {', '.join(asked)[:80]}", hint)
        query = query_of(asked, time.time(), MOST_LISTED)
        lists = {}
        if "live" in wanted:
            found = await living(self._live, query)
            lists["live_total"], lists["live_matching"] = str(found.total), str(found.matching)
            lists["live"] = await _listed(found.sessions, session_json)
        if "ended" in wanted:
            past = await ended(self._live, query)
            lists["ended"] = await _listed(past.traces, trace_json)
            lists["ended_reach"] = json.dumps(reach_json(past.reach))
        return lists

    async def _moved(self, _call: Call) -> Answer:
        hint = "GET /v1/sessions?live=1&counts=0 takes the same by and text"
        raise Refused(Code.NOT_FOUND, "live sessions are listed at /v1/sessions since this version", hint)

    async def _events(self, _call: Call) -> Answer:
        return await _long(
            {"reach": {"since": round(self._registry.since.events, 3)}},
            "events",
            self._registry.events(),
            lambda event: {
                "time": event.at,
                "kind": event.kind,
                "text": event.text,
                "alarm": event.alarm,
                "fields": dict(event.fields),
            },
        )

    async def _rejected(self, _call: Call) -> Answer:
        return await _long(
            {"reach": {"since": round(self._registry.since.rejected, 3)}},
            "rejected",
            self._registry.rejected(),
            rejection_json,
        )


def rejection_json(one: Rejection) -> dict[str, Any]:
    return {
        "time": one.at,
        "address": one.ip,
        "token": one.token,
        "what": one.what,
        "error": one.code,
        "detail": one.detail,
        "name": one.name,
        "ports": [port if protocol == TCP else port_text(port, protocol) for protocol, port in one.ports],
    }


def stats_routes(csv: Callable[[], Awaitable[str]]) -> dict[str, Handler]:
    """The paths of HAProxy's statistics: its CSV, and a redirect to the status page from where its users look for one."""

    async def as_csv(_call: Call) -> Answer:
        return Answer(200, (await csv()).encode(), "text/plain; charset=utf-8")

    async def page(_call: Call) -> Answer:
        return Answer(302, headers={"Location": "/"})

    return {"GET /stats;csv": as_csv, "GET /;csv": as_csv, "GET /stats": page}


def _pages(router: Router, check: Callable[[Call], None]) -> Handler:
    async def answer(call: Call) -> Answer:
        try:
            check(call)
            handler, args = router.find(call.method, call.path)
            return await handler(replace(call, args=args))
        except NoRoute as missing:
            if missing.allow:
                wrong_method = Refused(
                    Code.METHOD, "these pages are read-only", "for changes use `pylb release`, `pylb import`"
                )
                return json_refusal(wrong_method, Allow=", ".join(missing.allow))
            return json_refusal(Refused(Code.NOT_FOUND, "there is nothing at this path"))
        except Refused as refused:
            break_cycles(refused)
            return json_refusal(refused)

    return answer


def _forbidden(detail: str, hint: str = "") -> Refused:
    return Refused(Code.SOURCE_FORBIDDEN, detail, hint)


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


async def _long(
    head: dict[str, Any],
    name: str,
    items: Iterable[Any],
    form: Callable[[Any], Any],
    lists: Mapping[str, str] = _NOTHING,
    *,
    every: int = ITEMS_PER_TURN,
) -> Answer:
    """`{…head, name: [form(item), …]}`, followed by `lists`, which are JSON already."""
    begin = json.dumps(head, separators=(",", ":"))[:-1] + ("," if head else "")
    more = "".join(f',"{key}":{text}' for key, text in lists.items())
    return Answer(200, f'{begin}"{name}":{await _listed(items, form, every)}{more}}}\n'.encode())


async def _listed(items: Iterable[Any], form: Callable[[Any], Any], every: int = ITEMS_PER_TURN) -> str:
    """`[form(item), …]`, made in steps so that the JSON of a thousand frontends does not block the event loop."""
    parts = [json.dumps(form(item), separators=(",", ":")) async for item in in_turns(items, every)]
    return f"[{','.join(parts)}]"


def _frontend_json(view: FrontendView) -> dict[str, Any]:
    return frontend_json(view) | {"servers": [_server_json(one) for one in view.servers]}


def _server_json(view: ServerView) -> dict[str, Any]:
    return server_json(view) | {
        "reachable": view.reachable,
        "hint": view.hint,
        "held_by": [str(holder) for holder in view.held_by],
    }


def _registration_json(view: RegistrationView) -> dict[str, Any]:
    return registration_json(view) | {
        "lease": {"ttl": view.ttl, "expires_in": tenths(view.expires_in)},
        "last_seen_ago": tenths(view.last_seen_ago),
        "frontends": [_wanted_json(wanted) for wanted in view.frontends],
    }


def _wanted_json(wanted: FrontendRequest) -> dict[str, Any]:
    return {
        **port_json(wanted.port, wanted.protocol, wanted.last, wanted.server_name),
        **({"names": "allowed"} if wanted.allows_names else {}),
        "target_port": wanted.target_port,
        "proxy_protocol": None if wanted.send_proxy is None else str(wanted.send_proxy),
        "weight": wanted.weight,
        "backup": wanted.backup,
        "health": written_health(wanted.health),
    }
