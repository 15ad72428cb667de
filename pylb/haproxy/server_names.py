"""What becomes a route by server name: `use_backend` with `req.ssl_sni -i git.example.net` or `-m end .example.net`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pylb.core.server_names import ANY_DEPTH, ONE_LABEL, find_route, parse_server_name
from pylb.haproxy.clients import EVERYBODY, NOBODY, Conditions
from pylb.haproxy.config_parser import Line

_SNI = ("req.ssl_sni", "req_ssl_sni", "req.ssl_sni,lower", "req_ssl_sni,lower")
_HELLO = ("req.ssl_hello_type", "req_ssl_hello_type")
_OF_A_ROUTE = ("balance", "retries", "timeouts", "health", "proxy_protocol", "servers")
_CHECKED = {"check": "tcp", "interval": "2s", "rise": 2, "fall": 3}  # what a frontend's `health` means without these keys


def asked_names(
    conditions: Conditions, words: Sequence[str], acls: Mapping[str, list[Line]], port: int
) -> tuple[str, ...] | None:
    """The names of routes for which a condition holds; None: it depends on something else.

    Beside a name may stand what is true for all clients of that port, or for every TLS hello.
    """
    if words[:1] != ["if"] or not any(word in _SNI or word in acls for word in words):
        return None  # nearly always; there may be a million of them
    found: list[str] = []
    for terms in _alternatives(words[1:]):
        names: tuple[str, ...] | None = None
        others: list[str] = []
        for term in terms:
            tests = [term[1:-1]] if term[0] == "{" else [line.words[2:] for line in acls.get(term[0], ())]
            if names is None and tests and all(test[:1] and test[0] in _SNI for test in tests):
                if (names := _names_of(tests)) is None:
                    return None
            elif not tests or not all(test[:1] and test[0] in _HELLO and test[1:] in (["1"], ["eq", "1"]) for test in tests):
                others += term  # with a sign in front it is not an acl's name, so it is here, and then not translated
        clients = conditions.clients(["if", *others], dict(acls), port) if others else EVERYBODY
        if clients == NOBODY:
            continue
        if names is None or clients != EVERYBODY:
            return None
        found += names
    return tuple(found)


def reached(names: Sequence[str], known: Mapping[str, object]) -> list[str]:
    """Those of `names` that no name of an earlier rule covers: HAProxy's first rule wins, and pylb's closest name."""
    return [name for name in names if find_route(known, name.replace(ANY_DEPTH, ONE_LABEL, 1)) is None]


def _alternatives(words: Sequence[str]) -> Iterator[list[list[str]]]:
    """The terms between two `or`, each the words of a test in braces, or of the name of an acl, with the signs before it."""
    terms: list[list[str]] = []
    signs: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("or", "||"):
            yield terms
            terms = []
        elif not word.strip("!"):
            signs.append(word)
        else:
            body = ["{", *iter(rest.__next__, "}"), "}"] if word.lstrip("!") == "{" else [word]
            terms.append([*signs, *([word[:-1]] if word.startswith("!") and body[0] == "{" else []), *body])
            signs = []
    yield terms


def _names_of(tests: Sequence[Sequence[str]]) -> tuple[str, ...] | None:
    found: list[str] = []
    for test in tests:
        suffix, any_case, patterns = False, test[0].endswith(",lower"), list(test[1:])
        while patterns and patterns[0].startswith("-"):
            match patterns:
                case ["-i", *rest]:
                    any_case = True
                case ["-m", "str" | "end" as how, *rest]:
                    suffix = how == "end"
                case ["--", *rest]:
                    patterns = rest
                    break
                case _:
                    return None  # -f FILE, -m reg, -m sub
            patterns = rest
        for text in patterns:
            if (suffix and not text.startswith(".")) or (not any_case and text != text.lower()):
                return None  # `-m end example.net` holds for badexample.net, too
            try:
                found.append(parse_server_name(f"{ANY_DEPTH}{text}" if suffix else text))
            except ValueError:
                return None
            if not suffix and found[-1].startswith(ONE_LABEL):
                return None  # a star is a star for HAProxy
    return tuple(found)


def route_of(policy: Mapping[str, Any], frontend: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a route with `policy`, written like a frontend's, says where it differs from `frontend`; and the keys that differ
    and that only a frontend can have."""
    found = {key: policy[key] for key in ("balance", "retries") if policy[key] != frontend[key]}
    if timeouts := {key: text for key, text in policy["timeouts"].items() if text != frontend["timeouts"].get(key)}:
        found["timeouts"] = timeouts
    if policy["health"] != frontend["health"]:
        unsaid = _CHECKED if policy["health"]["mode"] == "active" else {}
        found["health"] = {key: value for key, value in unsaid.items() if key in frontend["health"]} | policy["health"]
    sends = [one.get("proxy_protocol", {}).get("send", "none") for one in (policy, frontend)]
    if sends[0] != sends[1]:
        found["proxy_protocol"] = {"send": sends[0]}
    only = sorted((policy.keys() | frontend.keys()) - {"name", "listen", "routes", *_OF_A_ROUTE})
    elsewhere = [key for key in only if policy.get(key) != frontend.get(key)]
    if sends[0] == "v2" and _crc(policy) != _crc(frontend):
        elsewhere.append("proxy_protocol.crc32c")
    return found | {"servers": policy["servers"]}, elsewhere


def _crc(policy: Mapping[str, Any]) -> bool:
    return bool(policy.get("proxy_protocol", {}).get("crc32c"))
