// Moving pictures: they stand still for whoever asks for reduced motion, and stop and go by a button.
document.querySelectorAll(".animation").forEach((figure) => {
  const image = figure.querySelector("img");
  const button = figure.querySelector("button");
  let moves = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const show = () => {
    image.src = moves ? figure.dataset.moving : figure.dataset.still;
    button.textContent = moves ? "Stop" : "Play";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    moves = !moves;
    show();
  });
  show();
});

// What is wider than the page scrolls by itself; the keyboard reaches it, and a screen reader says what it is.
const reachable = () =>
  document.querySelectorAll(".table-wrapper, .highlight pre, .math").forEach((region) => {
    if (region.scrollWidth > region.clientWidth) {
      region.tabIndex = 0;
      region.setAttribute("role", "region");
      region.setAttribute("aria-label", region.matches(".table-wrapper") ? "Table, scrolls sideways" : "Text, scrolls sideways");
    }
  });
reachable();
addEventListener("resize", reachable);

// What the theme leaves out of its landmarks and headings.
document.querySelectorAll('[role="heading"]:not([aria-level])').forEach((heading) => heading.setAttribute("aria-level", "2"));
document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "All pages");
document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");

// Sphinx writes the lines of a long signature as a list of definitions without terms, which means nothing.
document.querySelectorAll(".sig dl, .sig dl > dd").forEach((part) => part.setAttribute("role", "none"));
