// Light and dark, a colour for each condition, and a scale from orange (far from the assistant) to purple or blue.

const RAMP = {
  light: { low: "230, 97, 1", high: "94, 60, 153", most: 0.55 },
  dark: { low: "255, 160, 70", high: "110, 180, 255", most: 0.42 },
};

const dark = () => document.documentElement.dataset.theme === "dark";

// A colour for a distance from the middle in units of the scale's half, -1 … 1.
function shade(distance) {
  const ramp = RAMP[dark() ? "dark" : "light"];
  const strength = Math.min(Math.abs(distance), 1) * ramp.most;
  return `rgba(${distance < 0 ? ramp.low : ramp.high}, ${strength.toFixed(3)})`;
}

const colourOf = (condition) => `var(--c${placeOf(condition)})`;
const swatch = (condition) => element("span", { class: "swatch", "aria-hidden": "true", style: { background: colourOf(condition) } });

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").setAttribute("aria-pressed", String(theme === "dark"));
  D.conditions.forEach((condition, place) => document.documentElement.style.setProperty(`--c${place}`, condition.colour[theme]));
  if (!byId("conversations").hidden) {
    drawScale();
    recolour();
  }
}

function followSystem() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  setTheme(system.matches ? "dark" : "light");
  system.addEventListener("change", () => setTheme(system.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark"));
}
