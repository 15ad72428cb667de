"""The commands of HAProxy's runtime socket, with HAProxy's own answers and error messages (management guide, 9.3).

A command that changes something calls the verb that `pylb ctl` calls: so there is one writer, the change survives restarts,
and `pylb history` shows it.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pylb import __version__
from pylb.control.views import FrontendView
from pylb.core.errors import Code, Refused
from pylb.core.policy import AdminState
from pylb.core.session import SessionView
from pylb.haproxy.columns import HEADER, csv_lines
from pylb.haproxy.output import STATE_COLUMNS, session_lines, state_line
from pylb.haproxy.stats import BACKEND, FRONTEND, SERVER, Row, Statistics, is_up
from pylb.haproxy.view import View
from pylb.web.control_socket import Verb
from pylb.web.sessions import named

Text = str | AsyncGenerator[str]
Handler = Callable[[Sequence[str]], Awaitable[Text]]


class CommandError(Exception):
    """The command cannot be carried out. The exception's text is the answer to the client."""


class Command(NamedTuple):
    words: tuple[str, ...]
    usage: str
    meaning: str
    handler: Handler


# Commands that HAProxy has and pylb does not have: why, and what to do instead.
_ELSEWHERE = {
    "add server": "registrations and the config add servers (systemctl reload pylb)",
    "clear counters": "pylb never resets counters, because Prometheus computes rates from them; maxima count from the start",
    "del server": "pylb release PORT|NAME, or the config (systemctl reload pylb)",
    "disable agent": "there are no agents",
    "disable frontend": "remove it from the config (systemctl reload pylb), or pylb release PORT",
    "disable health": "set server <bk>/<srv> state maint stops the checks of a server",
    "enable agent": "there are no agents",
    "enable frontend": "the config (systemctl reload pylb) or a registration opens a frontend",
    "enable health": "set server <bk>/<srv> state ready",
    "set maxconn": "change max_connections in the config (systemctl reload pylb)",
    "set rate-limit": "change limits in the config (systemctl reload pylb)",
    "shutdown frontend": "remove it from the config (systemctl reload pylb), or pylb release PORT",
}
_SET_SERVER = "usage: set server <backend>/<server> state | weight\n"
_STATES = "'set server <srv> state' expects 'ready', 'drain' and 'maint'.\n"


class Commands:
    """`sessions` returns the live sessions; `verbs` are the verbs of the control socket."""

    def __init__(self, view: View, verbs: Mapping[str, Verb], sessions: Callable[[], Awaitable[Sequence[SessionView]]]) -> None:
        self._view = view
        self._verbs = verbs
        self._sessions = sessions
        self._commands = [
            Command(("disable", "server"), "<bk>/<srv>", "disable a server for maintenance", self._disable),
            Command(("enable", "server"), "<bk>/<srv>", "enable a disabled server", self._enable),
            Command(("get", "weight"), "<bk>/<srv>", "report a server's current weight", self._get_weight),
            Command(("set", "server"), "<bk>/<srv> [opts]", "change a server's state or weight", self._set_server),
            Command(("set", "timeout", "cli"), "<delay>", "change the timeout of this session, in seconds", self._nothing),
            Command(("set", "weight"), "<bk>/<srv> <n>[%]", "change a server's weight", self._set_weight),
            Command(("show", "backend"), "", "list backends", self._show_backend),
            Command(("show", "errors"), "", "report protocol errors; there are none in TCP", self._show_errors),
            Command(("show", "info"), "", "report information about the running process", self._show_info),
            Command(("show", "servers", "state"), "[<backend>]", "dump volatile server information", self._show_state),
            Command(("show", "sess"), "[id]", "report the list of current sessions or one", self._show_sess),
            Command(("show", "stat"), "[no-maint|up] [<px> <type> <sid>]", "counters of proxies and servers", self._show_stat),
            Command(("show", "version"), "", "show version of the current process", self._show_version),
            Command(("shutdown", "session"), "<id>", "kill a specific session", self._shutdown_session),
            Command(("shutdown", "sessions", "server"), "<bk>/<srv>", "kill sessions on a server", self._shutdown_sessions),
            Command(("help",), "[<command>]", "list matching or all commands", self._help),
            Command(("prompt",), "", "toggle interactive mode with prompt", self._nothing),
            Command(("quit",), "", "disconnect", self._nothing),
        ]

    async def answer(self, words: Sequence[str]) -> Text:
        """Carry out one command. The answer ends with a line break, or is empty."""
        for command in self._commands:
            if tuple(words[: len(command.words)]) == command.words:
                try:
                    return await command.handler(words[len(command.words) :])
                except CommandError as error:
                    return str(error)
                except Refused as refused:
                    return f"{refused}\n"
        if (why := _ELSEWHERE.get(" ".join(words[:2]))) is not None:
            return f"Not here: {why}.\n"
        return "Unknown command. Please enter one of the following commands only:\n" + self._listed(())

    def reference(self) -> tuple[dict[str, str], Mapping[str, str]]:
        """For docs/haproxy.md: what there is, and what is answered with what to do instead."""
        return {" ".join((*one.words, one.usage)).strip(): one.meaning for one in self._commands}, _ELSEWHERE

    # ------------------------------------------------------------ show

    async def _show_info(self, args: Sequence[str]) -> Text:
        if args:
            raise CommandError("pylb knows only the plain form: show info.\n")
        return "".join(f"{key}: {value}\n" for key, value in (await self._view.info()).items())

    async def _show_version(self, _args: Sequence[str]) -> Text:
        return f"{__version__}\n"

    async def _show_errors(self, _args: Sequence[str]) -> Text:
        return "Total events captured : 0\n"

    async def _show_backend(self, _args: Sequence[str]) -> Text:
        return "# name\n" + "".join(f"{name}\n" for name in (await self._view.statistics()).names.values())

    async def _show_stat(self, args: Sequence[str]) -> Text:
        wanted = _Filter(args)
        statistics = await self._view.statistics()
        if wanted.proxy and not any(wanted.names(name, 0) for name in statistics.names.values()):
            raise CommandError("No such proxy.\n")
        return self._stat_lines(statistics, wanted)

    async def _stat_lines(self, statistics: Statistics, wanted: "_Filter") -> AsyncGenerator[str]:
        yield HEADER
        async for rows in self._view.proxies(statistics):
            if lines := csv_lines(row for row in rows if wanted.takes(row)):
                yield lines

    async def _show_state(self, args: Sequence[str]) -> Text:
        statistics = await self._view.statistics()
        if args and args[0] not in statistics.names.values():
            raise CommandError("Can't find backend.\n")
        return self._state_lines(statistics, args[0] if args else "")

    async def _state_lines(self, statistics: Statistics, proxy: str) -> AsyncGenerator[str]:
        yield f"1\n# {STATE_COLUMNS}\n"
        async for rows in self._view.proxies(statistics):
            lines = [state_line(row) for row in rows if row["type"] == SERVER and proxy in ("", row["pxname"])]
            if lines:
                yield "".join(lines)

    async def _show_sess(self, args: Sequence[str]) -> Text:
        found = await self._sessions()
        if args and args[0] != "all":
            try:
                found = named(args[0], found)
            except ValueError:
                raise CommandError("Session not found.\n") from None
            if not found:
                raise CommandError("Session not found.\n")
        return session_lines(found)

    # ------------------------------------------------------------ changes

    async def _set_server(self, args: Sequence[str]) -> Text:
        target, _ = await self._server(args)
        match args[1:]:
            case ["state", state] if state in list(AdminState):
                await self._verbs["admin"]({"target": target, "state": state})
            case ["state", *_]:
                raise CommandError(_STATES)
            case ["weight", weight]:
                return await self._set_weight([args[0], weight])
            case _:
                raise CommandError(_SET_SERVER)
        return ""

    async def _enable(self, args: Sequence[str]) -> Text:
        return await self._set_server([*args[:1], "state", "ready"])

    async def _disable(self, args: Sequence[str]) -> Text:
        return await self._set_server([*args[:1], "state", "maint"])

    async def _set_weight(self, args: Sequence[str]) -> Text:
        target, row = await self._server(args)
        if len(args) < 2:
            raise CommandError("Require <weight> or <weight%>.\n")
        await self._verbs["weight"]({"target": target, "weight": _weight(args[1], row["initial"])})
        return ""

    async def _get_weight(self, args: Sequence[str]) -> Text:
        _, row = await self._server(args)
        return f"{row['weight']} (initial {row['initial']})\n"

    async def _shutdown_session(self, args: Sequence[str]) -> Text:
        if not args:
            raise CommandError("Session pointer expected (use 'show sess').\n")
        try:
            await self._verbs["shutdown session"]({"session": args[0]})
        except Refused:  # also if the client has two sessions: HAProxy has no error message for that
            raise CommandError("No such session (use 'show sess').\n") from None
        return ""

    async def _shutdown_sessions(self, args: Sequence[str]) -> Text:
        target, _ = await self._server(args)
        try:
            await self._verbs["shutdown sessions"]({"target": target})
        except Refused as refused:
            if refused.code is not Code.NOT_FOUND:  # HAProxy does not call that an error
                raise
        return ""

    async def _nothing(self, _args: Sequence[str]) -> Text:
        """Do nothing: `quit`, `prompt` and `set timeout cli` are carried out by runtime_socket."""
        return ""

    # ------------------------------------------------------------ finding

    async def _server(self, args: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The target for a verb, and the server's weights.

        The proxy is given by name or port, the server by label or ip:port.
        """
        proxy, slash, label = (args[0] if args else "").partition("/")
        if not slash:
            raise CommandError("Require 'backend/server'.\n")
        statistics = await self._view.statistics()
        frontend = _frontend(statistics, proxy)
        for view in frontend.servers:
            if label in (view.server, str(view.address)):
                weights = {"weight": view.weight, "initial": view.initial_weight}
                return f"{frontend.listen}/{view.address}", weights
        raise CommandError("No such server.\n")

    async def _help(self, args: Sequence[str]) -> Text:
        return "The following commands are valid at this level:\n" + self._listed(tuple(args))

    def _listed(self, words: tuple[str, ...]) -> str:
        found = [
            f"  {' '.join((*one.words, one.usage)).strip():<40}: {one.meaning}\n"
            for one in self._commands
            if one.words[: len(words)] == words or len(one.words) == 1
        ]
        return "".join(found)


def _frontend(statistics: Statistics, text: str) -> FrontendView:
    for one in statistics.frontends:
        if text == statistics.names[one.listen] or one.listen.is_named(text):
            return one
    raise CommandError("No such backend.\n")


class _Filter:
    """The filter `[no-maint|up] [<iid>|<proxy> <type> <sid>]` of show stat.

    Types: 1 frontends, 2 backends, 4 servers, -1 all.
    """

    def __init__(self, args: Sequence[str]) -> None:
        words = [arg for arg in args if arg not in ("no-maint", "up")]
        self.proxy, self._types, self._sid = "", -1, -1
        self._no_maint, self._up = "no-maint" in args, "up" in args
        if words and words[0] in ("typed", "json", "desc"):
            raise CommandError("pylb knows only CSV: show stat [no-maint|up] [<iid>|<proxy> <type> <sid>].\n")
        if len(words) >= 3:
            self.proxy = "" if words[0] == "-1" else words[0]
            self._types, self._sid = _number(words[1]), _number(words[2])

    def names(self, name: str, iid: int) -> bool:
        return not self.proxy or self.proxy in (name, str(iid)) or (iid == 0 and self.proxy.isdigit())

    def takes(self, row: Row) -> bool:
        if not self.names(row["pxname"], row["iid"]) or not self._types & {FRONTEND: 1, BACKEND: 2, SERVER: 4}[row["type"]]:
            return False
        if self._sid != -1 and row["type"] == SERVER and row["sid"] != self._sid:
            return False
        if row["type"] != SERVER:
            return True
        return not (self._no_maint and row["status"] == "MAINT") and not (self._up and not is_up(row["status"]))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0  # as atoi does, with which HAProxy reads it


def _weight(text: str, initial: int) -> int | None:
    """The weight to set; None: the registered or configured one. Raises CommandError."""
    digits = text.removesuffix("%")
    if not re.fullmatch("-?[0-9]+", digits):
        garbage = (
            "Trailing garbage in weight string" if text[:1].isdigit() else "Empty weight string empty or preceded by garbage"
        )
        raise CommandError(f"{garbage}\n")
    sign = -1 if digits.startswith("-") else 1
    weight = sign * int(digits.lstrip("-0")[:9] or "0")  # nine digits are enough: any longer number is too large as well
    if not text.endswith("%"):
        if not 0 <= weight <= MOST_WEIGHT:
            raise CommandError("Absolute weight can only be between 0 and 256 inclusive.\n")
        return weight
    if weight < 0:
        raise CommandError("Relative weight must be positive.\n")
    if weight == WHOLE:
        return None
    return 0 if weight == 0 else max(1, min(MOST_WEIGHT, round(initial * weight / WHOLE)))


MOST_WEIGHT, WHOLE = 256, 100
