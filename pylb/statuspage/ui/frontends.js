// The frontends, as cards or as a list, keyed and changed in place. Of hundreds, only those in sight are updated at once;
// the others follow in the remaining time, so that an update never exceeds BUDGET.

import { Card } from "./card.js";
import { arrange, byId, flag, make, write } from "./dom.js";
import { Line } from "./list.js";
import { ORDERS, comparing, troubled } from "./order.js";
import { Toolbar } from "./toolbar.js";
import { isNamed, portOf } from "./words.js";

const BUDGET = 25; // ms of script for one update
const FEW = 12; // frontends that are shown as cards; more of them begin as a list
const PATIENCE = 10_000; // ms after the last touch in which nothing moves under the reader's hand
const RESTLESS = 5; // seconds between two orders by load
const MOST_LINKS = 8; // to frontends in trouble

export class Frontends {
  constructor(model) {
    this.model = model;
    this.shown = new Map(); // a Card or a Line by the frontend's key
    this.pending = new Set();
    this.open = new Set();
    this.links = new Map();
    this.touched = -PATIENCE;
    this.sorted = 0; // seconds since the last order
    this.disordered = false;
    this.sight = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "200px" });
    this.toolbar = new Toolbar((what) => this.#chose(what));
    this.#watchReader();
    this.#useView();
  }

  #watchReader() {
    for (const kind of ["pointermove", "keydown", "focusin"]) {
      byId("items").addEventListener(kind, () => (this.touched = performance.now()), { passive: true });
    }
    byId("lines").addEventListener("keydown", (event) => this.#walk(event));
    byId("jump").addEventListener("click", (event) => {
      const key = event.target.closest("a")?.dataset.key;
      if (key === undefined) return;
      event.preventDefault(); // the element may not be there yet, and a second click does not change the hash
      history.replaceState(null, "", `#${key}`);
      this.reveal(key);
    });
    byId("more-trouble").addEventListener("click", () => {
      this.toolbar.clear(true);
      byId("frontends").focus();
    });
    addEventListener("hashchange", () => this.revealHash());
    // What sticks to the top of the window covers neither a heading nor what has the focus.
    const bar = byId("bar");
    new ResizeObserver(() => {
      const height = getComputedStyle(bar).position === "sticky" ? bar.offsetHeight : 0;
      document.documentElement.style.setProperty("--bar", `${height}px`);
    }).observe(bar);
  }

  /** `dirty`: keys of frontends that changed, came or went. */
  update(dirty) {
    const { frontends } = this.model.tables;
    if (frontends.size > FEW) this.toolbar.suggest("list");
    let moved = false;
    for (const key of dirty) {
      if (!frontends.has(key)) {
        moved = this.#remove(key) || moved;
      } else {
        if (!this.shown.has(key)) {
          this.#add(key);
          moved = true;
        } else if (this.toolbar.by === "trouble" && this.shown.get(key).health !== frontends.get(key).health) this.disordered = true;
        this.shown.get(key).health = frontends.get(key).health;
        this.pending.add(key);
      }
    }
    this.#order(moved);
    this.#link();
    this.work();
    this.#count();
  }

  /** Brings what is shown up to date, first what is in sight, for at most BUDGET. */
  work() {
    const until = performance.now() + BUDGET;
    for (const inSight of [true, false]) {
      for (const key of this.pending) {
        const one = this.shown.get(key);
        if (one.visible !== inSight) continue;
        if (performance.now() > until) return;
        this.pending.delete(key);
        one.render();
        this.#filter(one);
      }
    }
  }

  /** Once a second: leases and ages of what is in sight, and an order that follows the load. */
  tick() {
    for (const one of this.shown.values()) if (one.visible) one.tick();
    if (this.pending.size > 0) this.work();
    this.sorted += 1;
    if (ORDERS[this.toolbar.by].restless && this.sorted >= RESTLESS) this.disordered = true;
    this.#order(false);
    this.#count();
  }

  // ------------------------------------------------------------ which are there

  #add(key) {
    const one = this.list ? new Line(key, this.model, this.open) : new Card(key, this.model);
    this.shown.set(key, one);
    this.sight.observe(one.element);
  }

  #remove(key) {
    const one = this.shown.get(key);
    if (one === undefined) return false;
    this.sight.unobserve(one.element);
    if (one.element.contains(document.activeElement)) (this.#beside(one.element, 1) ?? this.#beside(one.element, -1) ?? byId("frontends")).focus();
    this.shown.delete(key);
    this.pending.delete(key);
    this.open.delete(key);
    return true;
  }

  #useView() {
    this.list = this.toolbar.view === "list";
    byId("list").hidden = !this.list;
    byId("cards").hidden = this.list;
    this.sight.disconnect();
    this.shown.clear();
    for (const root of [byId("cards"), byId("lines")]) root.replaceChildren();
    for (const key of this.model.tables.frontends.keys()) {
      this.#add(key);
      this.pending.add(key);
    }
  }

  #chose(what) {
    if (what === "view") {
      this.#useView();
      this.work();
    }
    if (what === "filter") {
      for (const one of this.shown.values()) this.#filter(one);
      this.#count();
      write(byId("list-spoken"), `${byId("frontends-count").textContent} frontends`);
    } else {
      this.#sort();
      if (what === "order") write(byId("list-spoken"), this.toolbar.words);
    }
  }

  // ------------------------------------------------------------ in which order

  /** Puts in order what came, and what is out of order; under the hand of a reader nothing changes its place. */
  #order(moved) {
    const busy = performance.now() - this.touched < PATIENCE || byId("commands").open;
    if ((moved || this.disordered) && !busy) this.#sort();
    else if (moved && !ORDERS[this.toolbar.by].restless) this.#sort();
    else if (moved) this.#append();
  }

  #sort() {
    this.disordered = false;
    this.sorted = 0;
    const { frontends } = this.model.tables;
    const order = comparing(this.toolbar.by, this.toolbar.reversed);
    const pairs = [...this.shown.keys()].map((key) => [key, frontends.get(key)]).sort(order);
    arrange(this.#root, pairs.map(([key]) => this.shown.get(key).element));
  }

  /** What came is last for now. */
  #append() {
    this.disordered = true;
    const elements = new Set([...this.shown.values()].map((one) => one.element));
    const before = [...this.#root.children].filter((element) => elements.delete(element));
    arrange(this.#root, [...before, ...elements]);
  }

  get #root() {
    return byId(this.list ? "lines" : "cards");
  }

  // ------------------------------------------------------------ which can be seen

  #seen(entries) {
    for (const entry of entries) {
      const one = this.shown.get(entry.target.dataset.key);
      if (one === undefined) continue;
      one.visible = entry.isIntersecting;
      if (one.visible) one.tick();
    }
    if (this.pending.size > 0) this.work();
  }

  #filter(one) {
    const { text, troubled: only } = this.toolbar;
    const hidden = (only && one.record().health === "healthy") || (text !== "" && !this.model.matches(one.key, text));
    if (one.element.hidden !== hidden) one.element.hidden = hidden;
  }

  #count() {
    const all = this.shown.size;
    const { filtering } = this.toolbar;
    const shown = filtering ? [...this.shown.values()].filter((one) => !one.element.hidden).length : all;
    write(byId("frontends-count"), filtering ? `${shown} of ${all}` : String(all));
    byId("none").hidden = !(filtering && shown === 0 && all > 0);
  }

  // ------------------------------------------------------------ how one gets there

  /** Links to the first frontends in trouble, in one line of a fixed height. */
  #link() {
    const found = troubled(this.model.tables.frontends);
    const before = this.links;
    this.links = new Map();
    for (const [key, one] of found.slice(0, MOST_LINKS)) {
      const link = before.get(key) ?? make("a", { href: `#${key}`, "data-key": key, class: "pill" });
      write(link, `:${portOf(one)} ${one.name}`);
      flag(link, "state", one.health);
      this.links.set(key, link);
    }
    arrange(byId("jump-trouble"), [...this.links.values()]);
    const more = found.length - this.links.size;
    byId("more-trouble").hidden = more <= 0;
    write(byId("more-trouble"), `${more} more in trouble`);
  }

  /** Goes to the frontend of the address's hash: its IP:PORT, or :PORT; of a range, also one port of it. */
  revealHash() {
    const wanted = decodeURIComponent(location.hash.slice(1));
    if (!wanted.includes(":")) return;
    const { frontends } = this.model.tables;
    const found = frontends.has(wanted) ? wanted : [...frontends.keys()].find((key) => isNamed(frontends.get(key), wanted.slice(1)));
    if (found !== undefined) this.reveal(found);
  }

  reveal(key) {
    const one = this.shown.get(key);
    if (one === undefined) return;
    if (one.element.hidden) this.toolbar.clear();
    one.unfold?.(true);
    one.focusable.focus({ preventScroll: true });
    one.element.scrollIntoView({ block: "start" });
  }

  /** Arrows, Home and End lead from line to line. */
  #walk(event) {
    const entry = event.target.closest?.(".fold")?.closest(".entry");
    const steps = { ArrowDown: () => this.#beside(entry, 1), ArrowUp: () => this.#beside(entry, -1), Home: () => this.#beside(null, 1), End: () => this.#beside(null, -1) };
    if (!entry || !Object.hasOwn(steps, event.key) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    steps[event.key]()?.focus();
  }

  /** What takes the focus in the next (1) or previous (-1) of those that are not filtered out; from the end if `element` is null. */
  #beside(element, way) {
    const parent = this.#root;
    const next = (one) => (way > 0 ? one.nextElementSibling : one.previousElementSibling);
    let at = element === null ? (way > 0 ? parent.firstElementChild : parent.lastElementChild) : next(element);
    while (at?.hidden) at = next(at);
    return at && this.shown.get(at.dataset.key)?.focusable;
  }
}
