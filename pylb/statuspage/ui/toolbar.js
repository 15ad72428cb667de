// What the reader of the page has chosen: view, order, filter. View and order are remembered by the browser.

import { byId, make, write } from "./dom.js";
import { COLUMNS } from "./list.js";
import { ORDERS, direction } from "./order.js";

const REMEMBERED = "pylb.frontends";
const VIEWS = ["cards", "list"];

export class Toolbar {
  /** `changed`: called with "view", "order" or "filter". */
  constructor(changed) {
    this.changed = changed;
    this.suggested = "cards";
    this.text = "";
    this.troubled = false;
    this.chosen = remembered();
    this.select = byId("sort");
    this.select.append(...Object.entries(ORDERS).map(([by, { label }]) => make("option", { value: by }, label)));
    this.select.addEventListener("change", () => this.#sortBy(this.select.value, false));
    byId("reverse").addEventListener("click", () => this.#sortBy(this.by, !this.reversed));
    for (const view of VIEWS) byId(`view-${view}`).addEventListener("click", () => this.#choose({ view }, "view"));
    byId("filter").addEventListener("input", () => this.#filter());
    byId("troubled").addEventListener("change", () => this.#filter());
    byId("list-head").append(...COLUMNS.map((column) => this.#heading(...column)));
    this.#show();
  }

  get view() {
    return this.chosen.view ?? this.suggested;
  }

  /** Few frontends are cards by their port; in a list of many, trouble comes first. */
  get by() {
    return this.chosen.by ?? (this.view === "list" ? "trouble" : "port");
  }

  get reversed() {
    return this.chosen.reversed === true;
  }

  get filtering() {
    return this.text !== "" || this.troubled;
  }

  /** The view for who has chosen none. */
  suggest(view) {
    if (view === this.suggested) return;
    this.suggested = view;
    this.#show();
    if (this.chosen.view === undefined) this.changed("view");
  }

  /** Filters by nothing, or only by trouble. */
  clear(troubled = false) {
    byId("filter").value = "";
    byId("troubled").checked = troubled;
    this.#filter();
  }

  /** "Sorted by load (sessions), descending". */
  get words() {
    return `Sorted by ${ORDERS[this.by].label}, ${direction(this.by, this.reversed)}`;
  }

  #heading(word, by, kind) {
    const heading = make("span", { role: "columnheader", class: kind, "data-by": by });
    if (by === null) {
      heading.append(word);
    } else {
      const button = make("button", { type: "button", class: "heading-sort" }, word);
      button.addEventListener("click", () => this.#sortBy(by, this.by === by && !this.reversed));
      heading.append(button);
    }
    return heading;
  }

  #sortBy(by, reversed) {
    this.#choose({ by, reversed }, "order");
  }

  #choose(what, kind) {
    Object.assign(this.chosen, what);
    try {
      localStorage.setItem(REMEMBERED, JSON.stringify(this.chosen));
    } catch {
      // A browser that stores nothing forgets it with the page.
    }
    this.#show();
    this.changed(kind);
  }

  #filter() {
    this.text = byId("filter").value.trim().toLowerCase();
    this.troubled = byId("troubled").checked;
    this.changed("filter");
  }

  #show() {
    const way = direction(this.by, this.reversed);
    this.select.value = this.by;
    write(byId("reverse"), way === "ascending" ? "↑" : "↓");
    byId("reverse").setAttribute("aria-label", `${way}, reverse the order`);
    for (const view of VIEWS) byId(`view-${view}`).setAttribute("aria-pressed", String(view === this.view));
    for (const heading of byId("list-head").children) {
      if (heading.dataset.by === this.by) heading.setAttribute("aria-sort", way);
      else heading.removeAttribute("aria-sort");
    }
  }
}

function remembered() {
  try {
    const found = JSON.parse(localStorage.getItem(REMEMBERED)) ?? {};
    const chosen = {};
    if (VIEWS.includes(found.view)) chosen.view = found.view;
    if (Object.hasOwn(ORDERS, found.by)) Object.assign(chosen, { by: found.by, reversed: found.reversed === true });
    return chosen;
  } catch {
    return {};
  }
}
