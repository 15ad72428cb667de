// The status page: one stream of server-sent events into one model, and which part of the page shows what.

import { Charts } from "./charts.js";
import { useProgram, watchDialog } from "./commands.js";
import { byId, flag, make, write } from "./dom.js";
import { Frontends } from "./frontends.js";
import { Model } from "./model.js";
import { Peers } from "./peers.js";
import { Sessions } from "./sessions.js";
import { Timeline } from "./timeline.js";
import { Welcome } from "./welcome.js";
import { number, span } from "./words.js";

const SILENCE = 4000; // ms without a message (there is one a second): the stream is dead, whatever the browser reports
const AGAIN = 1000; // ms between two tries

const model = new Model();
const parts = { frontends: new Frontends(model), charts: new Charts(model), timeline: new Timeline(model), peers: new Peers(model), welcome: new Welcome(model) };
new Sessions();
watchDialog();

let source = null;
let trying = 0;
let arrived = false; // at what the address's hash names
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
    for (const key of parts.frontends.shown.keys()) dirty.add(key); // the old ones, some of which may be gone
  }
  if (message.about) {
    if (isOfAnother(message.about.page)) return;
    useProgram(message.about);
    showMachine(message.about);
  }
  parts.welcome.update();
  parts.frontends.update(dirty);
  if (message.point || events) parts.charts.update(); // an event may be a mark
  if (events) parts.timeline.update();
  showHealth();
  parts.peers.update();
  linkIs("live", "live");
  if (!arrived && message.whole) {
    arrived = true;
    parts.frontends.revealHash();
  }
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
  const heading = byId("sentence");
  const lines = sentence.split("; ");
  while (heading.children.length > lines.length) heading.lastElementChild.remove();
  lines.forEach((text, place) => {
    const line = heading.children[place] ?? heading.appendChild(make("span", { class: "trouble" }));
    write(line, `${text} `);
  });
  flag(byId("health"), "health", model.head.health);
  // Read out only when the condition changes, not at each second of "12 s ago".
  const gist = sentence.replaceAll(/ \d+ (s|min|h|d) ago/g, "");
  if (gist !== spoken) {
    spoken = gist;
    write(byId("spoken"), sentence);
  }
  showFacts();
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
  if (document.hidden) return;
  parts.frontends.tick();
  parts.peers.tick();
}, 1000);

connect();
