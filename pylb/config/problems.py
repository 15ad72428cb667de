"""What is wrong with a config, and where: values that print as compilers do, so that editors can jump to them."""

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic_core import PydanticCustomError


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Line and column, both from 1; (0, 0) is the file as a whole."""

    line: int = 0
    col: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake. `message` and `hint` never hold a secret."""

    filename: str
    place: Place
    message: str
    hint: str = ""
    severity: str = "error"  # or "warning"

    def __str__(self) -> str:
        where = f"{self.filename}:{self.place.line}:{self.place.col}" if self.place.line else self.filename
        return f"{where}: {self.severity}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigErrors(Exception):  # noqa: N818 - it is all of them
    """Every mistake that was found, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: problem.place)
        super().__init__("\n".join(map(str, self.problems)))


def wrong(message: str, hint: str = "") -> PydanticCustomError:
    """What a validator raises: pydantic keeps message and hint apart for us and adds where it was.

    The text travels in the context, not in the template: braces in a user's value are no placeholders.
    """
    return PydanticCustomError("config", "{message}", {"message": message, "hint": hint})
