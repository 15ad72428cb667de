// The status page: one stream of server-sent events into one model, and which part of the page shows what.

import { Cards } from "./cards.js";
import { Charts } from "./charts.js";
import { useProgram, watchDialog } from "./commands.js";
import { byId, flag, write } from "./dom.js";
import { Model } from "./model.js";
import { Sessions } from "./sessions.js";
import { Timeline } from "./timeline.js";
import { Welcome } from "./welcome.js";
import { number, span } from "./words.js";

const SILENCE = 4000; // ms without a message (there is one a second): the stream is dead, whatever the browser reports
const AGAIN = 1000; // ms between two tries

const model = new Model();
const parts = { cards: new Cards(model), charts: new Charts(model), timeline: new Timeline(model), welcome: new Welcome(model) };
new Sessions();
watchDialog();

let source = null;
let trying = 0;
let since = 0; // performance.now() of the last try

function connect() {
  source?.close();
  clearTimeout(trying);
  source = new EventSource("v1/stream");
  since = performance.now();
  source.addEventListener("message", (event) => take(JSON.parse(event.data)));
  // The browser stops retrying at the first answer that is not a stream, such as a 503: we do not.
  source.addEventListener("error", () => {
    source.close();
    linkIs("lost", "no connection to pylb, trying again");
    trying = setTimeout(connect, AGAIN);
  });
}

/** One message: everything at first, then what changed. Measured, so that a test can say what 500 frontends cost. */
function take(message) {
  const began = performance.now();
  const { dirty, events } = model.apply(message, began);
  if (message.whole) {
    for (const key of parts.cards.cards.keys()) dirty.add(key); // the old ones, some of which may be gone
  }
  if (message.about) {
    if (isOfAnother(message.about.page)) return;
    useProgram(message.about);
    showMachine(message.about);
  }
  parts.welcome.update();
  parts.cards.update(dirty);
  if (message.point || events) parts.charts.update(); // an event may be a mark
  if (events) parts.timeline.update();
  showHealth();
  linkIs("live", "live");
  if (performance.getEntriesByName("update").length > 500) performance.clearMeasures("update");
  performance.measure("update", { start: began, detail: { whole: message.whole === true, point: message.point !== undefined, frontends: dirty.size } });
}

/** Has pylb been replaced by a version with another page? Then that one is loaded: what is streamed to it is its own matter. */
function isOfAnother(version) {
  const own = new URL(import.meta.url).pathname.split("/").at(-2);
  if (version === undefined || version === own || sessionStorage.getItem("loaded") === version) return false;
  sessionStorage.setItem("loaded", version); // once, in case a cache in between serves the old one
  source.close();
  location.reload();
  return true;
}

function linkIs(state, text) {
  flag(byId("link"), "state", state);
  write(byId("link-text"), text);
  document.body.classList.toggle("lost", state === "lost");
}

function showMachine(about) {
  const workers = about.workers === 0 ? "" : ` · ${about.workers} workers`;
  write(byId("machine"), `${about.host} · ${about.version}${workers}`);
  document.title = `pylb on ${about.host}`;
}

let spoken = "";

function showHealth() {
  const { sentence } = model.head;
  write(byId("sentence"), sentence);
  flag(byId("health"), "health", worst());
  // Read out only when the condition changes, not at each second of "12 s ago".
  const gist = sentence.replaceAll(/ \d+ (s|min|h|d) ago/g, "");
  if (gist !== spoken) {
    spoken = gist;
    write(byId("spoken"), sentence);
  }
  showFacts();
}

function worst() {
  const words = new Set([...model.tables.frontends.values()].map((one) => one.health));
  if (!model.head.durable || words.has("down")) return "down";
  return words.has("degraded") ? "degraded" : words.size === 0 ? "unknown" : "healthy";
}

function showFacts() {
  const { about, head, history } = model;
  const active = history.active?.at(-1) ?? 0;
  const facts = [`${number(active)} of ${number(about.most_sessions)} sessions`, `table ${head.generation}`, `up for ${span(head.now - about.started)}`];
  write(byId("facts"), facts.join(" · "));
}

setInterval(() => {
  const silent = performance.now() - Math.max(model.heard, since);
  if (silent > SILENCE && source.readyState !== EventSource.CLOSED) {
    linkIs("lost", `no message from pylb for ${span(silent / 1000)}, trying again`);
    connect();
  }
  if (!document.hidden) parts.cards.tick();
}, 1000);

connect();
