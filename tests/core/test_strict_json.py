"""JSON as calls bring it (RFC 8259), and what is refused although Python's parser would take it."""

import pytest

from pylb.core.errors import Code, Refused
from pylb.core.strict_json import DEEPEST, TOO_DEEP, strict_json


@pytest.mark.parametrize(
    ("begin", "end", "levels"),
    [(b"[", b"]", 1), (b'{"a":', b"}", 1), (b'[{"a": ', b"}]", 2), (b'[1, "x", {"b": 1, "a": ', b"}]", 2)],
)
def test_how_deep_a_body_may_be_does_not_depend_on_the_interpreter(begin: bytes, end: bytes, levels: int) -> None:
    most = DEEPEST // levels
    assert strict_json(begin * most + b"1" + end * most) is not None
    for times in (most + 1, 5 * most, 100_000):
        with pytest.raises(Refused) as refused:
            strict_json(begin * times + b"1" + end * times)
        assert (refused.value.code, refused.value.detail) == (Code.INVALID_JSON, TOO_DEEP)


def test_many_brackets_on_one_level_are_not_deep() -> None:
    assert strict_json(b"[" + b",".join([b"[{}]"] * 1000) + b"]") == [[{}]] * 1000
    assert len(strict_json(b'"' + b"[" * 1000 + b'"')) == 1000
