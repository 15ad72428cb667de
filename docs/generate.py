"""Write the generated parts of docs/: `python docs/generate.py`; with --check only say what is out of date (exit 1)."""

import asyncio
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click
from prometheus_client.metrics_core import Metric
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bench.tables import markdown
from docs import manpage
from pylb.app.engine_observer import EngineObserver
from pylb.cli.main import SECTIONS
from pylb.cli.main import main as cli
from pylb.cli.session_trace import LETTERS
from pylb.config import schema
from pylb.config.explain import section_of
from pylb.config.frontends import FrontendEntry
from pylb.config.models import PolicySection
from pylb.config.root import Config
from pylb.config.section import Section
from pylb.config.values import JsonType, duration_text
from pylb.control.registry import Registry
from pylb.control.storage.store import Store
from pylb.control.tasks import Tasks
from pylb.core.address import ANY, UDP, Listen
from pylb.core.auth import Keyring
from pylb.core.log import Target
from pylb.core.policy import Rules
from pylb.core.session import TRANSITIONS, SessionView, State
from pylb.forward.counters import Counters, DatagramCounters, FrontendCounters
from pylb.forward.engine import Engine
from pylb.haproxy import exporter
from pylb.haproxy.commands import Commands
from pylb.haproxy.info import Facts
from pylb.haproxy.rates import Rates
from pylb.haproxy.view import View
from pylb.logs.session_log import ConnectionLog
from pylb.logs.targets import Stream
from pylb.metrics.collector import Metrics
from pylb.web import openapi
from pylb.web.answers import STATUS

DOCS = Path(__file__).parent
WIDTH = 100  # columns; not those of whoever runs this


_CLI_HEAD = """# The command line

Generated from `--help` (docs/generate.py).

On a terminal tables fit its width: long names are folded, ports, addresses and counts never, and reasons have a line of their
own. Columns for which there is no room are left out, and a line below the table names them. The words for a state have colours,
and what is wrong has a mark (`down !`). `NO_COLOR`, `CLICOLOR=0` and `pylb --no-colour …` switch colours off, `CLICOLOR_FORCE`
and `pylb --colour …` on. Into a pipe or a file tables are plain text for `grep` and `awk -F'  +'`: at least two blanks between
columns, no line cut or wrapped, counts without commas; `pylb --colour routes | less -RS` shows all columns on any terminal.

Programs should use `--json`, whose names stay the same. A verb with `--json` that cannot do what it was asked prints one
object, `{"error", "detail", "hint", "exit_code"}`: `error` is a code of [the API](protocol.md#errors), or `usage` (wrong
options), `unusable` (pylb cannot be asked), `failed` (the answer is no), `interrupted` (Ctrl-C, exit code 130) or `internal` (a
bug). `check` and `doctor` print their list of findings also with exit code 1.
"""


def cli_reference() -> str:
    """`--help` of every verb."""
    parts = [_CLI_HEAD]
    context = _context(cli, "pylb")
    parts.append(_block("pylb", cli.get_help(context)))
    parts += _verbs("pylb", cli)
    return "\n".join(parts)


def _context(command: click.Command, path: str) -> click.Context:
    """As below the CLI itself: a command makes its --help once, for whoever asks first."""
    names = cli.context_settings["help_option_names"]
    return click.Context(command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=names)


def _verbs(path: str, group: click.Group) -> list[str]:
    found = []
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        inner = f"{path} {name}"
        context = _context(command, inner)
        found.append(_block(inner, command.get_help(context)))
        found += _verbs(inner, command) if isinstance(command, click.Group) else []
    return found


def _idle() -> tuple[Engine, Registry]:
    """Of a pylb that has never run."""
    engine = Engine(
        observer=EngineObserver(ConnectionLog(Stream(1), "none"), Tasks()), max_connections=1, on_fault=lambda _error: None
    )
    return engine, Registry(rules=Rules(), keyring=Keyring(()), sink=engine, store=Store(Path("unused")))


def metrics_reference() -> str:
    """All families of a pylb that has never run, but for a frontend of UDP, which has some of its own."""
    engine, registry = _idle()
    engine.counters.frontends[Listen(UDP, ANY, 443)] = one = FrontendCounters("quic")
    one.datagrams = DatagramCounters()

    async def counters() -> Counters:
        return engine.counters

    metrics = Metrics(
        counters=counters,
        registry=registry,
        lines_dropped=lambda: 0,
        processes=dict,
        reloaded=lambda: True,
        certificate_expires_at=lambda: 0.0,
    )
    head = (
        "# Metrics\n\nGenerated from the collector (docs/generate.py). `code` is HAProxy's two letters, see engine.md. Alerts "
        "are in deploy/prometheus/rules.yaml, what to do when they fire in runbook.md, a dashboard in deploy/grafana. "
        "Prometheus has a label `instance` of its own: that of a registration becomes `exported_instance` there.\n\n"
        "prometheus-client writes them: Prometheus' text format 0.0.4, or OpenMetrics 1.0 for a scraper that accepts it, and "
        "gzip for one that accepts that. In OpenMetrics a counter may not have the name of a gauge before `_total`: the type "
        "of `pylb_frontend_sessions_total`, `pylb_server_sessions_total` and `pylb_registrations_total` is `unknown` there.\n\n"
    )
    families = {(family.name, family.type): family for family in asyncio.run(metrics.scrape()).collect()}
    return f"{head}{markdown(['name', 'type', 'labels', 'meaning'], map(_family, families.values()))}\n"


def _family(family: Metric) -> list[str]:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = ", ".join(f"`{label}`" for label in family._labelnames)  # noqa: SLF001 - the library has no other place
    return [f"`{name}`", family.type, labels, family.documentation]


def commands() -> str:
    """Of the runtime socket."""
    engine, registry = _idle()

    async def counters() -> Counters:
        return engine.counters

    async def sessions() -> list[SessionView]:
        return []

    facts = Facts(0.0, 0, 0, 0, 0, 0, 0, False, "")
    here, elsewhere = Commands(View(registry, counters, lambda: facts, Rates()), {}, sessions).reference()
    instead = "answered with what to do instead"
    return f"{markdown(['command', ''], _code(here))}\n\n{markdown([instead, ''], _code(elsewhere))}\n"


def exporter_names() -> str:
    """Of HAProxy's exporter."""
    rows = ([f"`{name}`", ", ".join(f"`{label}`" for label in labels), text] for name, labels, text in exporter.reference())
    return f"{markdown(['name', 'labels', 'column of `show stat`'], rows)}\n"


def _code(meanings: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"`{words}`", meaning) for words, meaning in meanings.items())


def errors() -> str:
    rows = ([f"`{code}`", str(status), *openapi.MEANINGS[code]] for code, status in STATUS.items())
    return f"{markdown(['error', 'status', 'meaning', 'what to do'], rows)}\n"


def _block(title: str, text: str) -> str:
    return f"## `{title}`\n\n```\n{text}\n```\n"


def _filled(text: str, section: str, content: str) -> str:
    """The text with the content between the section's markers replaced."""
    begin, end = f"<!-- generated by docs/generate.py: {section} -->\n", "<!-- end -->"
    head, found, rest = text.partition(begin)
    if not found:
        raise ValueError(f"there is no section {section}")
    return f"{head}{begin}{content}{end}{rest.partition(end)[2]}"


def letters() -> str:
    return f"{markdown(['letters', 'meaning'], _code(LETTERS))}\n"


_CONFIG_HEAD = """# Config reference

Generated from the models (docs/generate.py). Every key is optional unless it says *required*; no file at all is a
valid config. `pylb check -c pylb.yaml` prints every mistake with its line. A JSON file works as well.

Durations are one whole number and a unit: `500ms`, `5s`, `10m`, `1h`, `7d`, at most
`366d`. Ports are numbers or ranges: `8443`, `"8883-8899"`.
One value may stand for a list of one. Relative paths start at the config file's directory.
Quote what YAML would read as something else: `"*:443"`, `"22:30"`, `"010"`, `"no"`.
"""


def config_reference() -> str:
    """Of pylb.yaml: a table of all keys for each section, in the order of the file."""
    return "\n".join([_CONFIG_HEAD, *_config_tables("", Config, "The file")])


def _config_tables(path: str, section: type[Section], title: str) -> Iterator[str]:
    yield f"## {title}\n"
    inner: list[tuple[str, type[Section]]] = []
    rows: list[list[str]] = []
    for key, field in section.model_fields.items():
        if field.exclude or (section is FrontendEntry and key in PolicySection.model_fields):
            continue
        below = section_of(field.annotation)
        if below is not None:
            inner.append((f"{path}{key}{'[]' if _is_list(field.annotation) else ''}", below))
        meaning = field.description or f"see [`{inner[-1][0]}`](#{_anchor(inner[-1][0])})"
        rows.append([f"`{key}`", _type(field, field.annotation), _default(key, field), meaning])
    yield markdown(["key", "type", "default", "meaning"], rows)
    if section is FrontendEntry:
        keys = ", ".join(f"`{key}`" for key in PolicySection.model_fields)
        yield f"\nOf [`defaults`](#defaults) also {keys}: keys that are written here win."
    for why in dict.fromkeys(section.reserved.values()):
        keys = ", ".join(f"`{key}`" for key, reason in section.reserved.items() if reason == why)
        yield f"\nRefused: {keys} ({why})."
    yield ""
    for name, below in inner:
        yield from _config_tables(f"{name}.", below, f"`{name}`")


def _anchor(name: str) -> str:
    """The anchor that GitHub makes from a heading: lower case, no punctuation."""
    return "".join(char for char in name.lower() if char.isalnum() or char in "_-")


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def _type(field: FieldInfo | None, annotation: Any) -> str:
    shape = next((item for item in (field.metadata if field else ()) if isinstance(item, JsonType)), None)
    if shape is not None:
        return shape.name
    if get_origin(annotation) is Literal:
        return ", ".join(get_args(annotation))
    parts = [part for part in get_args(annotation) if part not in (NoneType, ...)]
    if section_of(annotation) is not None:
        return "list of mappings" if _is_list(annotation) else "mapping"
    shapes = [item.name for part in parts for item in getattr(part, "__metadata__", ()) if isinstance(item, JsonType)]
    return shapes[0] if shapes else ", ".join(_type(None, part) for part in parts)


def _default(key: str, field: FieldInfo) -> str:
    value = field.default
    if key == "state_dir":
        return "see there"  # depends on the environment
    if field.is_required():
        return "*required*"
    if value is PydanticUndefined or value is None:
        return "–"
    shape = _type(field, field.annotation)
    if shape.startswith("duration"):
        return f"`{duration_text(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple) and not isinstance(value, Target | Listen):
        items = (f"{item[0]}-{item[1]}" if isinstance(item, tuple) else str(item) for item in value)
        return "`[" + ", ".join(f'"{item}"' for item in items) + "]`"
    return f'`"{value}"`' if isinstance(value, Listen) or value == "*" else f"`{value}`"


def mermaid() -> str:
    """The table as a Mermaid state diagram for engine.md."""
    lines = ["stateDiagram-v2", "    [*] --> dialing: accepted", "    [*] --> awaiting_header: accepted from a trusted proxy"]
    lines.append("    [*] --> awaiting_hello: accepted on a port with routes")
    for (state, event), (target, action) in TRANSITIONS.items():
        lines.append(f"    {_node(state)} --> {_node(target)}: {event} / {action}")
    return "\n".join([*lines, "    closed --> [*]"]) + "\n"


def _node(state: State) -> str:
    return state.replace(" ", "_")


def generated() -> dict[Path, str]:
    """Path -> the text it must have."""
    haproxy = _filled((DOCS / "haproxy.md").read_text(), "commands", commands())
    engine = _filled((DOCS / "engine.md").read_text(), "session", f"```mermaid\n{mermaid()}```\n")
    protocol = (DOCS / "protocol.md").read_text()
    return {
        DOCS / "config.md": config_reference(),
        DOCS / "cli.md": cli_reference(),
        DOCS / "pylb.1": manpage.page(cli, SECTIONS, _context),
        DOCS / "openapi.json": openapi.rendered().decode(),
        DOCS / "pylb.schema.json": schema(),
        DOCS / "metrics.md": metrics_reference(),
        DOCS / "engine.md": _filled(engine, "letters", letters()),
        DOCS / "haproxy.md": _filled(haproxy, "metrics", exporter_names()),
        DOCS / "protocol.md": _filled(protocol, "errors", errors()),
    }


def main(check: bool) -> int:
    stale = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if check:
            sys.stderr.write(f"{path} is out of date: make docs\n")
        else:
            path.write_text(generated()[path])
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
