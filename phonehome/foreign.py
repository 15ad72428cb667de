"""Text of the other side as it may stand in a log. Pure.

Who answers has been sent the token, and may hand it back: a proxy that shows the request on its error page, a debugging
server, a pylb of another version. Logs are read by more people than secrets. So nothing of an answer is logged as it
came: it is ASCII, on one line, short, and a text that holds a piece of the token in a usual form is withheld as a whole.
Somebody who hides the token in a text on purpose can do so; but he has it, and needs no log of ours.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

MOST = 300  # characters of one text
PIECE = 12  # letters and digits of a token in a row; fewer may be its app's name, and what a text of pylb is about
WITHHELD = "[withheld: it repeats the token]"


def shown(value: object, token: str) -> str:
    """`value` if it is a text, as a log may have it; else nothing."""
    if not isinstance(value, str):
        return ""
    if _repeats(value, token):
        return WITHHELD
    if len(_bare(token)) < PIECE:
        # Whole words only: a token of one letter, as old deployments have them, would riddle every text.
        value = re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", "[token]", value) if token else value
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in value.strip()[:MOST])[:MOST]


def _repeats(text: str, token: str) -> bool:
    found = _bare(text)
    return any(form[start : start + PIECE] in found for form in _forms(token) for start in range(len(form) - PIECE + 1))


def _bare(text: str) -> str:
    """Without case, and without what a line break, a quote or an escape put between."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _forms(token: str) -> Iterator[str]:
    """As it is, backwards, in hex (which percent signs leave, too), and in base64 wherever it stood in what was encoded."""
    raw = token.encode()
    yield _bare(token)
    yield _bare(token)[::-1]
    yield raw.hex() if len(raw) >= PIECE else ""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw).decode()
        yield _bare(encoded[4 if before else 0 : -4])  # the ends are mixed with what stands beside it
