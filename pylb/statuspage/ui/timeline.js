// What happened: who registered what, which calls were refused and why, servers down and up. The newest first; above those of
// an earlier day stands the day.

import { byId, make } from "./dom.js";
import { clock, day } from "./words.js";

const MOST = 200;
const KINDS = {
  registrations: ["created", "updated", "moved", "released", "draining", "stale", "fresh_again", "superseded", "unstable_source", "dst_ip"],
  refused: ["refused"],
  servers: ["server_down", "server_up", "server_proven", "unbound", "bound", "mass_lapse", "mass_lapse_over"],
  operator: ["admin", "reloaded", "started", "upgraded", "state", "state_durable", "state_not_durable", "not_restored"],
};

export class Timeline {
  constructor(model) {
    this.model = model;
    this.root = byId("events");
    this.kind = byId("events-kind");
    this.kind.addEventListener("change", () => this.update());
  }

  update() {
    const wanted = this.kind.value;
    const shown = this.model.events.filter((event) => belongs(event, wanted)).slice(-MOST).toReversed();
    const days = shown.map((event) => day(event.time));
    const heading = (at) => (days[at] === (days[at - 1] ?? "") ? [] : [make("li", { class: "day" }, days[at])]);
    this.root.replaceChildren(...shown.flatMap((event, at) => [...heading(at), item(event)]));
    if (shown.length === 0) this.root.append(make("li", { class: "muted" }, "Nothing of this kind."));
  }
}

function belongs(event, wanted) {
  if (wanted === "all") return true;
  return wanted === "alarms" ? event.alarm === true : KINDS[wanted].includes(event.kind);
}

function item(event) {
  const kind = make("span", { class: "kind" }, event.kind.replaceAll("_", " "));
  const text = event.text.startsWith(`${event.kind} `) ? event.text.slice(event.kind.length + 1) : event.text;
  const attributes = { "data-kind": event.kind, "data-alarm": String(event.alarm === true) };
  return make("li", attributes, make("time", {}, clock(event.time)), kind, make("span", {}, text));
}
