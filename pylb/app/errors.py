"""Why a pylb does not run."""


class CannotStart(Exception):  # noqa: N818 - a condition, for the operator in one line
    """The text says what, where, and what to do."""


class Broken(Exception):  # noqa: N818 - as above
    """A part of pylb failed by a bug and took the rest with it; the log has the traceback."""
