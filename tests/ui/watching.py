"""One page of the browser, and what a test asks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.support.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page, Request

WITHIN = 5000.0  # ms
MADE_BY_BROWSER = {"blob", "data"}  # schemes that are no request to anybody


class Watcher:
    """`complaints`: whatever the browser wrote to its console as a warning or an error, CSP violations included."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.origins: set[str] = set()
        self.origin = ""
        page.set_default_timeout(WITHIN)
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", self._requested)

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("warning", "error"):
            self.complaints.append(message.text)

    def _requested(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in MADE_BY_BROWSER and url.netloc:
            self.origins.add(f"{url.scheme}://{url.netloc}")

    def open(self, port: int, path: str = "/", host: str = "127.0.0.1") -> None:
        self.origin = f"http://{host}:{port}"
        self.page.goto(self.origin + path)
        self.page.wait_for_selector('#link[data-state="live"]')

    # ------------------------------------------------------------ what is seen

    @property
    def sentence(self) -> str:
        return (self.page.locator("#sentence").text_content() or "").strip()

    def card(self, port: int) -> Locator:
        return self.page.locator("article.card").filter(has=self.page.locator(".port", has_text=f":{port}"))

    def row(self, port: int, name: str) -> Locator:
        return self.card(port).locator("tbody tr").filter(has_text=name)

    def sees(self, where: Locator, text: str, *, within: float = WITHIN) -> None:
        where.filter(has_text=text).first.wait_for(timeout=within)

    def holds(self, expression: str, *, within: float = WITHIN) -> None:
        """Until it is true in the page; asked from here, for the page's policy allows no eval to Playwright's own waiting."""
        eventually(lambda: self.page.evaluate(expression), within=within / 1000, what=expression)

    def clipboard(self) -> str:
        found: str = self.page.evaluate("navigator.clipboard.readText()")
        return found

    def copied_by(self, button: Locator) -> str:
        """What a click puts into the clipboard."""
        self.page.evaluate("navigator.clipboard.writeText('')")
        button.click()
        self.holds("navigator.clipboard.readText().then((text) => text !== '')")
        return self.clipboard()

    # ------------------------------------------------------------ over some seconds

    def passes_updates(self, count: int) -> None:
        """Until the page has shown so many further seconds."""
        points = "performance.getEntriesByName('update').filter((one) => one.detail.point).length"
        self.holds(f"{points} >= {self.page.evaluate(points) + count}", within=20_000)

    def counts_shifts(self) -> None:
        """From now on: whatever changes its place without the reader's doing (layout-shift of the browser)."""
        self.page.evaluate(
            """() => {
              window.shifts = [];
              const place = ({ node }) => node?.id || node?.className || node?.nodeName || "gone";
              const take = (entry) => { if (!entry.hadRecentInput) shifts.push(`${entry.value} ${entry.sources.map(place)}`); };
              new PerformanceObserver((list) => list.getEntries().forEach(take)).observe({ type: "layout-shift" });
            }"""
        )

    def shifts(self) -> list[str]:
        found: list[str] = self.page.evaluate("shifts")
        return found

    def violations(self) -> list[str]:
        """What axe-core finds wrong with the page as it is, in both colour schemes."""
        from axe_playwright_python.sync_playwright import Axe

        found = []
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            results: dict[str, Any] = Axe().run(self.page).response
            assert results["passes"], "axe-core has looked at nothing"
            for one in results["violations"]:
                places = [f"{node['target']}: {node['failureSummary']}" for node in one["nodes"][:3]]
                found.append(f"{scheme}: {one['id']}: {one['help']}: {places}")
        self.page.emulate_media(color_scheme="light")
        return found
