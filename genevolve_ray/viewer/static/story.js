"use strict";
(() => {
  /* A picture opens at full size in a dialog; without this script a link opens it, and a button does nothing. */
  let dialog;
  function open(zoom) {
    if (!dialog) {
      dialog = document.createElement("dialog");
      dialog.className = "full";
      dialog.append(document.createElement("img"), document.createElement("p"), document.createElement("button"));
      const close = dialog.querySelector("button");
      close.type = "button";
      close.textContent = "Close";
      close.addEventListener("click", () => dialog.close());
      dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
      document.body.append(dialog);
    }
    const small = zoom.querySelector("img"), image = dialog.querySelector("img");
    image.src = zoom.getAttribute("href") || small.src;
    image.alt = small.alt;
    image.className = small.className;
    dialog.querySelector("p").textContent = zoom.dataset.caption || "";
    dialog.setAttribute("aria-label", zoom.dataset.caption || small.alt || "Picture at full size");
    dialog.showModal();
  }
  document.addEventListener("click", event => {
    const zoom = event.target instanceof Element && event.target.closest(".zoom");
    if (!zoom || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
    event.preventDefault();
    open(zoom);
  });
})();
