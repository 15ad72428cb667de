"""`phonehome controller`. Exit codes: 0 stopped, 2 misused."""

from __future__ import annotations

import os
import signal
import ssl
import sys
from collections.abc import Sequence

from phonehome.client import trust
from phonehome.controller.controller import Controller
from phonehome.controller.options import HELP, Options, read
from phonehome.credentials import read_file
from phonehome.output import logger, misused, show, warn_of_plain_http
from phonehome.settings import SettingsError

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


def main(args: Sequence[str]) -> int:
    if list(args) in (["--help"], ["-h"]):
        return show(HELP)
    if args:
        print(f"phonehome: controller {' '.join(args)}: unknown; see phonehome controller --help", file=sys.stderr)
        return 2
    try:
        options = read(os.environ, read_file)
        context = trust(options.settings.ca) if any(one.secure for one in options.settings.endpoints) else None
    except (SettingsError, ssl.SSLError, ValueError) as exc:
        return misused(exc)
    return run(options, context)


def run(options: Options, context: ssl.SSLContext | None) -> int:
    """Until SIGTERM. Nothing is said to pylb then: its registrations live on, for the next controller."""
    log = logger()
    # Blocked before any thread starts, as in phonehome/__main__.py.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    controller = Controller(options, context, read_file, log)
    warn_of_plain_http((*options.settings.endpoints, options.access.endpoint), log)
    for balancer in controller.balancers:
        log(f"{balancer.label}: Services of type LoadBalancer of {options.access.endpoint.label} open ports here")
    controller.start()
    log(f"stopping: {signal.Signals(signal.sigwait(STOP_SIGNALS)).name}; what is registered stays")
    controller.stop()
    return 0
