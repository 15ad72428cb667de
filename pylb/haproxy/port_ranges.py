"""Frontends of a range of ports: those that differ in nothing but their ports become one frontend of pylb."""

from collections.abc import Iterator
from typing import Any

Entry = dict[str, Any]  # a frontend of pylb.yaml


def in_ranges(entries: list[tuple[str, Entry]]) -> Iterator[tuple[str, Entry]]:
    """The entries, each with its backend's name; neighbours that follow each other port by port as one.

    Servers stay as they are, or follow port by port, too. Of a range only a check with a port of its own says anything, so
    frontends with another one stay by themselves.
    """
    runs: list[list[tuple[str, Entry]]] = []
    for one in entries:
        if runs and _continues(runs[-1], one):
            runs[-1].append(one)
        else:
            runs.append([one])
    for run in runs:
        backend, first = run[0]
        if len(run) == 1:
            yield backend, first
            continue
        last = run[-1][1]
        servers = [
            {**one, "address": _range(one["address"], other["address"])}
            for one, other in zip(first["servers"], last["servers"], strict=True)
        ]
        yield backend, {**first, "listen": _range(first["listen"], last["listen"]), "servers": servers}


def _continues(run: list[tuple[str, Entry]], one: tuple[str, Entry]) -> bool:
    (backend, first), (_, last) = run[0], run[-1]
    other_backend, entry = one
    if backend != other_backend or _but_ports(entry) != _but_ports(first) or not _suits_ranges(entry):
        return False
    if _step(last["listen"], entry["listen"]) != 1:
        return False
    steps = [_step(*addresses) for addresses in zip(_addresses(last), _addresses(entry), strict=True)]
    before = steps if last is first else [_step(*two) for two in zip(_addresses(first), _addresses(run[1][1]), strict=True)]
    return steps == before and set(steps) <= {0, 1}


def _suits_ranges(entry: Entry) -> bool:
    health = entry["health"]
    return "routes" not in entry and (health["mode"] == "none" or "port" in health.get("check", {}))


def _but_ports(entry: Entry) -> Entry:
    servers = [{key: value for key, value in one.items() if key != "address"} for one in entry["servers"]]
    return {key: value for key, value in entry.items() if key not in ("name", "listen")} | {"servers": servers}


def _addresses(entry: Entry) -> list[str]:
    return [one["address"] for one in entry["servers"]]


def _step(before: str, after: str) -> int | None:
    """How many ports are between two addresses; None: they are different hosts."""
    (host, _, port), (other, _, next_port) = before.rpartition(":"), after.rpartition(":")
    return int(next_port) - int(port) if host == other else None


def _range(first: str, last: str) -> str:
    return first if first == last else f"{first}-{last.rpartition(':')[2]}"
