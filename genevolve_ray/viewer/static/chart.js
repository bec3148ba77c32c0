"use strict";
/* Values of charts: under the pointer, or by the arrow keys. A page without this script still shows all curves. */
(() => {
  const NEAR = 20;
  const label = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

  function follow(chart) {
    const svg = chart.querySelector(".curves");
    const cursor = chart.querySelector(".cursor");
    const box = chart.querySelector(".reading");
    const { places, heads, values } = JSON.parse(chart.dataset.readings);
    const keys = [...chart.querySelectorAll(".keys .key")];
    const names = [...chart.querySelectorAll(".keys li > span")].map(name => name.textContent);
    let place = -1;

    function show(content, x) {
      box.replaceChildren(...content);
      box.hidden = false;
      const room = svg.clientWidth || svg.getBoundingClientRect().width;
      const left = x * room / 100;
      box.style.left = `${left < room / 2 ? left + 12 : Math.max(-40, left - 12 - box.offsetWidth)}px`;
    }

    function hide() {
      place = -1;
      box.hidden = true;
      cursor.setAttribute("hidden", "");
    }

    function read(at) {
      place = at;
      cursor.setAttribute("x1", `${places[at]}%`);
      cursor.setAttribute("x2", `${places[at]}%`);
      cursor.removeAttribute("hidden");
      const rows = values.filter(([, texts]) => texts[at] !== "").map(([key, texts]) => {
        const row = document.createElement("p");
        if (keys[key]) row.append(keys[key].cloneNode(true), names[key]);
        row.append(label("span", texts[at]));
        return row;
      });
      show([label("b", heads[at]), ...rows], places[at]);
    }

    function nearestMark(event) {
      let best = null;
      for (const title of svg.querySelectorAll(".mark title")) {
        const mark = title.parentNode;
        const spot = mark.querySelector("path, circle").getBoundingClientRect();
        const away = Math.hypot(event.clientX - spot.x - spot.width / 2, event.clientY - spot.y - spot.height / 2);
        if (away < NEAR && (!best || away < best.away)) best = { away, mark, text: title.textContent };
      }
      return best;
    }

    svg.addEventListener("pointermove", event => {
      const mark = nearestMark(event);
      if (mark) {
        cursor.setAttribute("hidden", "");
        show([label("b", mark.text)], parseFloat(mark.mark.getAttribute("x")));
        return;
      }
      if (!places.length) return hide();
      const frame = svg.getBoundingClientRect();
      const x = 100 * (event.clientX - frame.x) / frame.width;
      let at = 0;
      places.forEach((spot, i) => { if (Math.abs(spot - x) < Math.abs(places[at] - x)) at = i; });
      read(at);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", event => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -places.length, End: places.length }[event.key];
      if (event.key === "Escape") hide();
      if (!step || !places.length) return;
      event.preventDefault();
      const from = place < 0 ? (step > 0 ? -1 : places.length) : place;
      read(Math.min(places.length - 1, Math.max(0, from + step)));
    });
  }

  /* The site replaces its charts while a run goes on. */
  const followed = new WeakSet();
  function followAll() {
    for (const chart of document.querySelectorAll(".chart")) {
      if (!followed.has(chart)) follow(chart);
      followed.add(chart);
    }
  }
  followAll();
  document.addEventListener("site:refreshed", followAll);
})();
