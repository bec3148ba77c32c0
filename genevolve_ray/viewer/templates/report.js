"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  /* Search results are kept once each and filled in when the attempt that shows them is opened. */
  const pictures = JSON.parse(document.getElementById("pictures").textContent);
  const fill = details => all("img[data-picture]:not([src])", details).forEach(image => {
    image.src = pictures[image.dataset.picture];
  });
  all("details").forEach(details => details.addEventListener("toggle", () => fill(details)));
  all("details[open]").forEach(fill);

  /* Gallery: filter and order the cards. */
  const form = document.getElementById("controls");
  if (!form) return;
  const grid = document.getElementById("cards");
  const cards = all(".card", grid);
  function arrange() {
    const { why, order, least, words } = Object.fromEntries(new FormData(form));
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const value = card => order === "id" ? card.dataset.id : Number(card.dataset[order.replace("-", "")]);
    const sign = order.startsWith("-") ? -1 : 1;
    let shown = 0;
    cards.sort((a, b) => sign * (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0));
    for (const card of cards) {
      const text = card.querySelector(".ask").textContent.toLowerCase();
      const fits = (why === "all" || card.dataset.why === why)
        && (least === "" || Number(card.dataset.gain) >= Number(least)) && wanted.every(word => text.includes(word));
      card.hidden = !fits;
      shown += fits;
      grid.append(card);
    }
    document.getElementById("shown").value = `${shown} of ${cards.length} shown`;
  }
  form.hidden = false;
  form.addEventListener("input", arrange);
  form.addEventListener("submit", event => event.preventDefault());
  arrange();
})();
