"""`pylb run` as a process: its signals, its config, its loop."""

import asyncio
import faulthandler
import signal
from collections.abc import Mapping
from pathlib import Path

import uvloop

from pylb.app.app import SIGNALS, App
from pylb.config import ConfigErrors
from pylb.config.source import ConfigSource
from pylb.host.machine import hold_standard_descriptors
from pylb.upgrade.protocol import VARIABLE as HAND_OVER


def run(path: Path | None, environ: Mapping[str, str]) -> None:
    """`pylb run`: serves until SIGTERM or SIGINT. Raises CannotStart, ConfigErrors or InternalError.

    pylb serves with a broken file, too: the config that was last in force is used, with a warning.
    """
    hold_standard_descriptors()
    faulthandler.enable()  # prints all stacks on a crash, and on SIGABRT from systemd's watchdog
    # Until the loop has handlers for them: by default they kill. The kernel keeps one of each for us, even of those that
    # whoever started us ignores, so that a change of the file after it was read here is not missed.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS.keys())
    source, complaint = ConfigSource(path, environ), ""
    try:
        config = source.load()
    except ConfigErrors as errors:
        kept = source.last_good()
        if kept is None or HAND_OVER in environ:  # the pylb before goes on with what it has
            raise
        config, complaint = kept, str(errors)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(App(source, config, complaint, environ).serve())
