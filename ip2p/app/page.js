// Marks small pictures, which are enlarged pixel by pixel: a browser would blur them.
const SMALL = 192;
document.addEventListener("load", ({ target }) => {
  if (target instanceof HTMLImageElement) {
    target.toggleAttribute("data-small", Math.max(target.naturalWidth, target.naturalHeight) <= SMALL);
  }
}, true);
addEventListener("keydown", ({ key }) => {
  if (key === "Escape") document.querySelector("#close")?.click();
});
