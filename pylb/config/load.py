"""From a file to a `Config`, or to every mistake in it at once."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from pydantic import ValidationError

from pylb.config.checks import findings
from pylb.config.entries import Finding, Parts, readable_parts
from pylb.config.explain import explain
from pylb.config.files import read_again, secrets, unreadable
from pylb.config.hiding import hidden
from pylb.config.models import TokenEntry
from pylb.config.problems import ConfigErrors, Position, Problem
from pylb.config.root import Config, Secrets
from pylb.config.yamlplace import MAX_CHARACTERS, Document, read
from pylb.control.storage.places import default_state_dir

DEFAULTS = "embedded defaults"


def load(path: Path | None, environ: Mapping[str, str], *, text: str | None = None) -> Config:
    """The config from a file (YAML or JSON), including secrets; without a file the defaults.

    `environ` is only asked for STATE_DIRECTORY and HOME. `text` is used instead of the file's present content, for example the
    last good one; places and relative paths are still the file's. Raises ConfigErrors.
    """
    if path is None:
        return parse("", DEFAULTS, environ)
    return _parse(read_text(path) if text is None else text, str(path), environ, read_files=True)


def parse(text: str, filename: str, environ: Mapping[str, str] = MappingProxyType({})) -> Config:
    """Like `load`, but opens no file: `keyring()` of the result has inline secrets only. Raises ConfigErrors."""
    return _parse(text, filename, environ, read_files=False)


def read_secrets_again(config: Config) -> tuple[Config, list[str]]:
    """The config with the present content of the secret files, and problems with them: those files' old secrets stay."""
    complaints: list[str] = []

    def change(tokens: Iterable[TokenEntry], before: Secrets) -> Secrets:
        after, wrong = read_again(tokens, before)
        complaints.extend(wrong)
        return after

    return config.with_secrets(change), complaints


def _parse(text: str, filename: str, environ: Mapping[str, str], *, read_files: bool) -> Config:
    document = read(text, filename)
    problems = document.problems
    if document.data is None:
        document.data = {}
    if not isinstance(document.data, dict):
        problems.append(Problem(filename, Position(1, 1), "the file is not a mapping of keys to values", "key: value"))
        document.data = {}
    base = Path(filename).absolute().parent
    config = None
    try:
        config = Config.model_validate(_with_state_dir(document, environ), context=base)
    except ValidationError as error:
        problems += explain(error, document, Config)
    parts = readable_parts(document, base)
    if config is not None:
        parts.own_addresses = frozenset((*config.public_addresses, *config.cluster.addresses))
    found_secrets, about_secrets = secrets(parts, read_files=read_files)
    about = [*findings(parts), *about_secrets, *(unreadable(parts) if read_files else ())]
    problems = hidden(problems, document.data)
    noted = hidden(_placed(about, parts), document.data)
    problems += [problem for problem in noted if problem.severity == "error"]
    if problems or config is None:
        raise ConfigErrors(problems)
    warnings = sorted((problem for problem in noted if problem.severity == "warning"), key=lambda problem: problem.place)
    return config.completed(found_secrets, warnings)


def _with_state_dir(document: Document, environ: Mapping[str, str]) -> dict[str, object]:
    data = dict(document.data) if isinstance(document.data, dict) else {}
    if data.get("state_dir") is None:
        data["state_dir"] = str(default_state_dir(environ))
    return dict(data)


def _placed(about: Iterable[Finding], parts: Parts) -> list[Problem]:
    name = parts.document.filename
    return [Problem(name, parts.place(found.loc), found.message, found.hint, found.severity) for found in about]


def read_text(path: Path) -> str:
    """Raises ConfigErrors if the file cannot be read or is not UTF-8."""
    try:
        with path.open("rb") as file:
            raw = file.read(4 * MAX_CHARACTERS + 1)
    except OSError as error:
        raise ConfigErrors([Problem(str(path), Position(), f"cannot be read: {error.strerror}")]) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        col = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise ConfigErrors([Problem(str(path), Position(line, col), "this byte is not UTF-8")]) from None
