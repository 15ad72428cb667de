"""Finding who answers."""

import pytest

from pylb.web.types import Answer, Call, NoRoute, Router, text_answer


async def thing(_call: Call) -> Answer:
    return text_answer(200, "thing")


async def put(_call: Call) -> Answer:
    return text_answer(200, "put")


ROUTER = Router({"GET /v1/thing": thing, "PUT /v1/names/{}/{}": put, "DELETE /v1/names/{}/{}": put})


def test_segments_are_matched_and_decoded_one_by_one() -> None:
    assert ROUTER.find("PUT", "/v1/names/a%2Fb/c%20d") == (put, ("a/b", "c d"))


def test_a_get_route_answers_head() -> None:
    assert ROUTER.find("HEAD", "/v1/thing") == (thing, ())


@pytest.mark.parametrize("path", ["/", "", "/v1/names", "/v1/names/a", "/v1/names//b", "/v1/names/a/b/c", "/v1/thing/"])
def test_a_path_that_is_not_exactly_a_route_is_unknown(path: str) -> None:
    with pytest.raises(NoRoute) as missing:
        ROUTER.find("PUT", path)
    assert missing.value.allow == ()


def test_a_wrong_method_learns_the_right_ones() -> None:
    with pytest.raises(NoRoute) as missing:
        ROUTER.find("POST", "/v1/names/a/b")
    assert missing.value.allow == ("PUT", "DELETE")
    with pytest.raises(NoRoute) as missing:
        ROUTER.find("POST", "/v1/thing")
    assert missing.value.allow == ("GET", "HEAD")
