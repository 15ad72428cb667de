// What to paste while nothing is registered. The row then appears by itself.

import { command, copyButton } from "./commands.js";
import { byId, make } from "./dom.js";

export class Welcome {
  constructor(model) {
    this.model = model;
    this.root = byId("welcome");
  }

  update() {
    const empty = this.model.tables.frontends.size === 0;
    this.root.hidden = !empty;
    for (const id of ["frontends", "history", "jump", "skip"]) byId(id).hidden = empty; // nothing to see in them
    const steps = this.model.about.first_steps;
    if (!empty || steps === undefined || this.shown === steps) return;
    this.shown = steps;
    const create = `${command("token create", "my-app", "--ports", "443", "--kubernetes")} | kubectl apply -f -`;
    const here = step("Try it from this machine", `Sends ${steps.try}. The secret stays in its file.`, steps.curl);
    const good = step("From a cluster, for good", "A token for one app, and its manifests: a phone-home on each node.", create);
    const token = step("From a pod: the token, once", "On this machine, with a kubectl that reaches the cluster.", steps.secret);
    const sidecar = step("From a pod: the sidecar", "Beside the app, with its Service's nodePort.", steps.sidecar);
    this.root.replaceChildren(
      make("h2", { id: "welcome-title" }, "Nothing is registered yet"),
      make("p", {}, "Paste this into a shell on this machine; the frontend appears here by itself, within a second."),
      make("div", { class: "first" }, here),
      make("p", {}, steps.elsewhere),
      make("div", { class: "steps" }, make("div", {}, good, token), make("div", {}, sidecar)),
    );
  }
}

function step(title, text, code) {
  const button = copyButton("copy", `copy: ${title}`, () => code);
  const block = make("pre", { tabindex: "0", role: "region", "aria-label": title }, make("code", {}, code));
  return make("div", { class: "step" }, make("h3", {}, title), button, make("p", { class: "muted" }, text), block);
}
