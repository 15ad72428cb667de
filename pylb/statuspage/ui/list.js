// One line of the list for each frontend. It unfolds to the frontend's card, which is made only then.

import { Card, conditionOf } from "./card.js";
import { flag, make, write } from "./dom.js";
import { bytes, number, portOf } from "./words.js";

/** Of a column: its heading, the order that its heading sorts by, and its class. */
export const COLUMNS = [
  ["Port", "port", "port"],
  ["Frontend", "name", "name"],
  ["State", "trouble", "state"],
  ["Servers", null, "servers number"],
  ["Sessions", "sessions", "sessions number"],
  ["New/s", "rate", "rate number"],
  ["In/s", "in", "in number"],
  ["Out/s", "out", "out number"],
  ["What is wrong", null, "why"],
];

/** Is it in service, and has it accepted a connection or never been asked? */
const isUp = ({ state, accepts }) => state === "up" || (state === "unproven" && (accepts === "yes" || accepts === "unknown"));

export class Line {
  /** `open`: keys of the unfolded frontends. */
  constructor(key, model, open) {
    this.key = key;
    this.model = model;
    this.open = open;
    this.visible = false;
    this.parts = { button: make("button", { type: "button", class: "fold", "aria-expanded": "false" }), pill: make("span", { class: "pill" }) };
    const cells = COLUMNS.map(([, , kind]) => (this.parts[kind.split(" ")[0]] = make("span", { role: "cell", class: kind })));
    this.parts.name.append(this.parts.button);
    this.parts.state.append(this.parts.pill);
    this.row = make("div", { role: "row", class: "row" }, ...cells);
    this.element = make("div", { role: "none", class: "entry", "data-key": key }, this.row);
    this.focusable = this.parts.button;
    this.row.addEventListener("click", (event) => this.#clicked(event));
    if (open.has(key)) this.unfold(true);
  }

  record() {
    return this.model.tables.frontends.get(this.key);
  }

  #clicked(event) {
    const selecting = !getSelection().isCollapsed && event.target !== this.parts.button;
    if (!selecting) this.unfold(this.card === undefined);
  }

  unfold(wanted) {
    if (wanted === (this.card !== undefined)) return;
    this.parts.button.setAttribute("aria-expanded", String(wanted));
    flag(this.element, "open", wanted ? "yes" : "no");
    if (wanted) {
      this.open.add(this.key);
      this.card = new Card(this.key, this.model);
      this.card.render();
      const id = `d-${this.key}`;
      this.detail = make("div", { role: "row", class: "detail", id }, make("div", { role: "cell", "aria-colspan": COLUMNS.length }, this.card.element));
      this.parts.button.setAttribute("aria-controls", id);
      this.element.append(this.detail);
    } else {
      this.open.delete(this.key);
      this.parts.button.removeAttribute("aria-controls");
      this.detail.remove();
      this.card = this.detail = undefined;
    }
  }

  render() {
    const frontend = this.record();
    const { port, button, pill, servers, sessions, rate, why } = this.parts;
    write(port, `:${portOf(frontend)}`);
    write(button, frontend.name);
    write(pill, conditionOf(frontend));
    flag(pill, "state", frontend.health);
    flag(this.element, "health", frontend.health);
    const all = this.model.servers(this.key);
    const up = all.filter(isUp).length;
    write(servers, `${up}/${all.length}`);
    flag(servers, "some", up < all.length ? "out" : "");
    write(sessions, frontend.limits.connections ? `${number(frontend.sessions)}/${number(frontend.limits.connections)}` : number(frontend.sessions));
    flag(sessions, "one", frontend.sessions === 1 && !frontend.limits.connections ? "yes" : "no");
    write(rate, number(frontend.rate));
    write(this.parts.in, bytes(frontend.in));
    write(this.parts.out, bytes(frontend.out));
    write(why, [frontend.trouble, frontend.queued ? `${number(frontend.queued)} waiting` : ""].filter(Boolean).join("; "));
    this.card?.render();
  }

  tick() {
    this.card?.tick();
  }
}
