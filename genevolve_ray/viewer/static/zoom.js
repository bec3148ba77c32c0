"use strict";
/* A click on a picture opens it in full size: the one that its link or the page has, else its preview. */
(() => {
  const held = document.getElementById("pictures");
  const full = held ? JSON.parse(held.textContent) : {};
  const make = (tag, properties, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const step = (by, label, text) => make("button", { type: "button", ariaLabel: label, onclick: () => move(by) }, text);

  const image = make("img", { alt: "" });
  const about = make("p", { className: "about", ariaLive: "polite" });
  const steps = make("span", {}, step(-1, "Previous picture", "←"), " ", step(1, "Next picture", "→"));
  const link = make("a", { target: "_blank", rel: "noopener noreferrer", textContent: "Open the file" });
  const close = make("button", { type: "button", className: "close", ariaLabel: "Close", onclick: () => dialog.close() }, "✕");
  const dialog = make("dialog", { className: "viewer", ariaLabel: "Picture" }, close, image, about, make("p", { className: "more" }, steps, link));
  document.body.append(dialog);
  const NEIGHBORS = ".shots, .hits, .pair, .attempts, .solo, .candidates, .versus, .side-by-side";
  let current = null;

  const around = button => [...(button.closest(NEIGHBORS) || button.parentNode).querySelectorAll(".zoom")]
    .filter(one => one.querySelector("img[src]"));

  function show(button) {
    current = button;
    const { alt, full: key, file, size } = button.dataset;
    const preview = button.querySelector("img");
    const whole = !key || key in full;
    const [width, height] = size.split(" × ").map(Number);
    image.src = button.href || full[key] || preview.src;
    image.alt = alt;
    const small = preview.classList.contains("pixelated");
    image.className = small ? "pixelated" : "";
    /* Small pictures are enlarged by a whole number; a missing full size is shown as large as it would be. */
    const shown = small ? width * Math.max(1, Math.floor(640 / Math.max(width, height))) : Math.min(width, 1024);
    if (width) image.width = shown;
    else image.removeAttribute("width");
    const note = document.createElement("small");
    note.textContent = [width ? `${size} px` : "", whole ? "" : "this page holds a smaller preview"].filter(Boolean).join("; ");
    about.replaceChildren(alt, note);
    link.hidden = !file;
    if (file) link.href = file;
    steps.hidden = around(button).length < 2;
  }

  function move(by) {
    const all = around(current);
    if (all.length > 1) show(all[(all.indexOf(current) + by + all.length) % all.length]);
  }

  document.addEventListener("click", event => {
    const button = event.target instanceof Element && event.target.closest(".zoom");
    if (!button || !button.querySelector("img[src]") || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(button);
    dialog.showModal();
  });
  dialog.addEventListener("click", event => {
    if (event.target === dialog) dialog.close();
  });
  dialog.addEventListener("keydown", event => {
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });
  /* The focus returns to the picture that was looked at last. */
  dialog.addEventListener("close", () => current && current.focus());
})();
