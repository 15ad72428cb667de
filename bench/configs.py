"""The configuration of every program in a run, as text. Pure: a `Wiring` in, a file's content out.

Equal terms: one thread, no log, an hour of idle timeout, limits high enough for the sessions of the run. All else is
the default.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.processes import Address

# The 1,000 frontends of the registrations scenario, and the ports it opens and releases while it measures: both outside
# the ephemeral range and above targets.OWN_PORTS.
EXTRA_PORTS = range(18000, 19000)
REGISTERED_PORTS = range(19000, 20000)
REPLY = "x" * 128


@dataclass(frozen=True)
class Wiring:
    """Where each program listens. Origin and proxy have their own addresses, as they may be in different network namespaces."""

    origin_http: Address
    origin_bulk: Address
    proxy_http: Address
    proxy_bulk: Address
    webhook: Address
    admin: Address
    folder: Path
    descriptors: int  # RLIMIT_NOFILE of every child
    origin_other: Address  # the HTTP origin again: where a registration can move to
    on_proxy: Sequence[str] = ()  # before a command that runs on the proxy's machine
    on_origin: Sequence[str] = ()

    @property
    def sessions(self) -> int:
        """How many sessions a proxy is configured for: each needs two descriptors, and the proxy needs some itself."""
        return (self.descriptors - 500) // 2

    @property
    def routes(self) -> list[tuple[str, Address, Address]]:
        """(frontend name, listening address, server) of every frontend."""
        return [("http", self.proxy_http, self.origin_http), ("bulk", self.proxy_bulk, self.origin_bulk)]


def origin(wiring: Wiring) -> str:
    """nginx as HTTP origin: one worker, a small reply from memory, connections kept as long as the client likes."""
    temp = "\n".join(
        f"  {kind}_temp_path {wiring.folder}/origin-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""{_nginx_head(wiring, "origin")}
http {{
  access_log off;
  default_type text/plain;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
{temp}
  server {{
    listen {wiring.origin_http} backlog=4096;
    listen {wiring.origin_other} backlog=4096;
    location / {{ return 200 "{REPLY}"; }}
  }}
}}
"""


def nginx(wiring: Wiring, module: Path | None) -> str:
    """nginx stream, one worker. `module` is the dynamic stream module, None where it is compiled in."""
    load = f"load_module {module};\n" if module else ""
    servers = "\n".join(
        f"  server {{ listen {listen} backlog=4096; proxy_pass {server}; proxy_timeout 1h; }}"
        for _, listen, server in wiring.routes
    )
    return f"{load}{_nginx_head(wiring, 'nginx')}\nstream {{\n{servers}\n}}\n"


def _nginx_head(wiring: Wiring, name: str) -> str:
    return f"""daemon off;
worker_processes 1;
worker_rlimit_nofile {wiring.descriptors};
pid {wiring.folder}/{name}.pid;
error_log stderr error;
events {{ worker_connections {wiring.descriptors - 200}; }}"""


def haproxy(wiring: Wiring, threads: int, *, splice: bool) -> str:
    """HAProxy in TCP mode. Splicing is an option of HAProxy that is off as installed."""
    option = "  option splice-auto\n" if splice else ""
    most = wiring.sessions * 4 // 5 if splice else wiring.sessions  # with splice-auto it reserves a pipe for every fourth
    timeouts = "  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
    parts = [
        f"global\n  nbthread {threads}\n  maxconn {most}\n",
        f"defaults\n  mode tcp\n  maxconn {most}\n{option}{timeouts}",
    ]
    parts += [f"listen {name}\n  bind {listen}\n  server origin {server}\n" for name, listen, server in wiring.routes]
    return "\n".join(parts)


def floor(wiring: Wiring) -> str:
    """Of the floor: a line for each route."""
    return "".join(f"{listen} {server}\n" for _, listen, server in wiring.routes)


def pylb_all(wiring: Wiring) -> str:
    """The same with all features of a pool on that work with a plain client and server."""
    everything = yaml.safe_load(pylb(wiring))
    denied = [{"deny": f"10.{number >> 8}.{number & 255}.0/24"} for number in range(1000)]
    everything["defaults"] |= {
        "access": [{"allow": "0.0.0.0/0"}, {"allow": "::/0"}, *denied],
        "limits": {"per_source": 1_000_000, "per_source_rate": 1_000_000, "rate": 1_000_000, "source_share": 100},
        "source_addresses": [wiring.proxy_http.host],
        "max_queue": 1000,
        "on_down": "close",
        "health": {"mode": "active", "interval": "1s"},
    }
    for frontend in everything["frontends"]:
        [server] = frontend["servers"]
        frontend["servers"] = [{"address": server, "max_connections": 1_000_000}]
    return yaml.safe_dump(everything, sort_keys=False)


def pylb_unrecorded(wiring: Wiring) -> str:
    """The same without the flight recorder: the ratio of the two is the cost of the recorder."""
    return yaml.safe_dump(yaml.safe_load(pylb(wiring)) | {"recorder": {"sessions": 0}}, sort_keys=False)


def pylb_log(wiring: Wiring) -> str:
    """The same with the log of sessions on."""
    everything = yaml.safe_load(pylb(wiring))
    everything["log"] = {"format": "tcplog", "target": f"file:{wiring.folder}/sessions.log", "level": "warning"}
    return yaml.safe_dump(everything, sort_keys=False)


def pylb(wiring: Wiring, workers: int = 0) -> str:
    """pylb, static frontends, and a token that may open the ports of the registrations scenario."""
    everything = {
        # insecure: the load may be in another namespace; limits: a thousand registrations come from one address
        "webhook": [{"listen": str(wiring.webhook), "insecure": True, "limits": {"rate": 100_000, "burst": 100_000}}],
        "admin": {"listen": str(wiring.admin)},
        "state_dir": str(wiring.folder / "pylb-state"),
        "workers": workers,
        "log": {"format": "none", "level": "warning"},  # no line per session, as with the peers
        "tokens": [
            {
                "name": "bench",
                "secret_file": str(token_file(wiring)),
                "names": ["*"],
                "ports": [f"{EXTRA_PORTS.start}-{REGISTERED_PORTS.stop - 1}"],
                "targets": [f"{wiring.origin_http.host}/32"],
                "target_ports": [wiring.origin_http.port, wiring.origin_other.port],
            }
        ],
        # source_share: all the load comes from one address
        "defaults": {"bind": wiring.proxy_http.host, "limits": {"source_share": 100}},
        "frontends": [
            {"name": name, "listen": str(listen), "servers": [str(server)]} for name, listen, server in wiring.routes
        ],
    }
    return yaml.safe_dump(everything, sort_keys=False)


def token_file(wiring: Wiring) -> Path:
    """The path of the file with the bearer token of the run."""
    return wiring.folder / "token"
