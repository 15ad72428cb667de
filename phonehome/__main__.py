"""The command line: `python -m phonehome [once|drain|release|controller]`.

Exit codes: 0 done, 1 refused or failed, 2 misused.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence

from phonehome import __version__, client, drain_socket, message, preflight
from phonehome.credentials import read_file, tokens
from phonehome.output import logger, misused, show, warn_of_plain_http
from phonehome.runner import DRAIN_ANSWER, PROBE_EVERY, Runner, broadcast
from phonehome.settings import Settings, SettingsError, parse

HELP = """\
usage: phonehome [once | drain | release | controller | --help | --version]

Tells pylb which ports to open and to send here, again and again while this runs.

  (none)    register, and renew the registration until SIGTERM; then say goodbye
  once      register once; the lease never ends unless PYLB_TTL is set
  drain     tell the running phonehome to say goodbye (preStop); without one, say it ourselves
  release   end the registration: pylb closes the ports if nobody else has them
  controller  for a whole cluster: Services of type LoadBalancer; see phonehome controller --help

  PYLB_JOIN        what `pylb token create` printed: address, key and token in one; several are separated
                   by commas; or PYLB_JOIN_FILE, a file with it. Instead of URL, TOKEN, NAME and CA:
  PYLB_URL         https://lb.example.net:9000, or several, separated by commas
  PYLB_TOKEN       the token that pylb has for this app; or PYLB_TOKEN_FILE, a file with it
  PYLB_NAME        the name of this app
  PYLB_INSTANCE    which one of several (default: the host name)
  PYLB_FRONTENDS   "443:30443 25:30025/proxy=v2": port to open, NodePort to send to;
                   options: /proxy=v1|v2 /weight=N /backup
  PYLB_HEALTH      how pylb checks the app: tcp, {"http": "/health"}, {"send": "...", "expect": "..."},
                   each with "port" if it is not the NodePort; or {"443": CHECK, "25": CHECK}
  PYLB_ADDRESS     where pylb sends to: source (the address this call comes from, the default),
                   source4, source6, or an IP address that the token allows
  PYLB_TTL         the lease, 10 s to 24 h (default 60s); renewed at a third of it
  PYLB_WAIT        "HOST:PORT ...": register once these accept connections, drain while they do not
  PYLB_CA          a certificate or CA to trust for https: a PEM file or its text
                   (files are read again before each call)

Also read, from the legacy image: WEBHOOK WEBHOOK_TOKEN NAME FRONTEND_PORT BACKEND_PORT SEND_PROXY REPEAT_INTERVAL
(PYLB_* wins; of WEBHOOK only scheme, host and port count).
"""

VERBS = ("run", "once", "drain", "release")
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
ONE_CALL = 15.0  # seconds
GOODBYE_CALL = 5.0  # seconds: a preStop hook delays the end of the pod


def main(argv: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    if args in (["--help"], ["-h"]):
        return show(HELP)
    if args == ["--version"]:
        return show(f"phonehome {__version__}\n")
    verb = args[0] if args else "run"
    if verb == "controller":
        # Imported here: the phone-home beside an app has no memory for it, and the one-file form no such folder.
        try:
            from phonehome.controller.command import main as controller  # noqa: PLC0415
        except ImportError:
            print("phonehome: this file has no controller: deploy/kubernetes/controller has one", file=sys.stderr)
            return 2
        return controller(args[1:])
    if len(args) > 1 or verb not in VERBS:
        print(f"phonehome: {' '.join(args)}: unknown; see phonehome --help", file=sys.stderr)
        return 2
    try:
        settings = parse(
            os.environ,
            hostname=socket.gethostname(),
            read_file=read_file,
            once=verb == "once",
            need_frontends=verb != "release",
        )
        context = client.trust(settings.ca) if any(endpoint.secure for endpoint in settings.endpoints) else None
    except (SettingsError, ssl.SSLError, ValueError) as exc:
        return misused(exc)
    return _perform(verb, settings, context)


def _perform(verb: str, settings: Settings, context: ssl.SSLContext | None) -> int:
    log = logger()
    warn_of_plain_http(settings.endpoints, log)
    if verb == "release":
        request, state = message.release(settings), message.RELEASED
        return 0 if broadcast(settings, context, request, state, log, timeout=ONE_CALL) else 1
    if verb == "drain":
        return _drain(settings, context, log)
    # Blocked before any thread starts, so that only sigwait below sees them: no handler, no race. It also works as process 1 of
    # a container, for which the kernel drops signals that are neither handled nor blocked.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if settings.once:
        return _once(settings, context, log)
    runner = Runner(settings, context, log)
    runner.start()
    log(f"stopping: {signal.Signals(signal.sigwait(STOP_SIGNALS)).name}")
    runner.stop()
    return 0


def _once(settings: Settings, context: ssl.SSLContext | None, log: Callable[[str], None]) -> int:
    said: list[str] = []
    while silent := preflight.silent(settings.wait):
        if silent != said:
            log(f"waiting for {', '.join(silent)} to answer")
            said = silent
        if signal.sigtimedwait(STOP_SIGNALS, PROBE_EVERY):
            log("stopped before anything was registered")
            return 1
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    request = message.registration(settings, message.READY)
    return 0 if broadcast(settings, context, request, message.READY, log, timeout=ONE_CALL) else 1


def _drain(settings: Settings, context: ssl.SSLContext | None, log: Callable[[str], None]) -> int:
    try:
        lines = drain_socket.request_drain(settings.name, settings.instance, tokens(settings), DRAIN_ANSWER + 1.0)
    except drain_socket.BusyError as exc:
        log(str(exc))
        return 1
    if lines is not None:
        for line in lines:
            log(line)
        return 0
    request = message.registration(settings, message.DRAINING)
    return 0 if broadcast(settings, context, request, message.DRAINING, log, timeout=GOODBYE_CALL) else 1


if __name__ == "__main__":
    sys.exit(main())
