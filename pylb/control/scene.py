"""What a call is judged against, and what serves the tables: the words that the parts of control share."""

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pylb.core.address import Listen
from pylb.core.auth import Keyring
from pylb.core.claims import Claims
from pylb.core.operator_overrides import NONE, Overrides, kept
from pylb.core.ownership import Change
from pylb.core.registration import Key
from pylb.core.static_frontends import Layout
from pylb.core.table import Table


class Sink(Protocol):
    """What serves the tables: the in-process engine, or the workers."""

    def open(self, listen: Listen, *, freebind: bool) -> None:
        """Binds and listens, accepts nothing yet. Idempotent. Raises OSError."""

    def discard(self, listen: Listen) -> None:
        """Closes what `open` opened and no table has published; anything else is left alone."""

    def apply(self, table: Table) -> Mapping[Listen, OSError]:
        """Publishes. What cannot be opened is returned, and tried again with the next table."""

    async def applied(self) -> None:
        """Until what was published last is in force everywhere."""


@dataclass(frozen=True, slots=True)
class Unserved:
    """An entry of the snapshot that a newer pylb wrote, with words in its `needs` that this one does not know.

    To serve it without what it needs might send clients elsewhere than its owner said. So it is written again as it came,
    for the pylb that knows, until it is released or its owner registers what this one can serve.
    """

    entry: Mapping[str, Any]
    lease: Mapping[str, Any] | None  # what the snapshot has of it beside
    needs: tuple[str, ...]  # that are not known
    name: str
    ports: tuple[int, ...]  # as far as they can be read


@dataclass(frozen=True, slots=True)
class Scene:
    """What a call is judged against; the next call sees the next one."""

    claims: Claims
    layout: Layout
    keyring: Keyring
    overrides: Overrides = field(default_factory=lambda: NONE)
    unserved: Mapping[Key, Unserved] = field(default_factory=dict)

    def has(self, listen: Listen) -> bool:
        return listen in self.claims.holders or listen in self.layout.statics


Judged = tuple[Scene, Change]
Step = Callable[[Scene], Judged | Generator[None, None, Judged]]  # a generator: one that is long, in pieces


def with_claims(scene: Scene, change: Change) -> tuple[Scene, Change]:
    """The next scene; the same one if nothing changed."""
    if change.claims is scene.claims:
        return scene, change
    overrides = kept(scene.overrides, change.claims, scene.layout)
    return replace(scene, claims=change.claims, overrides=overrides), change


def without(scene: Scene, keys: Iterable[Key]) -> Scene:
    """Without what a newer pylb wrote of these: they are released, or have registered what this one serves."""
    if not scene.unserved:
        return scene
    left = {key: one for key, one in scene.unserved.items() if key not in set(keys)}
    return scene if len(left) == len(scene.unserved) else replace(scene, unserved=left)
