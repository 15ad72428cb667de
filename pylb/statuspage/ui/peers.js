// The other pylbs of `admin.peers`: a link to each, and what it says of its own health.

import { arrange, byId, flag, make, write } from "./dom.js";
import { counted, span } from "./words.js";

const LATE = 15; // seconds without an answer, after which its age is worth a word

export class Peers {
  constructor(model) {
    this.model = model;
    this.items = new Map(); // by name
  }

  update() {
    const { peers } = this.model.head;
    byId("peers").hidden = peers.length === 0;
    const before = this.items;
    this.items = new Map(peers.map((peer) => [peer.name, before.get(peer.name) ?? new Item(this.model)]));
    for (const peer of peers) this.items.get(peer.name).render(peer);
    arrange(byId("peers-list"), [...this.items.values()].map((item) => item.element));
  }

  tick() {
    for (const item of this.items.values()) item.tick();
  }
}

class Item {
  constructor(model) {
    this.model = model;
    this.link = make("a", { rel: "noreferrer" });
    this.pill = make("span", { class: "pill" });
    this.what = make("p", { class: "what" });
    this.more = make("p", { class: "more" });
    this.element = make("li", {}, this.link, make("span"), this.pill, this.what, this.more);
  }

  render(peer) {
    this.peer = peer;
    write(this.link, peer.name);
    if (this.link.getAttribute("href") !== `${peer.page}/`) this.link.setAttribute("href", `${peer.page}/`);
    const state = peer.error ? "silent" : (peer.health ?? "unknown");
    flag(this.element, "health", state);
    flag(this.pill, "state", state);
    write(this.pill, state === "silent" ? "no answer" : state);
    write(this.what, peer.error || peer.sentence || "not asked yet");
    this.what.title = this.what.textContent;
    this.tick();
  }

  /** How old the answer is, as of now on pylb's clock. */
  tick() {
    const { at, host, version, sessions } = this.peer;
    if (at === undefined) return;
    const age = this.model.clock(performance.now()) - at;
    const since = age > LATE ? ` · ${span(age)} ago` : "";
    write(this.more, `${host} · ${version} · ${counted(sessions, "session")}${since}`);
  }
}
