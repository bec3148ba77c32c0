// Follows a run: whenever the server says that something has changed, the parts marked data-live are replaced in place.
// Text of a run never reaches innerHTML: pages come from the server's own escaped templates, parsed without scripts.
"use strict";

const events = document.body.dataset.events;
let running = false, again = false;

async function refresh() {
  if (running) { again = true; return; }
  running = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, credentials: "same-origin" });
    if (answer.ok) replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
  } catch (error) {
    // The server is away; the stream of events reconnects by itself.
  } finally {
    running = false;
    if (again) { again = false; setTimeout(refresh, 250); }
  }
}

function replace(fresh) {
  const focused = document.activeElement && document.activeElement.id;
  for (const old of document.querySelectorAll("[data-live][id]")) {
    const next = fresh.getElementById(old.id);
    if (!next || next.outerHTML === old.outerHTML) continue;
    const open = new Set([...old.querySelectorAll("details[open][id]")].map((d) => d.id));
    const made = document.importNode(next, true);
    for (const details of made.querySelectorAll("details[id]")) if (open.has(details.id)) details.open = true;
    old.replaceWith(made);
  }
  if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus({ preventScroll: true });
  document.dispatchEvent(new Event("site:refreshed"));
}

if (events && document.querySelector("[data-live]")) {
  const stream = new EventSource(events);
  stream.addEventListener("change", refresh);
  stream.addEventListener("open", () => document.body.classList.remove("away"));
  stream.addEventListener("error", () => document.body.classList.add("away"));
  addEventListener("pagehide", () => stream.close());
}
