"""JSON as calls bring it: whatever two readers could understand in two ways is refused."""

import json
from itertools import chain
from typing import Any

from pylb.core.errors import Code, Refused

DEEPEST = 100  # arrays and objects inside each other; the calls have four
TOO_DEEP = "the body is nested too deeply"


def strict_json(body: bytes) -> Any:
    """JSON according to RFC 8259: UTF-8, no NaN, no duplicate key, no half of a surrogate pair, not too deep.

    Raises Refused: INVALID_JSON, or INVALID for a text that cannot be written as UTF-8.
    """
    try:
        data = json.loads(body.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=_no_constant)
        json.dumps(data, ensure_ascii=False).encode()  # answers, logs and the snapshot are UTF-8 too
    except RecursionError:
        raise Refused(Code.INVALID_JSON, TOO_DEEP) from None
    except UnicodeEncodeError:
        detail = "a text of the body has half of a surrogate pair, so it cannot be written as UTF-8"
        raise Refused(Code.INVALID, detail, r"write the character itself, or both halves: \ud83d\ude00") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise Refused(Code.INVALID_JSON, f"the body is not JSON: {error}") from None
    # Where the parser itself gives up differs between versions of Python by a factor of ten.
    if body.count(b"[") + body.count(b"{") > DEEPEST and _is_deeper_than(DEEPEST, data):
        raise Refused(Code.INVALID_JSON, TOO_DEEP)
    return data


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `object_pairs_hook`. Raises Refused INVALID_JSON for a duplicate key: a reader of the first and a
    reader of the last would see two different calls."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise Refused(Code.INVALID_JSON, f"the body is not JSON: the key {key[:40]!r} appears twice")
        found[key] = value
    return found


def _is_deeper_than(most: int, data: Any) -> bool:
    """Without recursion: one round for each level, over the arrays and objects on it."""
    level: list[Any] = [[data]]
    for _ in range(most + 1):
        children = chain.from_iterable(each.values() if isinstance(each, dict) else each for each in level)
        level = [child for child in children if isinstance(child, dict | list)]
    return bool(level)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")
