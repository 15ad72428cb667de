"""`show info`: HAProxy's keys, in HAProxy's order, with the values of this process.

Keys of things that pylb does not have (TLS on traffic, compression, peers, memory pools) are 0.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pylb import __version__
from pylb.forward.counters import Counters
from pylb.haproxy.rates import Rates

NAME = "pylb"
RELEASED = "2026/11/25"  # of __version__


@dataclass(frozen=True, slots=True)
class Facts:
    """Values that only the app knows. Times are unix time in seconds."""

    started_at: float
    workers: int  # processes that forward; 0: only this one
    descriptors: int  # limit for each process
    pipes: int  # limit for all processes together
    listeners: int
    tasks: int
    lines_dropped: int
    stopping: bool
    node: str


def show_info(facts: Facts, counters: Counters, rates: Rates, wall: float) -> dict[str, int | str]:
    """The answer to `show info`. `wall`: now, as unix time."""
    sessions, connections, moved = rates.totals(counters.frontends.values())
    uptime = max(0, int(wall - facts.started_at))
    days, rest = divmod(uptime, 86400)
    live, most = counters.open_sessions, counters.max_connections
    return {
        "Name": NAME,
        "Version": __version__,
        "Release_date": RELEASED,
        "Nbthread": 1,
        "Nbproc": max(1, facts.workers),
        "Process_num": 1,
        "Pid": os.getpid(),
        "Uptime": f"{days}d {rest // 3600}h{rest // 60 % 60:02}m{rest % 60:02}s",
        "Uptime_sec": uptime,
        **_zeros("Memmax_MB PoolAlloc_MB PoolUsed_MB PoolFailed"),
        "Ulimit-n": facts.descriptors,
        "Maxsock": facts.descriptors,
        "Maxconn": most,
        "Hard_maxconn": most,
        "CurrConns": live,
        "CumConns": connections,
        "CumReq": sessions,
        **_zeros("MaxSslConns CurrSslConns CumSslConns"),
        "Maxpipes": facts.pipes,
        "PipesUsed": counters.pipes_lent,
        "PipesFree": max(0, facts.pipes - counters.pipes_lent),
        "ConnRate": rates.connections.rate,
        "ConnRateLimit": 0,
        "MaxConnRate": rates.connections.most,
        "SessRate": rates.sessions.rate,
        "SessRateLimit": 0,
        "MaxSessRate": rates.sessions.most,
        **_zeros("SslRate SslRateLimit MaxSslRate SslFrontendKeyRate SslFrontendMaxKeyRate SslFrontendSessionReuse_pct"),
        **_zeros("SslBackendKeyRate SslBackendMaxKeyRate SslCacheLookups SslCacheMisses"),
        **_zeros("CompressBpsIn CompressBpsOut CompressBpsRateLim"),
        "Tasks": facts.tasks + live,
        "Run_queue": counters.runnable,
        "Idle_pct": rates.idle,
        "node": facts.node,
        "Stopping": int(facts.stopping),
        "Jobs": facts.listeners + live,
        "Unstoppable Jobs": 0,
        "Listeners": facts.listeners,
        "ActivePeers": 0,
        "ConnectedPeers": 0,
        "DroppedLogs": facts.lines_dropped,
        "BusyPolling": 0,
        "TotalBytesOut": moved,
        "TotalSplicdedBytesOut": counters.bytes_spliced,  # HAProxy's own spelling
        "BytesOutRate": rates.bytes.rate,
        **_zeros("DebugCommandsIssued CumRecvLogs"),
        "Build info": __version__,
        **_zeros("Memmax_bytes PoolAlloc_bytes PoolUsed_bytes"),
        "Start_time_sec": int(facts.started_at),
        "Tainted": 0,
    }


def _zeros(keys: str) -> Mapping[str, int]:
    return dict.fromkeys(keys.split(), 0)
