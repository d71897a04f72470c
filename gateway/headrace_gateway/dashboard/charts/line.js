// Line charts by uPlot, in the page's colours and as wide as their place. Below are the values at the cursor, or the last ones.
// The arrow keys move the cursor.

import { color, h } from "../dom.js";
import { elapsed } from "../format.js";
import { onTheme } from "../theme.js";

const HEIGHT = 210;
const DASH = [4, 3];

// Options: `series`: [{label, color, width?, dash?, points?, fill?, weak?, stepped?}…] in the order of the data; `x`: an abscissa,
// as below; `format`: a value as text; `range`: of the ordinate; `nothing`: text that is shown while there is no data.
export class Lines {
  constructor(place, options) {
    this.options = options;
    this.data = null;
    this.box = h("div", { class: "chart blank", tabindex: "0", role: "group", "aria-label": options.label ?? place.firstChild?.textContent, onkeydown: (event) => this.#key(event) });
    this.keys = h("div", { class: "keys", "aria-live": "off" });
    this.nothing = h("div", { class: "nothing" }, options.nothing);
    this.box.append(this.nothing);
    place.append(this.box, this.keys);
    this.width = 0; // until the box is laid out
    new ResizeObserver(([{ contentRect }]) => this.#resized(contentRect.width)).observe(this.box);
    onTheme(() => this.#build());
  }

  // `series` and `x`: only if they differ from before
  set(data, series = this.options.series, x = this.options.x) {
    const same = x === this.options.x && JSON.stringify(series) === JSON.stringify(this.options.series);
    this.data = data;
    this.options.series = series;
    this.options.x = x;
    this.nothing.hidden = data[0].length > 0;
    this.box.classList.toggle("blank", !data[0].length);
    if (same && this.plot) this.plot.setData(data);
    else this.#build();
    this.#values(null);
  }

  #resized(width) {
    if (width === this.width) return;
    this.width = width;
    if (this.plot && width) this.plot.setSize(this.#size());
    else this.#build();
  }

  #size() {
    return { width: Math.max(160, this.width), height: HEIGHT };
  }

  // Does nothing until there is data, and the box has a width.
  #build() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.width || !this.data?.[0].length) return;
    const { series, x, format, range } = this.options;
    const axis = { stroke: color("soft"), grid: { stroke: color("grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    this.plot = new uPlot({
      ...this.#size(),
      padding: [8, 12, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 7 }, drag: { x: true, y: false } },
      scales: { x: { time: false }, y: { range } },
      axes: [
        { ...axis, grid: { show: false }, size: 30, values: (_, ticks) => ticks.map((t) => x.format(t)), incrs: x.incrs },
        { ...axis, size: 50, space: 34, values: (_, ticks) => ticks.map((t) => format(t)), incrs: this.options.incrs },
      ],
      series: [{}, ...series.map(drawn)],
      hooks: { setCursor: [(plot) => this.#values(plot.cursor.idx ?? null)] },
    }, this.data, this.box);
  }

  #key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move || !this.plot) return;
    event.preventDefault();
    const x = this.data[0], at = this.plot.cursor.idx ?? (move > 0 ? -1 : x.length);
    const next = Math.min(x.length - 1, Math.max(0, at + move));
    this.plot.setCursor({ left: this.plot.valToPos(x[next], "x"), top: HEIGHT / 2 });
  }

  #values(at) {
    const { series, x, format } = this.options;
    const data = this.data;
    if (!data || !data[0].length) return this.keys.replaceChildren();
    const where = at === null ? null : h("span", {}, `${x.label} `, h("b", {}, x.format(data[0][at])));
    this.keys.replaceChildren(...[where, ...series.map((s, i) => {
      const value = at === null ? data[i + 1].findLast((v) => v !== null && v !== undefined) : data[i + 1][at];
      return h("span", {}, swatch(s), `${s.label} `, h("b", {}, value === null || value === undefined ? "–" : format(value)));
    })].filter(Boolean));
  }
}

function drawn(s) {
  return {
    stroke: color(s.color, s.weak ? 0.4 : 1),
    width: s.width ?? 2,
    dash: s.dash ? DASH : undefined,
    spanGaps: true,
    fill: s.fill ? color(s.color, 0.11) : undefined,
    paths: s.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
    points: { show: Boolean(s.points), size: 6, fill: color(s.color) },
  };
}

export function swatch({ color: name, dash, weak }) {
  const line = h("i", { class: dash ? "dashed" : "" });
  line.style.borderColor = color(name, weak ? 0.4 : 1);
  return line;
}

const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000];
const integer = (v) => (Number.isInteger(v) ? v.toLocaleString("en") : "");
export const byStep = { label: "step", format: integer, incrs: STEPS };
export const byVersion = { ...byStep, label: "version" };
export const byAge = { ...byStep, label: "age" };
export const byTime = { label: "at", format: elapsed, incrs: [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 86_400, 172_800, 604_800] };

// The ordinate starts at zero, with some space above.
export const fromZero = (_, low, high) => [0, Math.max(1e-9, (high ?? 0) * 1.1) || 1];
export const share = () => [0, 1.02];
