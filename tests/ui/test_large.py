"""Five hundred frontends that all change each second: the page stays usable, and nothing moves under the reader's hand."""

import json
import threading
from pathlib import Path

import pytest

from tests.ui.many import FRONTENDS, SERVERS, busy, rules
from tests.ui.showcase import Showcase
from tests.ui.watching import Watcher

UPDATES = 3


@pytest.mark.timeout(120)
def test_five_hundred_frontends_are_usable(tmp_path: Path, watcher: Watcher) -> None:
    page = watcher.page
    traffic = threading.Event()
    traffic.set()
    with Showcase(tmp_path, rules(FRONTENDS), lambda counters: busy(counters) if traffic.is_set() else None) as showcase:
        watcher.open(showcase.port)
        watcher.holds(f"document.querySelectorAll('.entry').length === {FRONTENDS}")
        assert page.locator("#frontends-count").inner_text() == str(FRONTENDS)
        # Each line has its text, also those far below, once there was time for them.
        watcher.holds(
            f"[...document.querySelectorAll('.entry .servers')].filter((one) => one.textContent).length === {FRONTENDS}"
        )
        page.evaluate("performance.clearMeasures('update')")
        watcher.counts_shifts()
        watcher.passes_updates(UPDATES)
        assert watcher.shifts() == [], "the layout jumps although nobody touched anything"
        measured = page.evaluate("performance.getEntriesByName('update').map(({duration, detail}) => ({duration, ...detail}))")
        updates = sorted(one["duration"] for one in measured if one["frontends"] == FRONTENDS and not one["whole"])
        assert len(updates) >= UPDATES - 1, measured
        _filter(watcher)
        _sort(watcher, traffic)
        # With the focus on a line, and sorted by a load that changes all the time: neither of them goes away.
        fold = page.locator(".entry .fold").nth(3)
        fold.focus()
        page.keyboard.press("Enter")
        name, top = fold.inner_text(), "document.activeElement.getBoundingClientRect().top"
        before = page.evaluate(top)
        watcher.passes_updates(UPDATES)
        assert page.evaluate("document.activeElement.textContent") == name
        assert page.evaluate(top) == before
        assert page.locator(".entry article.card tbody tr:not(.reason)").count() == SERVERS
        # As cards, too, with their servers.
        page.locator("#view-cards").click()
        watcher.holds(
            f"document.querySelectorAll('article.card tbody tr:not(.reason)').length === {FRONTENDS * SERVERS}", within=20_000
        )
        page.goto("about:blank")
    text = f"update median {updates[len(updates) // 2]:.0f} ms, most {updates[-1]:.0f} ms"
    print(f"\n{FRONTENDS} frontends, all changed: {text}")  # noqa: T201 - the figure is what it is for; pytest -s shows it
    # Script time, on a machine that others use too: a figure far above the budget means that it no longer holds.
    assert updates[len(updates) // 2] < 100


def _filter(watcher: Watcher) -> None:
    """It works on all of them, in sight or not, and what it shows is up to date."""
    page = watcher.page
    page.locator("#filter").fill(f"app-{FRONTENDS - 1}")
    shown = page.locator(".entry:visible")
    watcher.sees(page.locator("#frontends-count"), f"1 of {FRONTENDS}")
    assert page.locator("#list-spoken").inner_text() == f"1 of {FRONTENDS} frontends"
    watcher.sees(shown.locator(".fold").first, f"app-{FRONTENDS - 1}")  # what is out of sight is laid out a moment later
    before = shown.locator(".sessions").first.inner_text()
    watcher.holds(f"document.querySelector('.entry:not([hidden]) .sessions').textContent !== {json.dumps(before)}")
    page.locator("#filter").fill("")
    watcher.sees(page.locator("#frontends-count"), str(FRONTENDS))


def _sort(watcher: Watcher, traffic: threading.Event) -> None:
    page = watcher.page

    def first(column: str) -> str:
        return page.locator(f".entry .{column}").first.inner_text()

    name, load = (page.get_by_role("columnheader", name=name) for name in ("Frontend", "Sessions"))
    name.get_by_role("button").click()
    assert (name.get_attribute("aria-sort"), first("fold")) == ("ascending", "app-000")
    name.get_by_role("button").click()
    assert (name.get_attribute("aria-sort"), first("fold")) == ("descending", f"app-{FRONTENDS - 1}")
    assert page.locator("#list-spoken").inner_text() == "Sorted by name, descending"
    # By load, of numbers that stand still while they are compared: lines out of sight may be a second old.
    traffic.clear()
    watcher.passes_updates(2)
    page.locator("#sort").select_option("sessions")
    assert (load.get_attribute("aria-sort"), name.get_attribute("aria-sort")) == ("descending", None)
    loads = [int(text) for text in page.locator(".entry > .row > .sessions").all_text_contents()]
    assert len(loads) == FRONTENDS
    assert loads == sorted(loads, reverse=True)
    traffic.set()
