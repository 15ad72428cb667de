"""The events for the operator: a bounded memory of transitions and of refused calls, each with its reason."""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from pylb.control.fair_buffer import FairBuffer
from pylb.core.address import PortKey
from pylb.core.errors import Code, Refused
from pylb.core.text import visible
from pylb.core.token_buckets import TokenBuckets


@dataclass(frozen=True, slots=True)
class Event:
    at: float  # unix time
    kind: str  # one word, such as "moved" or "server_down"
    text: str
    fields: Mapping[str, str | int] = field(default_factory=dict)
    alarm: bool = False  # somebody should look
    number: int = 0  # from 1 on, since the start


@dataclass(frozen=True, slots=True)
class Rejection:
    """One refused call, without secrets."""

    at: float
    ip: str
    token: str
    what: str
    code: str
    detail: str
    name: str = ""  # of the registration that it asked for, if known
    ports: tuple[PortKey, ...] = ()  # frontend ports that the call named


MOST_DETAIL = 500  # characters of a refused call in the log: it may repeat 4 KiB of input
MOST_PORTS = 64  # noted per refused call
STRANGERS = "?"  # not the name of a token; "" is for events of pylb itself


class EventLog:
    """The last 1,000 events and 100 rejections, with a share for each token. `log` gets each event and must not raise."""

    def __init__(self, wall: Callable[[], float], log: Callable[[Event], None]) -> None:
        self._wall = wall
        self._began = wall()
        self._log = log
        self._events: FairBuffer[Event] = FairBuffer(1000)
        self.noted = 0  # events since the start
        self._rejections: FairBuffer[Rejection] = FairBuffer(100)
        self.refused: Counter[str] = Counter()  # by code
        self._noted_once: deque[tuple[str, str]] = deque(maxlen=1000)

    def note(self, kind: str, text: str, fields: Mapping[str, str | int] | None = None, *, alarm: bool = False) -> None:
        self.noted += 1
        event = Event(self._wall(), kind, visible(text), fields or {}, alarm, self.noted)
        token = event.fields.get("token")
        self._events.add(STRANGERS if token == "" else str(token or ""), event)
        self._log(event)

    def note_once(self, kind: str, text: str, subject: str, token: str) -> None:
        """Like `note`, once per subject, for what every heartbeat would repeat. The last 1,000 subjects are remembered."""
        if (kind, subject) not in self._noted_once:
            self._noted_once.append((kind, subject))
            self.note(kind, text, {"client": subject, "token": token})

    def reject(
        self,
        refused: Refused,
        ip: str,
        token: str,
        what: str,
        *,
        name: str = "",
        ports: Iterable[PortKey] = (),
        tell: bool = True,
    ) -> None:
        """`token` is its name, "" for a call without a valid one. Without `tell` it is only counted."""
        self.refused[str(refused.code)] += 1
        if not tell:
            return
        detail = _short(refused.detail + (f" ({refused.hint})" if refused.hint else ""))
        what = _short(what)
        about = tuple(ports)[:MOST_PORTS]
        rejection = Rejection(self._wall(), ip, token, what, str(refused.code), detail, visible(name), about)
        self._rejections.add(token, rejection)
        whom = f"with token {token!r}" if token else "without a valid token"
        text = f"refused {what} from {ip} {whom}: {refused.code}: {detail}"
        self.note("refused", text, {"client": ip, "token": token, "code": str(refused.code)})

    def events(self) -> list[Event]:
        """Oldest first."""
        return self._events.items()

    def rejected(self) -> list[Rejection]:
        """Oldest first."""
        return self._rejections.items()

    @property
    def events_since(self) -> float:
        """Unix time: all later events are in `events()`."""
        return self._began if self._events.dropped is None else self._events.dropped.at

    @property
    def rejected_since(self) -> float:
        """Unix time: all later refusals are in `rejected()`, except those of floods."""
        return self._began if self._rejections.dropped is None else self._rejections.dropped.at


def _short(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= MOST_DETAIL else shown[: MOST_DETAIL - 1] + "…"


class RejectionLogLimit:
    """Which of a token's refused calls get a line: a token may be refused a hundred times a second, for days."""

    BURST, RATE = 10.0, 1 / 6  # lines per caller and code at once; then ten a minute
    ALL = 10  # times as many for the whole token

    def __init__(self, clock: Callable[[], float]) -> None:
        self._of_one = TokenBuckets(self.BURST, self.RATE, clock)
        self._of_all = TokenBuckets(self.ALL * self.BURST, self.ALL * self.RATE, clock)

    def allows_line(self, token: str, ip: str, code: Code) -> bool:
        return self._of_one.take((token, ip, code)) == 0 and self._of_all.take(token) == 0


class FrequentMoves:
    """Notices a phone-home whose address keeps changing: two that share a name, or a NAT with several addresses."""

    MOVES = 4
    WITHIN = 600.0  # seconds

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._moves: dict[Hashable, deque[float]] = {}

    def moved(self, key: Hashable) -> bool:
        """True once per `MOVES` moves within `WITHIN`."""
        now = self._clock()
        times = self._moves.pop(key, deque(maxlen=self.MOVES))
        times.append(now)
        self._moves[key] = times  # the most recent mover is last, so the first ones can be forgotten
        while now - self._moves[first := next(iter(self._moves))][-1] > self.WITHIN:
            del self._moves[first]
        if len(times) < self.MOVES or now - times[0] > self.WITHIN:
            return False
        del self._moves[key]
        return True
