"""Why pylb does not start, or does not go on."""


class CannotStart(Exception):  # noqa: N818 - a condition, for the operator in one line
    """The text says what, where, and what to do."""


class InternalError(Exception):
    """A bug made a part of pylb fail and took the rest with it; the log has the traceback."""
