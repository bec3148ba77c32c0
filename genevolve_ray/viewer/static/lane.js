// The tokens of a trajectory: fetched when their part of the page is opened, and read one by one with pointer or keys.
// Pages come from the server's own escaped templates and are parsed without scripts.
"use strict";
(() => {
  const names = ["position", "text", "role", "log-prob", "advantage", "mask", "version", "teacher gap"];

  async function show(place, address) {
    try {
      const answer = await fetch(address, { credentials: "same-origin" });
      const lane = answer.ok && new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("lane");
      if (!lane) return;
      const old = place.querySelector(".lane");
      const made = document.importNode(lane, true);
      if (old) old.replaceWith(made); else place.append(made);
      made.querySelector(".flow")?.focus({ preventScroll: true });
    } catch (error) {
      // Files opened without a server cannot fetch: the link to the page of the tokens stays.
    }
  }

  for (const details of document.querySelectorAll("details[data-lane]")) {
    details.addEventListener("toggle", () => {
      if (details.open && !details.querySelector(".lane")) show(details, details.dataset.lane);
    });
  }

  function pick(token) {
    const lane = token.closest(".lane");
    for (const old of lane.querySelectorAll(".tok.chosen")) old.classList.remove("chosen");
    token.classList.add("chosen");
    token.scrollIntoView({ block: "nearest" });
    const cells = [...lane.querySelector(`#token-${Number(token.dataset.token)}`).cells].map(cell => cell.textContent.trim());
    lane.querySelector(".picked").textContent = cells.map((text, n) => `${names[n]} ${text}`).join(" · ");
  }

  document.addEventListener("click", event => {
    if (!(event.target instanceof Element)) return;
    const token = event.target.closest(".flow .tok"), link = event.target.closest("details .lane a[data-lane]");
    if (token) pick(token);
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      show(link.closest("details[data-lane]"), link.href);
    }
  });

  document.addEventListener("keydown", event => {
    const flow = event.target instanceof Element && event.target.closest(".flow");
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (!flow || step === undefined) return;
    event.preventDefault();
    const tokens = [...flow.querySelectorAll(".tok")];
    const at = tokens.findIndex(token => token.classList.contains("chosen"));
    const next = at < 0 && step !== Infinity ? 0 : Math.min(Math.max(at + step, 0), tokens.length - 1);
    if (tokens[next]) pick(tokens[next]);
  });
})();
