"""What a list lacks is missing, not gone."""

from __future__ import annotations

from phonehome.controller.belief import CONFIRM_AGAIN, HOLD, Missing, Nodes


def confirm(missing: Missing, key: str, now: float) -> None:
    assert key in missing.questions(now)
    missing.answered(key, now, exists=False)


def test_a_missing_service_is_released_when_it_was_twice_not_found() -> None:
    missing = Missing()
    missing.update({"default.web"}, 0)
    confirm(missing, "default.web", 0)
    assert missing.released(10, 1) == []
    assert missing.questions(CONFIRM_AGAIN - 1) == []
    confirm(missing, "default.web", CONFIRM_AGAIN)
    assert missing.released(10, CONFIRM_AGAIN) == ["default.web"]


def test_one_that_exists_after_all_or_comes_back_is_not_released() -> None:
    missing = Missing()
    missing.update({"a", "b"}, 0)
    confirm(missing, "a", 0)
    missing.answered("b", 0, exists=None)
    missing.answered("a", CONFIRM_AGAIN, exists=True)
    confirm(missing, "a", 2 * CONFIRM_AGAIN)
    assert missing.released(10, 2 * CONFIRM_AGAIN) == []
    missing.update({"b"}, 2 * CONFIRM_AGAIN)
    missing.update({"a", "b"}, 2 * CONFIRM_AGAIN + 1)
    assert "a" in missing.questions(2 * CONFIRM_AGAIN + 1), "from the beginning"


def test_more_than_half_are_held_for_an_hour() -> None:
    missing, names = Missing(), {"a", "b", "c"}
    missing.update(names, 0)
    for now in (0.0, CONFIRM_AGAIN):
        for name in names:
            confirm(missing, name, now)
    assert missing.is_holding(5)
    assert missing.released(5, HOLD - 1) == []
    assert missing.released(6, CONFIRM_AGAIN) == ["a", "b", "c"], "half of them is no mass"
    assert missing.released(5, HOLD) == ["a", "b", "c"]


def names(nodes: Nodes[str], usable: str, now: float) -> str:
    return "".join(sorted(nodes.judge(((one, one) for one in usable), now)[0]))


def test_a_sudden_loss_of_most_nodes_has_no_effect_for_an_hour() -> None:
    nodes: Nodes[str] = Nodes()
    assert names(nodes, "abcde", 0) == "abcde"
    assert names(nodes, "ab", 1) == "abcde"
    assert names(nodes, "abf", 2) == "abcdef", "new ones count at once"
    assert names(nodes, "abf", HOLD) == "abcdef"
    assert names(nodes, "abf", HOLD + 1) == "abf"


def test_nodes_that_come_back_end_the_doubt() -> None:
    nodes: Nodes[str] = Nodes()
    names(nodes, "abcde", 0)
    assert names(nodes, "a", 1) == "abcde"
    assert names(nodes, "abcd", 2) == "abcd"
    assert names(nodes, "a", HOLD) == "abcd", "a new doubt has a new hour"


def test_the_last_nodes_are_never_given_up() -> None:
    nodes: Nodes[str] = Nodes()
    assert names(nodes, "", 0) == ""
    assert names(nodes, "a", 0) == "a"
    assert names(nodes, "", 1) == "a"
    assert names(nodes, "", 3 * HOLD) == "a"
    assert names(nodes, "b", 3 * HOLD + 1) == "b"


def test_one_node_after_another_is_an_ordinary_day() -> None:
    nodes: Nodes[str] = Nodes()
    assert [names(nodes, usable, 0) for usable in ("abcde", "abcd", "abc", "ab", "a")] == ["abcde", "abcd", "abc", "ab", "a"]
