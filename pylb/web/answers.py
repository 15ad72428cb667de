"""Refusals as HTTP answers: one table from code to status, and two shapes (JSON, or one line of text)."""

import math

from pylb.core.errors import Code, Refused
from pylb.web.types import Answer, json_answer, text_answer

STATUS: dict[Code, int] = {
    Code.INVALID_JSON: 400,
    Code.INVALID: 422,
    Code.UNAUTHORIZED: 401,
    Code.SOURCE_FORBIDDEN: 403,
    Code.NAME_FORBIDDEN: 403,
    Code.PORT_FORBIDDEN: 403,
    Code.TARGET_FORBIDDEN: 403,
    Code.TARGET_REFUSED: 422,
    Code.PORT_OWNED: 409,
    Code.PORT_IN_USE: 409,
    Code.PORT_PRIVILEGED: 403,
    Code.CANNOT_BIND: 503,
    Code.NOT_FOUND: 404,
    Code.METHOD: 405,
    Code.TOO_LARGE: 413,
    Code.LENGTH_REQUIRED: 411,
    Code.MEDIA_TYPE: 415,
    Code.TIMEOUT: 408,
    Code.TOO_MANY: 429,
    Code.STATE_NOT_WRITABLE: 503,
    Code.STORE_UNAVAILABLE: 503,
    Code.UNAVAILABLE: 503,
}

# The exact words of adnanh/webhook, without a newline, because operators and monitors look for them.
LEGACY_UNAUTHORIZED = "Hook rules were not satisfied."
LEGACY_NOT_FOUND = "Hook not found."


def refusal_body(refused: Refused) -> dict[str, str]:
    """`{"error", "detail", "hint"}`; always all three, but the hint may be empty. `port` too, if it is about one."""
    body = {"error": str(refused.code), "detail": refused.detail, "hint": refused.hint}
    return body | {"port": refused.port} if refused.port else body


def json_refusal(refused: Refused, **headers: str) -> Answer:
    return json_answer(STATUS[refused.code], refusal_body(refused), **headers, **_standard_headers(refused))


def legacy_refusal(refused: Refused, **headers: str) -> Answer:
    """The refusal as one line, because its reader only sees what curl prints in the pod's log."""
    headers |= _standard_headers(refused)
    if refused.code is Code.UNAUTHORIZED:
        return text_answer(401, LEGACY_UNAUTHORIZED, **headers)
    line = refused.detail + (f" ({refused.hint})" if refused.hint else "")
    return text_answer(STATUS[refused.code], one_line(line) + "\n", **headers)


def refusal(path: str, refused: Refused, **headers: str) -> Answer:
    """The refusal in the shape that callers of `path` expect."""
    shape = legacy_refusal if path.startswith("/hooks/") else json_refusal
    return shape(refused, **headers)


def one_line(text: str) -> str:
    return " ".join(text.split())


def _standard_headers(refused: Refused) -> dict[str, str]:
    headers = {}
    if refused.code is Code.UNAUTHORIZED:
        headers["WWW_Authenticate"] = "Bearer"  # RFC 9110 11.6.1: a 401 must name a scheme
    if refused.retry_after is not None:
        headers["Retry_After"] = str(max(1, math.ceil(refused.retry_after)))
    return headers
