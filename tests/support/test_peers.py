"""A missing peer is a skip at home and a failure in CI."""

import pytest

from tests.support.peers import need


def test_a_program_that_is_there_is_found() -> None:
    assert need("sh").endswith("/sh")


@pytest.mark.parametrize(("ci", "outcome"), [("", "Skipped"), ("true", "Failed")])
def test_a_missing_program_skips_at_home_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch, ci: str, outcome: str) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(BaseException, match="no-such-program is not installed") as raised:
        need("no-such-program")
    assert raised.type.__name__ == outcome
