// A frontend with everything that is known about it: its numbers, its limits and its servers. Changed in place.

import { copyButton, command, ofFrontend, ofServer, showCommands, target } from "./commands.js";
import { arrange, flag, make, write } from "./dom.js";
import { bytes, counted, found, number, portOf, span } from "./words.js";

const STATES = { unproven: "unproven", drain: "draining", maint: "maintenance" };
const COLUMNS = ["Server", "State", "Registered", "Sessions", "New/s", "Accepts, check", ""];

export class Card {
  constructor(key, model) {
    this.key = key;
    this.model = model;
    this.visible = false;
    this.rows = new Map();
    const name = make("h3", { id: `f-${key}`, tabindex: "-1" });
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
    this.focusable = name; // by a jump
  }

  record() {
    return this.model.tables.frontends.get(this.key);
  }

  render() {
    const frontend = this.record();
    const { port, name, health, numbers, notes } = this.parts;
    write(port, `:${portOf(frontend)}`);
    write(name, frontend.name);
    write(health, conditionOf(frontend));
    flag(health, "state", frontend.health);
    flag(this.element, "health", frontend.health);
    this.more.setAttribute("aria-label", `commands for ${frontend.name}`);
    const { connections: limit } = frontend.limits;
    const sessions = limit ? `${number(frontend.sessions)} of ${counted(limit, "session")}` : counted(frontend.sessions, "session");
    const queue = frontend.queued ? ` · ${number(frontend.queued)} waiting` : "";
    const denied = frontend.denied ? ` · ${number(frontend.denied)} denied` : "";
    write(numbers, `${sessions} · ${number(frontend.rate)} new/s · in ${bytes(frontend.in)}/s · out ${bytes(frontend.out)}/s · ${number(frontend.total)} in all${queue}${denied}`);
    write(notes, notesOf(frontend, this.model.servers(this.key)));
    notes.hidden = notes.textContent === "";
    this.#renderRows(frontend);
  }

  #renderRows(frontend) {
    const servers = this.model.servers(this.key);
    const now = this.model.clock(performance.now());
    const ambiguous = repeated(servers.map((server) => server.name));
    const before = this.rows;
    this.rows = new Map();
    for (const server of servers) {
      const row = before.get(server.address) ?? new Row(this.model);
      this.rows.set(server.address, row);
      row.render(frontend, server, target(frontend, server, ambiguous));
      row.tick(now);
    }
    arrange(this.parts.body, [...this.rows.values()].flatMap((row) => [row.element, row.reason]));
    this.table.hidden = servers.length === 0;
  }

  tick() {
    const now = this.model.clock(performance.now());
    for (const row of this.rows.values()) row.tick(now);
  }
}

/** The word for its condition. */
export function conditionOf(frontend) {
  return frontend.unbound === null ? frontend.health : "port not open";
}

function repeated(names) {
  const once = new Set();
  return new Set(names.filter((name) => once.size === once.add(name).size));
}

function notesOf(frontend, servers) {
  const limits = Object.entries(frontend.limits).filter(([name]) => name !== "connections");
  const words = limits.map(([name, value]) => `${name} ≤ ${value}`);
  if (frontend.routes) {
    const other = servers.length ? "its servers are the default route" : "there is no default route: other clients get the alert unrecognized_name";
    words.unshift(`${counted(frontend.routes, "route")} by server name; ${other}`);
  }
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
      why: make("td", { role: "cell", colspan: COLUMNS.length }),
    };
    const { name, address, state, seen, lease, bar, sessions, rate, accepts, check, ago, why } = this.parts;
    this.reason = make("tr", { role: "row", class: "reason" }, why);
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
      make("td", { role: "cell", class: "check" }, line("accepts", accepts), line("check", check, ago)),
      make("td", { role: "cell", class: "buttons" }, this.quick, this.more),
    );
  }

  /** `where`: the server for `pylb ctl`. */
  render(frontend, server, where) {
    Object.assign(this, { frontend, server, where });
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
    this.reason.hidden = why.textContent === "";
    this.holders = server.held_by.map(([key, note]) => ({ key, note, record: this.model.tables.registrations.get(key) }));
    const out = server.state === "drain" || server.state === "maint";
    const verb = out ? "ready" : "drain";
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
    const { frontend, server, where } = this;
    const records = this.holders.map((holder) => holder.record).filter(Boolean);
    showCommands(`Commands for ${where}`, ofServer(frontend, server, where, records), this.more);
  }
}
