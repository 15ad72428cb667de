// The live sessions, requested only while they are shown: the first hundred by bytes or age that match the filter.

import { command, copyButton } from "./commands.js";
import { byId, make, write } from "./dom.js";
import { bytes, span } from "./words.js";

const PERIOD = 2000; // ms
const COLUMNS = ["Client", "Frontend/server", "Age", "In", "Out", ""];

export class Sessions {
  constructor() {
    this.body = byId("sessions-body");
    this.toggle = byId("sessions-toggle");
    this.by = byId("sessions-by");
    this.text = byId("sessions-text");
    this.timer = 0;
    this.toggle.addEventListener("click", () => this.#show(this.body.hidden));
    this.by.addEventListener("change", () => this.#ask());
    this.text.addEventListener("input", () => this.#ask());
    document.addEventListener("visibilitychange", () => !this.body.hidden && this.#ask());
  }

  #show(wanted) {
    for (const part of [this.body, this.by.parentElement, this.text.parentElement]) part.hidden = !wanted;
    this.toggle.setAttribute("aria-expanded", String(wanted));
    write(this.toggle, wanted ? "Hide" : "Show");
    if (wanted) this.#ask();
    else clearTimeout(this.timer);
  }

  async #ask() {
    clearTimeout(this.timer);
    if (document.hidden || this.body.hidden) return;
    const query = new URLSearchParams({ live: 1, counts: 0, by: this.by.value, text: this.text.value.trim() });
    try {
      const answer = await fetch(`v1/sessions?${query}`);
      if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
      this.#render(await answer.json());
    } catch (error) {
      write(byId("sessions-count"), `not available: ${error.message}`);
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#ask(), PERIOD);
  }

  #render({ live_total: total, live_matching: matching, live: sessions }) {
    const shown = sessions.length < matching ? `the first ${sessions.length} of ${matching}` : String(matching);
    write(byId("sessions-count"), matching === total ? shown : `${shown} match, ${total} in all`);
    // A button that has the focus stays: only the content of its row is replaced.
    const rows = this.rows ?? new Map();
    this.rows = new Map(sessions.map((one) => [one.id, rows.get(one.id) ?? new Row(one)]));
    sessions.forEach((one) => this.rows.get(one.id).render(one));
    if (this.table === undefined) {
      const cells = COLUMNS.map((word) => make("th", { scope: "col" }, word || make("span", { class: "unseen" }, "Commands")));
      this.table = make("table", { class: "sessions" }, make("thead", {}, make("tr", {}, ...cells)), make("tbody"));
      this.body.append(this.table);
    }
    const body = this.table.tBodies[0];
    const wanted = [...this.rows.values()].map((row) => row.element);
    if (wanted.length !== body.rows.length || wanted.some((row, place) => body.rows[place] !== row)) body.replaceChildren(...wanted);
  }
}

class Row {
  constructor({ id, client }) {
    this.cells = COLUMNS.map((_word, place) => make("td", { class: place >= 2 && place <= 4 ? "number" : false }));
    const text = () => command("ctl shutdown session", id);
    this.cells[5].append(copyButton("shutdown", `shutdown the session of ${client}: copy the command`, text));
    this.element = make("tr", {}, ...this.cells);
  }

  render(one) {
    const state = one.state === "relaying" ? "" : `, ${one.state}`;
    const asked = one.server_name ? ` asks for ${one.server_name}` : "";
    const words = [`${one.client}${asked}`, `${one.frontend}/${one.server ?? "–"}${state}`, span(one.age), bytes(one.bytes_in), bytes(one.bytes_out)];
    words.forEach((word, place) => write(this.cells[place], word));
  }
}
