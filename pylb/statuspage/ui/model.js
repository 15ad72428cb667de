// What the stream has sent so far: three tables of records, the history, marks and events. No DOM here.

import { isNamed } from "./words.js";

const POINTS = 900;
const MOST_EVENTS = 1000;

export class Model {
  constructor() {
    this.reset();
  }

  reset() {
    this.tables = { frontends: new Map(), servers: new Map(), registrations: new Map() };
    this.serversOf = new Map(); // frontend's key -> keys of its servers
    this.heldBy = new Map(); // registration's key -> keys of the servers it holds
    this.history = {};
    this.marks = [];
    this.events = [];
    this.about = {};
    this.head = { clock: 0, now: 0, sentence: "", health: "unknown", generation: 0, durable: true, peers: [] };
    this.heard = 0; // performance.now() of the last message
  }

  /** Takes a message in. Returns the keys of the frontends that look different now, and whether there are new events. */
  apply(message, heard) {
    if (message.whole) this.reset();
    this.heard = heard;
    if (message.about) this.about = message.about;
    for (const name of Object.keys(this.head)) if (name in message) this.head[name] = message[name];
    const dirty = new Set();
    for (const name of ["registrations", "servers", "frontends"]) {
      for (const [key, fields] of Object.entries(message[name] ?? {})) this.#put(name, key, fields, dirty);
      for (const key of message[`gone_${name}`] ?? []) this.#remove(name, key, dirty);
    }
    if (message.history) this.history = message.history;
    if (message.point) this.#addPoint(message.point);
    const news = message.events ?? [];
    this.events.push(...news);
    this.events.splice(0, this.events.length - MOST_EVENTS);
    if (message.marks) this.marks = message.marks.map(([time, kind, text]) => ({ time, kind, text }));
    else this.marks.push(...news.filter((event) => event.mark));
    this.marks = this.marks.filter((mark) => mark.time >= this.head.now - POINTS);
    return { dirty, events: news.length > 0 || message.whole === true };
  }

  #put(name, key, fields, dirty) {
    const table = this.tables[name];
    const before = table.get(key);
    const record = { ...before, ...fields };
    table.set(key, record);
    if (name === "frontends") dirty.add(key);
    if (name === "registrations") for (const server of this.heldBy.get(key) ?? []) dirty.add(frontendOf(server));
    if (name === "servers") {
      dirty.add(record.frontend);
      if (before === undefined) collection(this.serversOf, record.frontend).add(key);
      if (fields.held_by) {
        for (const [holder] of before?.held_by ?? []) this.heldBy.get(holder)?.delete(key);
        for (const [holder] of fields.held_by) collection(this.heldBy, holder).add(key);
      }
    }
  }

  #remove(name, key, dirty) {
    const before = this.tables[name].get(key);
    this.tables[name].delete(key);
    if (before === undefined) return;
    if (name === "frontends") {
      this.serversOf.delete(key);
      dirty.add(key);
    } else if (name === "registrations") {
      for (const server of this.heldBy.get(key) ?? []) dirty.add(frontendOf(server));
      this.heldBy.delete(key);
    } else {
      this.serversOf.get(before.frontend)?.delete(key);
      for (const [holder] of before.held_by) this.heldBy.get(holder)?.delete(key);
      dirty.add(before.frontend);
    }
  }

  #addPoint(point) {
    for (const [name, value] of Object.entries(point)) {
      const column = (this.history[name] ??= []);
      column.push(value);
      if (column.length > POINTS) column.shift();
    }
  }

  servers(frontend) {
    return [...(this.serversOf.get(frontend) ?? [])].map((key) => this.tables.servers.get(key)).filter(Boolean);
  }

  /** Does a filter's text, in lower case, occur in what is known about it, or is it one of its ports? */
  matches(frontend, text) {
    return this.#words(frontend).includes(text) || isNamed(this.tables.frontends.get(frontend), text.replace(/^:/, ""));
  }

  #words(frontend) {
    const { name, listen, health, trouble } = this.tables.frontends.get(frontend);
    const servers = this.servers(frontend).flatMap((one) => [one.name, one.address, one.state, ...one.held_by.map(([holder]) => holder)]);
    return [name, listen, health, trouble, ...servers].join(" ").toLowerCase();
  }

  /** pylb's monotonic clock as of `now` (performance.now()): ages go on while nothing is said. */
  clock(now) {
    return this.head.clock + (now - this.heard) / 1000;
  }
}

const frontendOf = (server) => server.slice(0, server.indexOf("|"));

function collection(map, key) {
  let found = map.get(key);
  if (found === undefined) map.set(key, (found = new Set()));
  return found;
}
