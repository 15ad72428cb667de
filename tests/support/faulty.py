"""`pylb` with faults on demand: `python -m tests.support.faulty run -c FILE`, with a folder in $FAULTS.

A file there named as a part of tasks.py makes that part fail once, in a place of its own that it passes again and again. The
file is then NAME.failed, and NAME.well once the same place was passed again. The steps of an upgrade are such places too, in
whichever of the two processes passes them first.
"""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pylb.app import upgrade
from pylb.app.heartbeat import Heartbeat
from pylb.app.operations import Operations
from pylb.app.reload import ConfigReload
from pylb.app.reporting import Reporting
from pylb.app.settings import Settings
from pylb.app.upgrade import IncomingUpgrade, OutgoingUpgrade
from pylb.cli.main import main
from pylb.cluster.sync import Sync
from pylb.control import tasks
from pylb.control.event_texts import EventTexts
from pylb.control.health.checker import Checker
from pylb.control.health.resolver import Resolver
from pylb.control.periodic import PeriodicWork
from pylb.control.registry import Registry
from pylb.control.state import ControlState
from pylb.control.storage.store import Store
from pylb.control.tasks import Part
from pylb.forward.engine import Engine
from pylb.host.loop_lag import Pulse
from pylb.host.systemd import SystemdService
from pylb.logs.session_log import ConnectionLog
from pylb.statuspage.peers import Peers
from pylb.statuspage.stream import PageStream
from pylb.upgrade import handover
from pylb.upgrade.arriving import Predecessors
from pylb.upgrade.leaving import Transfer
from pylb.upgrade.processes import ProcessList
from pylb.upgrade.sockets import ListeningSockets
from pylb.upgrade.successor import Successor
from pylb.web.server import HttpServer
from pylb.web.unix import UnixServer
from pylb.workers.fleet import Fleet
from pylb.workers.sampler import Sampler

PLACES: dict[str, tuple[type | ModuleType, str]] = {
    Part.LEASES: (PeriodicWork, "_leases"),
    Part.SNAPSHOT: (PeriodicWork, "save_again"),
    Part.PROBES: (Checker, "is_due"),
    Part.NAMES: (Resolver, "is_due"),
    Part.KEYS: (Settings, "key_files"),
    Part.CERTIFICATES: (Settings, "certificate_files"),
    Part.ADDRESSES: (ConfigReload, "read_addresses"),
    Part.BEAT: (Pulse, "beat"),
    Part.RATES: (Sampler, "sample"),
    Part.PAGE: (PageStream, "look"),
    Part.CLUSTER: (Sync, "_wait"),
    Part.PEERS: (Peers, "ask"),
    Part.WATCHDOG: (Heartbeat, "state"),
    Part.RELOAD: (Operations, "reload"),
    Part.UPGRADE: (upgrade, "hand_over"),
    Part.PREDECESSOR: (Predecessors, "_hear_failures"),
    Part.SUCCESSOR: (handover, "send_counts"),
    Part.PROCESSES: (ProcessList, "note"),
    Part.EVENTS: (Reporting, "note"),
    Part.ANSWERS: (EventTexts, "registered"),
    Part.SESSIONS: (ConnectionLog, "session_ended"),
    Part.WORKERS: (Fleet, "_on_message"),
    Part.CALLBACK: (Engine, "tick"),
}

# In their order. Up to "go" the old one is in charge, and it stays so.
BEFORE_GO: dict[str, tuple[type | ModuleType, str]] = {
    "begin": (handover, "launch"),
    "the successor's pid": (Successor, "__init__"),
    "close the doors": (HttpServer, "pause"),
    "leave the local sockets": (UnixServer, "leave"),
    "hold the state": (Registry, "hand_over"),
    "write the state": (ControlState, "save_now"),
    "let go of the state": (Store, "unlock"),
    "list the sockets": (ListeningSockets, "all"),
    "count": (Transfer, "counted"),
    "tell the counts": (handover, "send_counts"),
    "tell the totals": (Registry, "totals"),
    "inherit the sockets": (ListeningSockets, "inherit"),
    "meet": (Predecessors, "add"),
    "go on from the totals": (Registry, "go_on_from"),
    "take over": (IncomingUpgrade, "take_over"),
    "introduce": (SystemdService, "successor"),
}
AFTER_GO: dict[str, tuple[type | ModuleType, str]] = {
    "forward a signal": (OutgoingUpgrade, "forward"),
    "drain": (Engine, "drain"),
    "stop the registry": (Registry, "stop"),
    "hear of a stop": (OutgoingUpgrade, "_hear_of_a_stop"),
    "report": (upgrade, "report_to"),
    "follow": (Predecessors, "follow"),
    "fill the store": (ListeningSockets, "store"),
    "the last counts": (upgrade, "send_last_counts"),
}


def order(owner: type | ModuleType, name: str, armed: Path) -> None:
    """Make `owner.name` fail once whenever there is a file `armed`."""
    inner: Callable[..., Any] = getattr(owner, name)
    failed = armed.with_suffix(".failed")

    def passed() -> None:
        if failed.exists():
            failed.rename(armed.with_suffix(".well"))
        if armed.exists():
            armed.rename(failed)
            raise RuntimeError(f"a fault to order, in {owner.__name__}.{name}")

    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        passed()
        return inner(*args, **kwargs)

    @functools.wraps(inner)
    async def run(*args: Any, **kwargs: Any) -> Any:
        passed()
        return await inner(*args, **kwargs)

    setattr(owner, name, run if inspect.iscoroutinefunction(inner) else call)


if __name__ == "__main__":
    tasks.PAUSE = 0.05
    for part, (owner, name) in (PLACES | BEFORE_GO | AFTER_GO).items():
        order(owner, name, Path(os.environ["FAULTS"]) / part)
    main()
