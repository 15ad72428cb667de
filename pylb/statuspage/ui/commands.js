// Whatever changes something is a command for a shell on pylb's machine. This page only shows it.

import { byId, make } from "./dom.js";
import { portOf, quoted } from "./words.js";

let pylb = { command: "pylb", option: "" };
let opener = null;

/** How pylb was called: commands are to be pasted as they are. */
export function useProgram(about) {
  pylb = { command: about.command ?? "pylb", option: about.option ?? "" };
}

/** `pylb VERB WORDS… -c FILE`. */
export function command(verb, ...words) {
  return [pylb.command, verb, ...words.map(quoted)].join(" ") + pylb.option;
}

/** FRONTEND/SERVER as `pylb ctl` wants it: the label, or the address if the label is one of `ambiguous`. */
export function target(frontend, server, ambiguous) {
  return `${frontend.name}/${ambiguous.has(server.name) ? server.address : server.name}`;
}

export function ofServer(frontend, server, where, registrations) {
  const out = server.state === "drain" || server.state === "maint";
  const found = [
    out ? ["Serve again", command("ctl ready", where)] : ["No new sessions; live ones have timeouts.drain", command("ctl drain", where)],
    ["No new sessions and no health checks", command("ctl maint", where)],
    ["Another weight, until it is set to `default`", command("ctl weight", where, "5")],
    ["Reset all its sessions", command("ctl shutdown sessions", where)],
  ];
  for (const one of registrations) {
    found.push(["Release its registration", command("release", one.legacy ? portOf(frontend) : `${one.name}/${one.instance}`)]);
  }
  return found;
}

export function ofFrontend(frontend) {
  const port = portOf(frontend);
  const route = frontend.server_name ? [port, "--name", frontend.server_name] : [port];
  const found = [
    ["Why does it not answer?", command("explain", ...route)],
    ["What changed, and who asked", command("history", frontend.server_name ?? port)],
    ["Its sessions", command("sessions --frontend", frontend.name)],
  ];
  if (frontend.routes) found.push(["Release the registrations on its default route", command("release", port, "--default")]);
  found.push([`Release all registrations on it${frontend.routes ? ", also those of its routes" : ""}`, command("release", ...route)]);
  return found;
}

/** A button that copies `text()`; `label` is for those who do not see the row it stands in. */
export function copyButton(word, label, text) {
  const button = make("button", { type: "button", class: "copy", "aria-label": label, title: "Copies the command" }, word);
  button.addEventListener("click", () => copy(text()));
  return button;
}

/** To the clipboard; where a browser has none (plain http from another machine) the text is shown selected. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied: ", text);
  } catch {
    say("Copy it from here: ", text);
    getSelection().selectAllChildren(byId("toast").querySelector("code"));
  }
}

let fading = 0;

function say(word, text) {
  const toast = byId("toast");
  toast.replaceChildren(make("span", {}, word), make("code", {}, text));
  toast.classList.add("shown");
  clearTimeout(fading);
  fading = setTimeout(() => toast.classList.remove("shown"), 8000);
}

/** One dialog for all rows: `list` holds what each command does, and the command. */
export function showCommands(title, list, button) {
  const dialog = byId("commands");
  opener = button;
  const items = list.map(([what, text]) =>
    make("li", {}, make("p", {}, what), make("div", { class: "line" }, make("code", {}, text), copyButton("copy", `copy: ${text}`, () => text))),
  );
  const close = make("button", { type: "button", class: "close" }, "Close");
  close.addEventListener("click", () => dialog.close());
  const heading = make("h2", { id: "commands-title" }, title);
  const hint = make("p", { class: "muted" }, "To be pasted into a shell on this machine, as root or as pylb's user.");
  // The toast stays inside: what is outside of a modal dialog is inert, and would not be read out.
  dialog.replaceChildren(heading, hint, make("ul", { class: "commands" }, ...items), close);
  dialog.append(byId("toast"));
  dialog.showModal();
}

/** To be called once. */
export function watchDialog() {
  byId("commands").addEventListener("close", () => {
    document.body.append(byId("toast"));
    if (opener?.isConnected) opener.focus();
    opener = null;
  });
}
