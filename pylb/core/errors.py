"""Why a call is refused: one closed list of codes, and one exception.

The codes are part of the API (`{"error": code, "detail": …, "hint": …}`); the web layer maps each to a status in one table.
"""

from enum import StrEnum


class Code(StrEnum):
    """What is wrong with a call. The text is the `error` field of the answer and a metric label."""

    INVALID_JSON = "invalid_json"
    INVALID = "invalid"  # a field is missing, unknown or out of its range
    UNAUTHORIZED = "unauthorized"
    SOURCE_FORBIDDEN = "source_forbidden"  # the token may not be used from the calling address
    NAME_FORBIDDEN = "name_forbidden"
    PORT_FORBIDDEN = "port_forbidden"
    TARGET_FORBIDDEN = "target_forbidden"  # outside the token's `targets` or `target_ports`
    TARGET_REFUSED = "target_refused"  # of a class that is never a target: link-local, a loop, …
    PORT_OWNED = "port_owned"
    PORT_IN_USE = "port_in_use"
    PORT_PRIVILEGED = "port_privileged"
    CANNOT_BIND = "cannot_bind"
    NOT_FOUND = "not_found"
    METHOD = "method_not_allowed"
    TOO_LARGE = "body_too_large"
    LENGTH_REQUIRED = "length_required"
    MEDIA_TYPE = "unsupported_media_type"
    TIMEOUT = "request_timeout"
    TOO_MANY = "too_many_requests"
    STATE_NOT_WRITABLE = "state_not_writable"
    STORE_UNAVAILABLE = "store_unavailable"  # a new name or port needs etcd
    UNAVAILABLE = "unavailable"


class Refused(Exception):  # noqa: N818 - a refused call is an answer, not an error of ours
    """The call was refused and changes nothing.

    `detail` says what and where, `hint` what to do; both are shown to the caller and to the operator and contain no secret.
    """

    def __init__(self, code: Code, detail: str, hint: str = "", *, retry_after: float | None = None, port: str = "") -> None:
        super().__init__(code, detail, hint)
        self.code = code
        self.detail = detail
        self.hint = hint
        self.retry_after = retry_after  # seconds; only with TOO_MANY and those of a 503
        self.port = port  # the frontend port that it is about, such as 443: without that one the call may succeed

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" + (f" ({self.hint})" if self.hint else "")


def break_cycles(error: BaseException) -> None:
    """Remove the exception's traceback and context.

    Code that stores an exception in a local variable makes a reference cycle through its own traceback. The cycle would live
    until the garbage collector runs, together with everything in those frames, such as the body of a call.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
