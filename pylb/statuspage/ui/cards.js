// A card for each frontend, keyed and changed in place. Of hundreds, only those in view are updated at once; the
// others follow in the remaining time, so that an update never exceeds BUDGET.

import { copyButton, command, ofFrontend, ofServer, showCommands, target } from "./commands.js";
import { arrange, byId, flag, make, write } from "./dom.js";
import { bytes, found, number, span } from "./words.js";

const BUDGET = 25; // ms of script for one update
const STATES = { unproven: "unproven", drain: "draining", maint: "maintenance" };
const COLUMNS = ["Server", "State", "Registered", "Sessions", "New/s", "Accepts, check", ""];

export class Cards {
  constructor(model) {
    this.model = model;
    this.cards = new Map();
    this.pending = new Set();
    this.root = byId("cards");
    this.filter = { text: "", troubled: false };
    this.sight = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "200px" });
    byId("filter").addEventListener("input", (event) => this.#setFilter({ text: event.target.value.trim().toLowerCase() }));
    byId("troubled").addEventListener("change", (event) => this.#setFilter({ troubled: event.target.checked }));
  }

  /** `dirty`: keys of frontends that changed, came or went. */
  update(dirty) {
    const { frontends } = this.model.tables;
    let moved = false;
    for (const key of dirty) {
      if (!frontends.has(key)) {
        moved = this.#remove(key) || moved;
      } else {
        if (!this.cards.has(key)) {
          this.#add(key);
          moved = true;
        }
        this.pending.add(key);
      }
    }
    if (moved) this.#sort();
    this.work();
  }

  /** Brings cards up to date, those in sight first, for at most BUDGET. */
  work() {
    const until = performance.now() + BUDGET;
    for (const inSight of [true, false]) {
      for (const key of this.pending) {
        const card = this.cards.get(key);
        if (card.visible !== inSight) continue;
        if (performance.now() > until) return;
        this.pending.delete(key);
        card.render();
        this.#show(card);
      }
    }
  }

  /** What counts by itself: leases and ages, of the cards in sight. */
  tick() {
    for (const card of this.cards.values()) if (card.visible) card.tick();
    if (this.pending.size > 0) this.work();
    this.#count();
  }

  #add(key) {
    const card = new Card(key, this.model);
    this.cards.set(key, card);
    this.sight.observe(card.element);
  }

  #remove(key) {
    const card = this.cards.get(key);
    if (card === undefined) return false;
    this.sight.unobserve(card.element);
    this.cards.delete(key);
    this.pending.delete(key);
    return true;
  }

  #sort() {
    const place = (card) => this.model.tables.frontends.get(card.key);
    const sorted = [...this.cards.values()].sort((a, b) => place(a).port - place(b).port || (a.key < b.key ? -1 : 1));
    arrange(this.root, sorted.map((card) => card.element));
    this.#count();
  }

  #seen(entries) {
    for (const entry of entries) {
      const card = this.cards.get(entry.target.dataset.key);
      if (card === undefined) continue;
      card.visible = entry.isIntersecting;
      if (card.visible) card.tick();
    }
    if (this.pending.size > 0) this.work();
  }

  #setFilter(change) {
    Object.assign(this.filter, change);
    for (const card of this.cards.values()) this.#show(card);
    this.#count();
  }

  #show(card) {
    const { text, troubled } = this.filter;
    const hidden = (troubled && card.record().health === "healthy") || (text !== "" && !card.words().includes(text));
    if (card.element.hidden !== hidden) card.element.hidden = hidden;
  }

  #count() {
    const all = this.cards.size;
    const filtered = this.filter.text !== "" || this.filter.troubled;
    const shown = filtered ? [...this.cards.values()].filter((card) => !card.element.hidden).length : all;
    write(byId("frontends-count"), filtered ? `${shown} of ${all}` : String(all));
    byId("none").hidden = !(filtered && shown === 0 && all > 0);
  }
}

class Card {
  constructor(key, model) {
    this.key = key;
    this.model = model;
    this.visible = false;
    this.rows = new Map();
    const name = make("h3", { id: `f-${key}` });
    this.parts = {
      port: make("span", { class: "port" }),
      name: make("span", { class: "name" }),
      health: make("span", { class: "pill" }),
      numbers: make("p", { class: "numbers" }),
      notes: make("p", { class: "notes" }),
      body: make("tbody", { role: "rowgroup" }),
    };
    name.append(this.parts.port, " ", this.parts.name);
    this.more = make("button", { type: "button", class: "copy" }, "commands");
    this.more.addEventListener("click", () => {
      const frontend = this.record();
      showCommands(`Commands for ${frontend.name}`, ofFrontend(frontend), this.more);
    });
    const cells = COLUMNS.map((word) => make("th", { scope: "col", role: "columnheader" }, word || make("span", { class: "unseen" }, "Commands")));
    const head = make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...cells));
    this.table = make("table", { role: "table", "aria-labelledby": `f-${key}` }, head, this.parts.body);
    const line = make("div", { class: "title" }, name, this.parts.health, this.more);
    this.element = make("article", { class: "card", "data-key": key, "aria-labelledby": `f-${key}` });
    this.element.append(line, this.parts.numbers, this.parts.notes, this.table);
  }

  record() {
    return this.model.tables.frontends.get(this.key);
  }

  /** Everything that a filter may look for, in lower case. */
  words() {
    const { name, listen } = this.record();
    const servers = this.model.servers(this.key).flatMap((one) => [one.name, one.address, one.state, ...one.held_by.map(([holder]) => holder)]);
    return [name, listen, ...servers].join(" ").toLowerCase();
  }

  render() {
    const frontend = this.record();
    const { port, name, health, numbers, notes } = this.parts;
    write(port, `:${frontend.port}`);
    write(name, frontend.name);
    write(health, frontend.unbound === null ? frontend.health : "port not open");
    flag(health, "state", frontend.health);
    flag(this.element, "health", frontend.health);
    this.more.setAttribute("aria-label", `commands for ${frontend.name}`);
    const limit = frontend.limits.connections ? ` of ${number(frontend.limits.connections)}` : "";
    const queue = frontend.queued ? ` · ${number(frontend.queued)} waiting` : "";
    const denied = frontend.denied ? ` · ${number(frontend.denied)} denied` : "";
    const traffic = `${number(frontend.sessions)}${limit} sessions · ${number(frontend.rate)} new/s`;
    write(numbers, `${traffic} · in ${bytes(frontend.in)}/s · out ${bytes(frontend.out)}/s · ${number(frontend.total)} in all${queue}${denied}`);
    write(notes, notesOf(frontend));
    notes.hidden = notes.textContent === "";
    this.#renderRows(frontend);
  }

  #renderRows(frontend) {
    const servers = this.model.servers(this.key);
    const now = this.model.clock(performance.now());
    const rows = servers.map((server) => {
      let row = this.rows.get(server.address);
      if (row === undefined) this.rows.set(server.address, (row = new Row(this.model)));
      row.render(frontend, server, servers);
      row.tick(now);
      return row;
    });
    for (const [address, row] of this.rows) if (!rows.includes(row)) this.rows.delete(address);
    arrange(this.parts.body, rows.map((row) => row.element));
    this.table.hidden = rows.length === 0;
  }

  tick() {
    const now = this.model.clock(performance.now());
    for (const row of this.rows.values()) row.tick(now);
  }
}

function notesOf(frontend) {
  const limits = Object.entries(frontend.limits).filter(([name]) => name !== "connections");
  const words = limits.map(([name, value]) => `${name} ≤ ${value}`);
  if (frontend.unbound !== null) words.unshift(`The port cannot be opened: ${frontend.unbound}. It is tried again every 5 s.`);
  return words.join(" · ");
}

const line = (label, ...parts) => make("span", { class: "line" }, make("span", { class: "label" }, label), " ", ...parts);

class Row {
  constructor(model) {
    this.model = model;
    this.parts = {
      name: make("span", { class: "name" }),
      address: make("code"),
      state: make("span", { class: "pill" }),
      seen: make("span", { class: "seen" }),
      lease: make("span", { class: "lease-text" }),
      bar: make("i"),
      sessions: make("td", { role: "cell", class: "number", "data-label": "sessions" }),
      rate: make("td", { role: "cell", class: "number", "data-label": "new/s" }),
      accepts: make("span", { class: "accepts" }),
      check: make("span", { class: "passes" }),
      ago: make("span", { class: "ago" }),
      why: make("span", { class: "why" }),
    };
    const { name, address, state, seen, lease, bar, sessions, rate, accepts, check, ago, why } = this.parts;
    this.bar = make("span", { class: "lease", "aria-hidden": "true" }, bar);
    this.quick = copyButton("drain", "", () => this.quickCommand);
    this.more = make("button", { type: "button", class: "copy", title: "More commands" }, "more");
    this.more.addEventListener("click", () => this.#showAll());
    this.element = make(
      "tr",
      { role: "row" },
      make("td", { role: "cell", class: "server" }, name, address),
      make("td", { role: "cell", class: "state" }, state),
      make("td", { role: "cell", class: "held" }, seen, this.bar, lease),
      sessions,
      rate,
      make("td", { role: "cell", class: "check" }, line("accepts", accepts), line("check", check, ago), why),
      make("td", { role: "cell", class: "buttons" }, this.quick, this.more),
    );
  }

  render(frontend, server, all) {
    Object.assign(this, { frontend, server, all });
    const { name, address, state, sessions, rate, accepts, check, why } = this.parts;
    write(name, server.name);
    write(address, server.address);
    address.hidden = server.name === server.address;
    flag(address, "long", server.address.length > 22 ? "yes" : "no"); // an IPv6 address may be broken, others not
    const word = STATES[server.state] ?? server.state;
    const rank = server.state !== "up" ? "" : server.rank === 2 ? ", backup" : server.rank === 3 ? ", last resort" : "";
    write(state, word + rank);
    flag(state, "state", server.state === "up" && server.rank === 3 ? "stale" : server.state);
    write(sessions, server.max ? `${number(server.sessions)}/${server.max}` : number(server.sessions));
    write(rate, number(server.rate));
    write(accepts, found(server.accepts));
    write(check, found(server.check));
    const reason = server.reason === server.check ? "" : server.reason;
    write(why, [reason, server.hint].filter(Boolean).join("; "));
    why.hidden = why.textContent === "";
    this.holders = server.held_by.map(([key, note]) => ({ key, note, record: this.model.tables.registrations.get(key) }));
    const out = server.state === "drain" || server.state === "maint";
    const verb = out ? "ready" : "drain";
    const where = target(frontend, server, all);
    this.quickCommand = command(`ctl ${verb}`, where);
    write(this.quick, verb);
    this.quick.setAttribute("aria-label", `${verb} ${where}: copy the command`);
    this.more.setAttribute("aria-label", `more commands for ${where}`);
  }

  /** Ages and the lease, as of `now` on pylb's clock. */
  tick(now) {
    const { seen, lease, bar, ago } = this.parts;
    const { server } = this;
    write(ago, server.checked_at === null ? "" : `${span(now - server.checked_at)} ago`);
    const people = this.holders.filter((holder) => holder.record !== undefined);
    const last = people.reduce((best, one) => (best === null || (one.record.seen_at ?? -1) > (best.record.seen_at ?? -1) ? one : best), null);
    if (last === null) {
      write(seen, this.holders.some((holder) => holder.key === "static") ? "by the config" : "nobody");
      this.bar.hidden = true;
      write(lease, "");
      return;
    }
    const { record, note } = last;
    const who = record.legacy ? `${record.name} (legacy)` : record.instance;
    const others = people.length > 1 ? ` and ${people.length - 1} more` : "";
    const when = record.seen_at === null ? "not seen since the start" : `seen ${span(now - record.seen_at)} ago`;
    write(seen, `${when}\nfrom ${who}${others}${note === "" ? "" : `, ${note}`}`);
    this.#tickLease(record, now, lease, bar);
  }

  #tickLease(record, now, lease, bar) {
    this.bar.hidden = record.ends_at === null;
    if (record.ends_at === null) {
      write(lease, record.state === "fresh" ? "no lease" : record.state);
      return;
    }
    const left = record.ends_at - now;
    const share = Math.max(0, Math.min(1, left / record.ttl));
    bar.style.transform = `scaleX(${share.toFixed(3)})`;
    flag(this.bar, "state", left <= 0 ? "over" : share < 0.34 ? "late" : "fresh");
    const text = left > 0 ? `lease ${span(left)} of ${span(record.ttl)}` : `lease over for ${span(-left)}`;
    write(lease, record.state === "fresh" ? text : `${record.state}, ${text}`);
  }

  #showAll() {
    const { frontend, server, all } = this;
    const records = this.holders.map((holder) => holder.record).filter(Boolean);
    showCommands(`Commands for ${target(frontend, server, all)}`, ofServer(frontend, server, all, records), this.more);
  }
}
