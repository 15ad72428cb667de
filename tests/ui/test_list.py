"""Fifty frontends: the list by eye, by keyboard and by screen reader, and other pylbs beside this one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pylb.core.address import Address, Listen
from pylb.core.auth import Keyring
from pylb.core.policy import Policy, Rules, StaticFrontend, StaticServer
from tests.support.ports import PORTS
from tests.ui.showcase import Showcase
from tests.ui.town import AGO, IP, LOST, Town, peers, rules
from tests.ui.watching import Watcher

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Locator

COUNT = 50
HEADINGS = ["Port", "Frontend", "State", "Servers", "Sessions", "New/s", "In/s", "Out/s", "What is wrong"]
# A browser of tomorrow, which notes what is drawn as text.
TOMORROW = """
  const Today = Date;
  window.Date = class extends Today {
    constructor(...given) { super(...(given.length ? given : [Today.now() + 86_400_000])); }
  };
  window.drawn = new Set();
  const fill = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, ...more) { drawn.add(text); fill.call(this, text, ...more); };
"""
IS_NAMED = """async ([frontend, texts]) => {
  const { isNamed } = await import(document.querySelector('script[type="module"]').src.replace("page.js", "words.js"));
  return texts.filter((text) => isNamed(frontend, text));
}"""
FOCUSED = "document.activeElement.closest('.entry')?.querySelector('.fold').textContent"


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Showcase]:
    town = Town()
    made = {"prepare": town.quarter, "ask": town.answers, "ago": AGO, "peers": peers}
    with Showcase(tmp_path_factory.mktemp("town"), rules(COUNT), town.traffic, **made) as showcase:
        yield showcase


def names(watcher: Watcher) -> list[str]:
    return watcher.page.locator(".entry .fold").all_text_contents()


def line(watcher: Watcher, name: str) -> Locator:
    return watcher.page.locator(".entry").filter(has=watcher.page.get_by_role("button", name=name, exact=True))


def test_many_frontends_are_a_list_with_the_trouble_on_top(town: Showcase, watcher: Watcher) -> None:
    watcher.open(town.port)
    page = watcher.page
    watcher.sees(page.locator("#frontends-count"), str(COUNT))
    table = page.get_by_role("table", name="Frontends 50")
    assert [heading.inner_text().strip() for heading in table.get_by_role("columnheader").all()] == HEADINGS
    watcher.holds(f"document.querySelectorAll('.entry[data-health]').length === {COUNT}")
    found = names(watcher)
    assert found[:4] == ["archive-https", "library-http", "mail-https", "museum-mqtt"]  # down, then degraded, by their ports
    assert found[4:6] == ["shop-https", "wiki-https"]
    lost = line(watcher, "mail-https")
    assert lost.locator(".why").inner_text() == "lost 203.0.113.7:30002 (it accepts no connections: timeout)"
    assert (lost.locator(".state").inner_text(), lost.locator(".servers").inner_text()) == ("degraded", "1/2")
    page.locator("#troubled").check()
    watcher.sees(page.locator("#frontends-count"), f"{len(LOST) + 1} of {COUNT}")
    page.locator("#troubled").uncheck()
    page.locator("#filter").fill("no such thing")
    assert page.locator("#none").is_visible()
    page.locator("#filter").fill("203.0.113.8:30017")  # of a server
    watcher.sees(page.locator("#frontends-count"), f"1 of {COUNT}")
    # What one has chosen is still so after a reload of the page.
    page.locator("#sort").select_option("name")
    page.locator("#reverse").click()
    page.reload()
    watcher.holds(f"document.querySelectorAll('.entry').length === {COUNT}")
    assert names(watcher) == sorted(names(watcher), reverse=True)
    assert page.get_by_role("columnheader", name="Frontend").get_attribute("aria-sort") == "descending"


def test_a_line_unfolds_to_all_that_a_card_shows_and_links_lead_to_it(town: Showcase, watcher: Watcher) -> None:
    watcher.open(town.port)
    page = watcher.page
    entry = line(watcher, "library-http")
    fold = entry.locator(".fold")
    entry.locator(".why").click()  # anywhere in the line
    assert fold.get_attribute("aria-expanded") == "true"
    assert entry.locator("tbody tr:not(.reason)").count() == 2
    watcher.sees(entry.locator(".reason").first, "a firewall drops it")
    command = watcher.copied_by(entry.get_by_role("button", name="drain").first)
    assert command == "pylb ctl drain library-http/node-7 -c /etc/pylb/pylb.yaml"
    fold.click()
    assert (fold.get_attribute("aria-expanded"), entry.locator("article").count()) == ("false", 0)
    # A link to each that is in trouble; it finds its frontend through a filter.
    page.locator("#filter").fill("shop")
    jump = page.get_by_role("navigation", name="On this page")
    jump.get_by_role("link", name=re.compile(r"museum-mqtt$")).click()
    assert page.evaluate(FOCUSED) == "museum-mqtt"
    assert page.locator("#filter").input_value() == ""
    watcher.sees(line(watcher, "museum-mqtt").locator("article .numbers"), "sessions")
    assert page.evaluate("document.activeElement.getBoundingClientRect().top") > page.locator("#bar").bounding_box()["height"]  # type: ignore[index]
    # The address can name a port, for whoever comes from an alert.
    port = line(watcher, "wiki-https").locator(".port").inner_text()
    page.goto("about:blank")
    watcher.open(town.port, f"/#{port}")
    watcher.holds(f"{FOCUSED} === 'wiki-https'")
    # As cards, the same links.
    page.locator("#view-cards").click()
    assert page.locator("#view-cards").get_attribute("aria-pressed") == "true"
    jump.get_by_role("link", name=re.compile(r"museum-mqtt$")).click()
    watcher.holds("document.activeElement.closest('article')?.querySelector('.name').textContent === 'museum-mqtt'")


def test_the_list_is_walked_by_keyboard_and_keeps_the_focus_while_frontends_come_and_go(
    town: Showcase, watcher: Watcher
) -> None:
    watcher.open(town.port)
    page = watcher.page
    watcher.holds(f"document.querySelectorAll('.entry[data-health]').length === {COUNT}")
    listed = names(watcher)
    page.get_by_role("link", name="Skip the frontends").focus()
    for _ in range(6):  # the sortable headings; the next stop is the first line
        page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate(FOCUSED) == listed[0]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key, place in {"ArrowDown": 1, "End": -1, "Home": 0}.items():
        page.keyboard.press(key)
        assert page.evaluate(FOCUSED) == listed[place]
    for _ in range(10):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    here = listed[9]
    assert page.evaluate(FOCUSED) == here
    everybody = rules(COUNT)

    def reload(gone: set[str]) -> None:
        frontends = tuple(one for one in everybody.frontends if one.name not in gone)
        town.call(town.registry.rules.reload(replace(everybody, frontends=frontends), Keyring(())))
        watcher.holds(f"document.querySelectorAll('.entry').length === {COUNT - len(gone)}")

    reload({listed[4], listed[5], listed[20]})
    assert page.evaluate(FOCUSED) == here
    reload(set())
    assert page.evaluate(FOCUSED) == here
    assert names(watcher) == listed
    reload({here})  # with the focus on it: the next one has it
    assert page.evaluate(FOCUSED) == listed[10]
    reload(set())


def test_other_pylbs_are_shown_beside_this_one(town: Showcase, watcher: Watcher) -> None:
    watcher.open(town.port)
    page = watcher.page
    items = page.get_by_role("region", name="Other load balancers").get_by_role("listitem")
    assert [item.locator(".pill").inner_text() for item in items.all()] == ["healthy", "degraded", "no answer"]
    assert items.first.get_by_role("link", name="lb-2").get_attribute("href") == "https://lb-2.example.net/"
    assert items.first.locator(".more").inner_text() == "lb-2.example.net · 0.2.0 · 1873 sessions"
    assert items.last.locator(".what").inner_text() == "no answer within 3 s"


def test_what_happened_on_another_day_is_below_its_date_and_the_time_axis_has_hours_alone(
    town: Showcase, watcher: Watcher
) -> None:
    page = watcher.page
    page.add_init_script(TOMORROW)
    watcher.open(town.port)
    watcher.passes_updates(1)
    labels = {text for text in page.evaluate("[...drawn]") if " " not in text and ":" in text}
    assert {text for text in page.evaluate("[...drawn]") if re.search("[A-Z][a-z]", text)} == set(), "a month on an axis"
    assert labels, "no hour on an axis"
    events = page.locator("#events > li")
    assert re.fullmatch(r"\d\d [A-Z][a-z]+", events.first.inner_text())
    assert events.first.get_attribute("class") == "day"
    assert len(page.locator("#events > .day").all()) <= 2  # the quarter of an hour may have crossed a midnight
    assert re.fullmatch(r"\d\d:\d\d:\d\d", events.nth(1).locator("time").inner_text())


def test_a_range_is_found_by_each_of_its_ports(tmp_path: Path, watcher: Watcher) -> None:
    first = PORTS[0] + COUNT
    places = {"media": Listen("tcp", IP, first, first + 4), "chat": Listen("tcp", IP, first + 5)}
    node = (StaticServer(Address("203.0.113.7", 30000)),)
    static = Rules(tuple(StaticFrontend(name, listen, node) for name, listen in places.items()), Policy(bind=IP))
    page = watcher.page
    focused = "document.activeElement.closest('article')?.querySelector('.name').textContent"
    with Showcase(tmp_path, static, lambda _counters: None, ask=Town().answers) as show:
        for text in (f":{first + 2}", f":{first}-{first + 4}", f"{IP}:{first}-{first + 4}"):
            watcher.open(show.port, f"/#{text}")
            watcher.holds(f"{focused} === 'media'")
            page.goto("about:blank")
        watcher.open(show.port, f"/#:{first + 5}")
        watcher.holds(f"{focused} === 'chat'")
        page.locator("#filter").fill(str(first + 3))
        watcher.sees(page.locator("#frontends-count"), "1 of 2")
        udp = {"port": 53, "protocol": "udp", "listen": "*:53/udp"}
        assert page.evaluate(IS_NAMED, [udp, ["53", "53/udp", "*:53/udp", "53/tcp", "5"]]) == ["53/udp", "*:53/udp"]
        page.goto("about:blank")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_amiss_for_a_screen_reader_and_nothing_is_wider_than_the_window(
    town: Showcase, watcher: Watcher, width: int
) -> None:
    watcher.page.set_viewport_size({"width": width, "height": 844})
    watcher.open(town.port)
    line(watcher, "library-http").locator(".fold").click()
    assert watcher.violations() == []
    watcher.page.locator("#view-cards").click()
    assert watcher.page.evaluate("document.documentElement.scrollWidth") == width
    watcher.page.locator("#view-list").click()
    assert watcher.page.evaluate("document.documentElement.scrollWidth") == width
