"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const media = query => window.matchMedia(query);

  /* Curves: figures come without colours and take them from the style sheet, so that both themes are one file. */
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const painted = new Set();

  function axis(own, theme) {
    const base = { gridcolor: theme.rule, linecolor: theme.rule, zeroline: false, automargin: true, tickfont: { color: theme.muted, size: 11 } };
    const title = own && own.title ? { ...own.title, font: { color: theme.muted, size: 12 }, standoff: 8 } : undefined;
    return { ...base, ...own, ...(title ? { title } : {}) };
  }

  function paint(box) {
    const spec = JSON.parse(box.querySelector("script").textContent);
    const theme = { ink: style("--ink"), muted: style("--muted"), rule: style("--rule"), surface: style("--surface") };
    for (const trace of spec.data) {
      const colour = style("--series-" + trace.meta.colour);
      if (trace.line) trace.line.color = colour;
      trace.marker = { ...trace.marker, color: colour };
      trace.marker.line = { width: 0 };
    }
    const layout = {
      ...spec.layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: theme.ink, size: 12 },
      margin: { l: 8, r: 8, t: 8, b: 8 },
      xaxis: axis(spec.layout.xaxis, theme), yaxis: axis(spec.layout.yaxis, theme),
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { size: 12 } },
      hoverlabel: { bgcolor: theme.surface, bordercolor: theme.rule, font: { color: theme.ink } },
      dragmode: media("(pointer: coarse)").matches ? false : "zoom",
    };
    Plotly.react(box.querySelector(".canvas"), spec.data, layout, { displayModeBar: false, responsive: true });
    painted.add(box);
  }

  const near = new IntersectionObserver(entries => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      paint(entry.target);
    }
  }, { rootMargin: "800px" });
  all(".plot").forEach(box => near.observe(box));
  media("(prefers-color-scheme: dark)").addEventListener("change", () => painted.forEach(paint));
  window.addEventListener("beforeprint", () => all(".plot").filter(box => !painted.has(box)).forEach(paint));

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
