"""Five hundred frontends that all change each second: the page stays usable."""

import json
from pathlib import Path

import pytest

from tests.ui.many import FRONTENDS, SERVERS, busy, rules
from tests.ui.showcase import Showcase
from tests.ui.watching import Watcher

UPDATES = 3


@pytest.mark.timeout(120)
def test_five_hundred_frontends_are_usable(tmp_path: Path, watcher: Watcher) -> None:
    page = watcher.page
    with Showcase(tmp_path, rules(FRONTENDS), busy) as showcase:
        watcher.open(showcase.port)
        watcher.holds(f"document.querySelectorAll('article.card').length === {FRONTENDS}")
        assert page.locator("#frontends-count").inner_text() == str(FRONTENDS)
        watcher.holds(f"performance.getEntriesByName('update').filter((one) => one.detail.point).length >= {UPDATES}")
        measured = page.evaluate("performance.getEntriesByName('update').map(({duration, detail}) => ({duration, ...detail}))")
        updates = sorted(one["duration"] for one in measured if one["frontends"] == FRONTENDS and not one["whole"])
        assert len(updates) >= UPDATES - 1, measured
        # The filter works on all of them, in sight or not, and what it shows is up to date.
        page.locator("#filter").fill(f"app-{FRONTENDS - 1}")
        shown = page.locator("article.card:visible")
        watcher.sees(page.locator("#frontends-count"), f"1 of {FRONTENDS}")
        watcher.sees(shown.locator(".name").first, f"app-{FRONTENDS - 1}")  # what is out of sight is laid out a moment later
        before = shown.locator(".numbers").inner_text()
        watcher.holds(f"document.querySelector('article.card:not([hidden]) .numbers').textContent !== {json.dumps(before)}")
        assert "new/s" in shown.locator(".numbers").inner_text()
        page.locator("#filter").fill("")
        watcher.sees(page.locator("#frontends-count"), str(FRONTENDS))
        # Each card has its servers, also those far below, once there was time for them.
        watcher.holds(f"document.querySelectorAll('article.card tbody tr').length === {FRONTENDS * SERVERS}")
        whole = next(one["duration"] for one in measured if one["whole"])
        page.goto("about:blank")
    text = f"first picture {whole:.0f} ms, update median {updates[len(updates) // 2]:.0f} ms, most {updates[-1]:.0f} ms"
    print(f"\n{FRONTENDS} frontends, all changed: {text}")  # noqa: T201 - the figure is what it is for; pytest -s shows it
    # Script time, on a machine that others use too: a figure far above the budget means that it no longer holds.
    assert updates[len(updates) // 2] < 100
