// Light and dark: the system's choice until the user chooses. Colours are named in style.css.

const KEY = "headrace-theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const watchers = new Set();
const known = new Map();

apply();
system.addEventListener("change", apply);

function chosen() {
  return localStorage.getItem(KEY);
}

export function isDark() {
  return (chosen() ?? (system.matches ? "dark" : "light")) === "dark";
}

function apply() {
  root.style.colorScheme = chosen() ?? "";
  known.clear();
  for (const watcher of watchers) watcher();
}

// Switches to the other theme; back to the system's choice if that is the same.
export function toggle() {
  const next = isDark() ? "light" : "dark";
  if (next === (system.matches ? "dark" : "light")) localStorage.removeItem(KEY);
  else localStorage.setItem(KEY, next);
  apply();
}

export function onTheme(watcher) {
  watchers.add(watcher);
}

// A colour of style.css as `rgb(…)`, for canvases, which CSS does not draw.
export function color(name, alpha = 1) {
  if (!known.has(name)) known.set(name, resolved(name));
  return `rgb(${known.get(name)} / ${alpha})`;
}

function resolved(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  root.append(probe);
  const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g);
  probe.remove();
  return `${red} ${green} ${blue}`;
}

// Colours for things of one kind that differ only by colour, distinct with every kind of colour blindness.
export const SERIES = ["water", "clay", "violet", "gold", "sky", "leaf", "rose", "slate"];

export const series = (i) => SERIES[i % SERIES.length];
