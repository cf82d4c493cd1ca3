// Shows the text of the box that is pointed at, or that the keyboard has reached. Without this script browsers show the
// boxes' titles, later and only to pointers.
"use strict";
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true"); // the panels say the same to screen readers
  document.body.append(tip);
  let shown = null;

  const place = () => {
    const box = shown.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const left = box.left + box.width / 2 - own.width / 2;
    const above = box.top - own.height - 6;
    tip.style.left = `${Math.max(6, Math.min(left, document.documentElement.clientWidth - own.width - 6))}px`;
    tip.style.top = `${above < 6 ? Math.min(box.bottom + 6, innerHeight - own.height - 6) : above}px`;
  };

  const show = (box) => {
    if (shown) shown.classList.remove("on");
    shown = box;
    tip.hidden = !box;
    if (!box) return;
    box.classList.add("on");
    tip.textContent = box.dataset.text;
    const panel = box.parentNode;
    panel.setAttribute("aria-valuenow", 1 + [...panel.children].indexOf(box));
    panel.setAttribute("aria-valuetext", box.dataset.text);
    place();
  };

  const press = (event) => {
    const panel = event.currentTarget;
    const panels = [...panel.parentNode.children];
    const last = panel.children.length - 1;
    const now = panel.getAttribute("aria-valuenow") - 1;
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, PageUp: now + 10, PageDown: now - 10, Home: 0, End: last };
    const next = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key in to) {
      show(panel.children[Math.max(0, Math.min(last, to[event.key]))]);
    } else if (next) {
      const other = panels[panels.indexOf(panel) + next];
      if (!other) return;
      panel.setAttribute("tabindex", -1);
      other.setAttribute("tabindex", 0);
      other.focus();
    } else {
      return;
    }
    event.preventDefault();
  };

  for (const drawing of document.querySelectorAll(".readings")) {
    [...drawing.children].forEach((panel, number) => {
      for (const box of panel.children) {
        box.dataset.text = box.firstChild.textContent;
        box.firstChild.remove(); // or the browser shows it, too
      }
      const text = panel.firstChild.dataset.text;
      const slider = { role: "slider", tabindex: number ? -1 : 0, "aria-valuemin": 1, "aria-valuenow": 1 };
      Object.assign(slider, { "aria-valuemax": panel.children.length, "aria-valuetext": text });
      for (const [name, value] of Object.entries(slider)) panel.setAttribute(name, value);
      panel.addEventListener("keydown", press);
      panel.addEventListener("focus", () => show(panel.children[panel.getAttribute("aria-valuenow") - 1]));
      panel.addEventListener("blur", () => show(null));
    });
  }
  document.addEventListener("pointerover", (event) => show(event.target.closest(".readings rect")));
  document.addEventListener("keydown", (event) => event.key === "Escape" && show(null));
  document.addEventListener("scroll", () => shown && place(), true);
  for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;

  const reach = () => {
    for (const wide of document.querySelectorAll(".scroll, pre")) {
      if (wide.scrollWidth > wide.clientWidth) wide.setAttribute("tabindex", 0);
      else wide.removeAttribute("tabindex");
    }
  };
  addEventListener("resize", reach);
  reach();
})();
