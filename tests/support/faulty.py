"""`pylb` with faults to order: `python -m tests.support.faulty run -c FILE`, with a folder in $FAULTS.

A file there named as a part of tasks.py makes that part fail once, in a place of its own that it passes again and again. The
file is then NAME.failed, and NAME.well once the same place was passed again.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pylb import app
from pylb.app import App
from pylb.cli import main
from pylb.control import tasks
from pylb.control.checker import Checker
from pylb.control.clockwork import Clockwork
from pylb.control.ledger import Ledger
from pylb.control.resolver import Resolver
from pylb.control.tasks import Part
from pylb.forward.engine import Engine
from pylb.generations import Generations
from pylb.observe.connlog import ConnectionLog
from pylb.observe.feed import Feed
from pylb.observe.lookout import Lookout
from pylb.pulse import Pulse
from pylb.upgrade import Predecessors
from pylb.workers.fleet import Fleet

PLACES: dict[Part, tuple[type | ModuleType, str]] = {
    Part.LEASES: (Clockwork, "_leases"),
    Part.SNAPSHOT: (Clockwork, "save_again"),
    Part.PROBES: (Checker, "is_due"),
    Part.NAMES: (Resolver, "is_due"),
    Part.KEYS: (App, "_key_files"),
    Part.CERTIFICATES: (App, "_certificate_files"),
    Part.ADDRESSES: (App, "_read_addresses"),
    Part.BEAT: (Pulse, "beat"),
    Part.RATES: (Lookout, "sample"),
    Part.PAGE: (Feed, "look"),
    Part.WATCHDOG: (App, "_state"),
    Part.RELOAD: (App, "reload"),
    Part.UPGRADE: (app, "hand_over"),
    Part.PREDECESSOR: (Predecessors, "follow"),
    Part.PROCESSES: (Generations, "note"),
    Part.EVENTS: (App, "_heed_event"),
    Part.ANSWERS: (Ledger, "_tell"),
    Part.SESSIONS: (ConnectionLog, "session_ended"),
    Part.WORKERS: (Fleet, "_on_message"),
    Part.CALLBACK: (Engine, "tick"),
}


def order(owner: type | ModuleType, name: str, armed: Path) -> None:
    """From now on `owner.name` fails once, whenever there is a file `armed`."""
    inner: Callable[..., Any] = getattr(owner, name)
    failed = armed.with_suffix(".failed")

    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        if failed.exists():
            failed.rename(armed.with_suffix(".well"))
        if armed.exists():
            armed.rename(failed)
            raise RuntimeError(f"a fault to order, in {owner.__name__}.{name}")
        return inner(*args, **kwargs)

    setattr(owner, name, call)


if __name__ == "__main__":
    tasks.PAUSE = 0.05
    for part, (owner, name) in PLACES.items():
        order(owner, name, Path(os.environ["FAULTS"]) / part)
    main()
