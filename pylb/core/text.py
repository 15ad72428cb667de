"""Text from outside, made safe to show: on a terminal, in a log, in an answer that is read line by line.

Characters that drive a terminal, break a line, or are there without being seen (and may turn the order of what is) become
escapes as in Python: `\\x1b`, `\\u202e`. Everything else stays as it is.
"""

_RANGES = (
    (0x00, 0x1F),  # C0
    (0x7F, 0x9F),  # DEL and C1: 0x9b is a CSI of one character
    (0xAD, 0xAD),
    (0x61C, 0x61C),
    (0x180E, 0x180E),
    (0x200B, 0x200F),  # of no width; marks of direction
    (0x2028, 0x202E),  # line and paragraph; embeddings and overrides of direction
    (0x2060, 0x206F),
    (0xD800, 0xDFFF),  # surrogates: what was no UTF-8, and cannot be written as such
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
    (0xE0000, 0xE007F),  # tags
)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


ESCAPES = {code: _escape(code) for low, high in _RANGES for code in range(low, high + 1)}
_BETWEEN_LINES = {code: escape for code, escape in ESCAPES.items() if code != ord("\n")}


def visible(text: str) -> str:
    """One line of it."""
    return text.translate(ESCAPES)


def visible_lines(text: str) -> str:
    """With the line breaks that it has: for what was put together from lines that are `visible`."""
    return text.translate(_BETWEEN_LINES)
