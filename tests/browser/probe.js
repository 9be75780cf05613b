// Looks at the page from inside, and returns what it found.
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

  // WCAG 2.2: relative luminance and contrast ratio. The canvas turns any CSS colour into sRGB bytes.
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue] = [...canvas.getImageData(0, 0, 1, 1).data]
      .map((byte) => byte / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [bright, dim] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (bright + 0.05) / (dim + 0.05);
  };

  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const style = (node) => window.getComputedStyle(node);
  const transparent = (node) => /^(transparent|rgba\(0, 0, 0, 0\))$/.test(style(node).backgroundColor);
  const backdrop = (node) => (transparent(node) ? backdrop(node.parentElement) : style(node).backgroundColor);
  const legible = (node) => {
    const svg = node.closest("svg");
    return contrast(svg ? style(node).fill : style(node).color, backdrop(svg?.parentElement ?? node)) >= 4.5;
  };
  const hasText = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  const written = all("main *").filter((node) => node.getClientRects().length && hasText(node));

  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
  const overlaps = all("svg").flatMap((svg) => {
    const labels = all("text", svg).map((node) => [node.textContent, node.getBoundingClientRect()]);
    return labels.flatMap(([one, box], index) =>
      labels.slice(index + 1).filter(([, other]) => meet(box, other)).map(([two]) => `${one} | ${two}`),
    );
  });

  const tip = document.getElementById("tip");
  const point = (node) =>
    node.dispatchEvent(new window.PointerEvent("pointermove", { bubbles: true, clientX: 50, clientY: 50 }));
  const marks = all("[data-tip]");
  const answers = marks.filter((mark) => {
    point(mark);
    return tip.textContent === mark.dataset.tip && tip.style.opacity === "1";
  });
  point(document.querySelector("h1"));

  return {
    dark: window.matchMedia("(prefers-color-scheme: dark)").matches,
    width: [document.documentElement.scrollWidth, window.innerWidth],
    written: written.length,
    faint: written.filter((node) => !legible(node)).map((node) => node.textContent.trim().slice(0, 40)),
    overlaps,
    smallest: Math.min(...all("svg text").map((node) => node.getBoundingClientRect().height)),
    marks: marks.length,
    answers: answers.length,
    hidden: tip.style.opacity === "0",
  };
};
