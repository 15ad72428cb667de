"""The status page in a real browser: Debian's Chromium, headless, driven by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.app.conftest import echo_port, processes, pylb
from tests.support.peers import need, need_package
from tests.ui.watching import Watcher

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["echo_port", "processes", "pylb"]  # fixtures

# No sandbox: the tests may run as root, where it does not start. The rest keeps a browser from calling home.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--disable-lcd-text"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = need("chromium")
    need_package("playwright", "make test-ui")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def watcher(browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watcher]:
    """A page of its own, and at its end: a picture of it, no complaint of the browser, no request elsewhere."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
    watcher = Watcher(context.new_page())
    yield watcher
    watcher.page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    watcher.page.goto("about:blank")  # lets go of the stream before pylb ends
    context.close()
    assert not watcher.complaints
    assert watcher.origins <= {watcher.origin}, "a request left the page's origin"
