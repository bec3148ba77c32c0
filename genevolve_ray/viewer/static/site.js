// Follows a run: whenever the server says that something has changed, the parts marked data-live are replaced in place.
// Text of a run never reaches innerHTML: pages come from the server's own escaped templates, parsed without scripts.
"use strict";

const events = document.body.dataset.events;
const RETRY_MS = 10000;
let running = false, again = false, held = false, stream = null, retry = 0;

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

function inUse(section) {
  const selection = getSelection();
  return section.contains(document.activeElement)
    || (selection.rangeCount > 0 && !selection.isCollapsed && selection.getRangeAt(0).intersectsNode(section));
}

function replace(fresh) {
  held = false;
  for (const old of document.querySelectorAll("[data-live][id]")) {
    const next = fresh.getElementById(old.id);
    if (!next || next.outerHTML === old.outerHTML) continue;
    // A reader keeps the place of the keyboard and the marked text; the section follows once it is left.
    if (inUse(old)) { held = true; continue; }
    const open = new Set([...old.querySelectorAll("details[open][id]")].map((d) => d.id));
    const made = document.importNode(next, true);
    for (const details of made.querySelectorAll("details[id]")) if (open.has(details.id)) details.open = true;
    old.replaceWith(made);
  }
  document.dispatchEvent(new Event("site:refreshed"));
}

function release() {
  if (held && getSelection().isCollapsed) { held = false; setTimeout(refresh, 250); }
}

// A browser keeps at most six connections to a server: a page that nobody sees must not hold one of them.
function follow() {
  clearTimeout(retry);
  if (stream || document.hidden) return;
  const made = stream = new EventSource(events);
  made.addEventListener("change", refresh);
  made.addEventListener("open", () => document.body.classList.remove("away"));
  made.addEventListener("error", () => {
    if (made !== stream) return;
    document.body.classList.add("away");
    // After a refused answer an EventSource does not connect again by itself.
    if (made.readyState === EventSource.CLOSED) { leave(); retry = setTimeout(follow, RETRY_MS); }
  });
}

function leave() {
  clearTimeout(retry);
  if (stream) stream.close();
  stream = null;
}

// The navigation alone is no reason to follow: most pages of a run never change.
if (events && document.querySelector("main [data-live]")) {
  follow();
  document.addEventListener("visibilitychange", () => document.hidden ? leave() : follow());
  document.addEventListener("focusout", release);
  document.addEventListener("selectionchange", release);
  addEventListener("pagehide", leave);
  addEventListener("pageshow", follow);
}
