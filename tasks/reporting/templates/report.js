// One tooltip for every mark that carries data-tip; nothing else on the page moves.
const tip = document.getElementById("tip");
const show = (event) => {
  const mark = event.target.closest?.("[data-tip]");
  tip.style.opacity = mark ? 1 : 0;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, innerWidth - width - 8);
  const above = event.clientY - height - 12;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above < 8 ? event.clientY + 18 : above}px`;
};
addEventListener("pointermove", show, { passive: true });
addEventListener("pointerdown", show, { passive: true });
addEventListener("scroll", () => (tip.style.opacity = 0), { passive: true });
// On paper everything is open.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((box) => (box.open = true)));
