"""What is wrong with a config, and where. Problems print like those of compilers, so that editors can jump to them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pydantic_core import PydanticCustomError


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Line and column, both from 1; (0, 0) is the file as a whole."""

    line: int = 0
    col: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `message` and `hint` never contain a secret."""

    filename: str
    place: Position
    message: str
    hint: str = ""
    severity: str = "error"  # or "warning"

    def __str__(self) -> str:
        where = f"{self.filename}:{self.place.line}:{self.place.col}" if self.place.line else self.filename
        return f"{where}: {self.severity}: {self.message}" + (f" ({self.hint})" if self.hint else "")


MOST_SHOWN = 20  # problems of one file that are printed: more are usually one mistake in many places


class ConfigErrors(Exception):  # noqa: N818 - it holds all of them
    """Every mistake that was found, in the order of the file. Its text is the first of them, see `in_short`."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.place)
        super().__init__("\n".join(in_short(self.problems)))


def in_short(problems: Iterable[Problem]) -> Iterator[str]:
    """A line for each of a file's first MOST_SHOWN problems, and how many more there are. Each hint is shown only once."""
    seen, remedies = Counter[str](), set[str]()
    for problem in problems:
        seen[problem.filename] += 1
        if seen[problem.filename] <= MOST_SHOWN:
            yield str(replace(problem, hint="") if problem.hint in remedies else problem)
            remedies.add(problem.hint)
    for filename, count in seen.items():
        if count > MOST_SHOWN:
            yield f"{filename}: and {count - MOST_SHOWN:,} more (pylb check --all)"


def in_words(error: ValueError) -> str:
    """What `wrong` raised, with its hint, for whoever has no file and line to show: an option of the CLI."""
    context = error.context if isinstance(error, PydanticCustomError) else None
    hint = (context or {}).get("hint")
    return f"{error} ({hint})" if hint else str(error)


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """The exception for validators to raise: pydantic keeps message and hint apart and adds the place.

    The text is in the context, not in the template, so that braces in a user's value are not placeholders.
    """
    return PydanticCustomError("config", "{message}", {"message": message, "hint": hint})
