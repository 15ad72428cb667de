"""Text from outside, made safe to show: on a terminal, in a log, in an answer that is read line by line.

Characters that control a terminal, break a line or are invisible (and may reverse the order of the visible ones) become
escapes as in Python: `\\x1b`, `\\u202e`. Everything else stays as it is.
"""

import re

_RANGES = (
    (0x00, 0x1F),  # C0
    (0x7F, 0x9F),  # DEL and C1: 0x9b is a CSI of one character
    (0x2028, 0x202E),  # line and paragraph separators; embeddings and overrides of direction
    (0xD800, 0xDFFF),  # surrogates: bytes that were not UTF-8, which cannot be written as UTF-8
    (0xFFF9, 0xFFFB),
    (0x13430, 0x1343F),  # format controls of hieroglyphs
    # Shown as nothing: Default_Ignorable_Code_Point (Unicode 16, DerivedCoreProperties.txt).
    (0xAD, 0xAD),
    (0x34F, 0x34F),
    (0x61C, 0x61C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)


# Not a table for str.translate: its 6,600 entries would take 1.2 MiB in every worker.
_HARMFUL = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in _RANGES) + "]")
_HARMFUL_IN_LINES = re.compile(f"(?!\n){_HARMFUL.pattern}")


_SPANS = ((86_400, "day", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(text: str) -> str:
    """The text as one line, with escapes in place of control characters."""
    if text.isascii() and text.isprintable():  # nearly all; the expression tries each character against thirty ranges
        return text
    return _HARMFUL.sub(_escape, text)


def visible_lines(text: str) -> str:
    """With its line breaks: for text that was assembled from lines that are `visible`."""
    return _HARMFUL_IN_LINES.sub(_escape, text)


def whole_number(text: str, most: int) -> int | None:
    """0 to `most` in plain decimal; None for anything else, however long. (`int` accepts the digits of all scripts, `isdigit`
    accepts some that `int` does not, and more than 4,300 digits are a ValueError.)"""
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        return None
    return number if (number := int(text)) <= most else None


def counted(number: int, noun: str) -> str:
    """ "1 session", "2 sessions"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def span(seconds: float) -> str:
    """A duration as people write it, in at most two units: "12 h", "2 min 30 s", "7 days", "1.5 s", "40 ms"."""
    ms = round(max(0.0, seconds) * 1000)
    if 0 < ms < 1000:
        return f"{ms} ms"
    if ms < 10_000:
        return f"{ms / 1000:.3g} s"
    rest = round(ms / 1000)
    for size, unit, smaller, smaller_unit in _SPANS:
        if rest >= size:
            whole, part = rest // size, rest % size // smaller
            text = counted(whole, unit) if unit == "day" else f"{whole} {unit}"
            return f"{text} {part} {smaller_unit}" if part else text
    return f"{rest} s"


def ago(seconds: float) -> str:
    """ "3 s ago": of something that was so long ago by some clock, which is not asked for milliseconds."""
    return f"{span(round(max(0.0, seconds)))} ago"
