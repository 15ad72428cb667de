"""Text from the other side, made safe for a log. Pure.

Whoever answers has received the token, and may send it back: a proxy that shows the request on its error page, a debugging
server, a pylb of another version. More people read logs than secrets. So no text of an answer is logged as it came: it
becomes one short line of ASCII, and a text that contains a piece of the token in a usual form is withheld as a whole.
Somebody could hide the token in a text on purpose; but he has the token already, and does not need our log.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator

MOST = 300  # characters of one text
PIECE = 12  # letters and digits of a token in a row; a shorter piece may be the app's name, and then texts of pylb contain it
WITHHELD = "[withheld: it repeats the token]"


def sanitized(value: object, token: str) -> str:
    """`value`, if it is a text, made safe for a log; else an empty text."""
    if not isinstance(value, str):
        return ""
    if _repeats(value, token):
        return WITHHELD
    if len(_bare(token)) < PIECE:
        # Whole words only: a token of one letter, which old deployments have, would hit nearly every text.
        value = re.sub(rf"(?<!\w){re.escape(token)}(?!\w)", "[token]", value) if token else value
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in value.strip()[:MOST])[:MOST]


def _repeats(text: str, token: str) -> bool:
    found = _bare(text)
    return any(form[start : start + PIECE] in found for form in _forms(token) for start in range(len(form) - PIECE + 1))


def _bare(text: str) -> str:
    """In one case, and without characters that a line break, a quote or an escape may have added."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _forms(token: str) -> Iterator[str]:
    """The token as it is, backwards, in hex (also from percent-encoding), and in base64 at any offset of the encoded text."""
    raw = token.encode()
    yield _bare(token)
    yield _bare(token)[::-1]
    yield raw.hex() if len(raw) >= PIECE else ""
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + raw).decode()
        yield _bare(encoded[4 if before else 0 : -4])  # the ends are mixed with the neighbouring bytes
