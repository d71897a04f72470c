// Charts by uPlot, in the page's colours, as wide as their place, with the last or the pointed-at values beneath.

import { color, h, setText } from "./dom.js";

const HEIGHT = 210;
const ROOM_FOR_TEXT = 0.15; // of a bar

// What a chart draws. `series`: {label, color, width?, dash?, points?, fill?, show?} in the order of the data;
// `x`: name of the abscissa; `format`: a value as text; `range`: of the ordinate; `draw`: painted below the lines.
export class Chart {
  constructor(place, options) {
    this.options = options;
    this.data = null;
    this.box = h("div", { class: "chart" });
    this.keys = h("div", { class: "keys" });
    this.nothing = h("div", { class: "nothing" }, options.nothing ?? "no data yet");
    this.box.append(this.nothing);
    place.append(this.box, this.keys);
    new ResizeObserver(() => this.plot?.setSize(this.#size())).observe(this.box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#build());
    this.#build();
  }

  set(data) {
    this.data = data;
    this.nothing.hidden = data[0].length > 0;
    this.nothing.style.display = data[0].length > 0 ? "none" : "";
    this.plot.setData(data);
    this.#values(null);
  }

  #size() {
    return { width: Math.max(200, this.box.clientWidth), height: HEIGHT };
  }

  #build() {
    this.plot?.destroy();
    const { series, x, format, range } = this.options;
    const axis = { stroke: color("soft"), grid: { stroke: color("grid"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    this.plot = new uPlot({
      ...this.#size(),
      padding: [8, 12, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 7 }, drag: { x: true, y: false } },
      scales: { x: { time: false, range: this.options.xRange }, y: { range } },
      axes: [
        { ...axis, grid: { show: false }, size: 30, values: (_, ticks) => ticks.map((t) => x.format(t)), incrs: x.incrs },
        { ...axis, size: 50, space: 34, values: (_, ticks) => ticks.map((t) => format(t)), incrs: this.options.incrs },
      ],
      series: [{}, ...series.map((s) => this.#series(s))],
      hooks: {
        setCursor: [(plot) => this.#values(plot.cursor.idx ?? null)],
        drawClear: this.options.draw ? [(plot) => this.options.draw(plot)] : [],
      },
    }, this.data ?? [[], ...series.map(() => [])], this.box);
    this.#values(null);
  }

  #series(s) {
    return {
      stroke: color(s.color) + (s.weak ? "66" : ""),
      width: s.width ?? 2,
      dash: s.dash,
      spanGaps: true,
      fill: s.fill ? color(s.color) + "1c" : undefined,
      points: { show: Boolean(s.points), size: 6, fill: color(s.color) },
      paths: s.points === "only" ? () => null : undefined,
    };
  }

  #values(at) {
    const { series, x, format } = this.options;
    const data = this.data;
    if (!data || !data[0].length) return this.keys.replaceChildren();
    const where = at === null ? null : h("span", {}, `${x.label} `, h("b", {}, x.format(data[0][at])));
    this.keys.replaceChildren(...[where, ...series.map((s, i) => {
      const value = at === null ? data[i + 1].findLast((v) => v !== null) : data[i + 1][at];
      const swatch = h("i");
      swatch.style.background = color(s.color);
      swatch.style.opacity = s.weak ? 0.4 : 1;
      return h("span", {}, swatch, `${s.label} `, h("b", {}, value === null || value === undefined ? "–" : format(value)));
    })].filter(Boolean));
  }
}

export const byStep = { label: "step", format: (v) => (Number.isInteger(v) ? `${v}` : ""), incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] };
export const byTime = { label: "at", format: elapsed, incrs: [10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400] };

function elapsed(seconds) {
  const s = Math.round(seconds);
  const hours = Math.floor(s / 3600), minutes = String(Math.floor((s % 3600) / 60)).padStart(hours ? 2 : 1, "0");
  return `${hours ? `${hours}:` : ""}${minutes}:${String(s % 60).padStart(2, "0")}`;
}

// The staleness picture: for each step a column of cells, one for each age, darker the more of its tokens had that age;
// cells beyond the bound are red; the bound is a line that no coloured cell may cross.
export class AgeMap {
  constructor(place, bound) {
    this.bound = bound;
    this.cells = [];
    this.top = bound;
    this.chart = new Chart(place, {
      series: [
        { label: "mean age", color: "ink", width: 1.5 },
        { label: "oldest trained token", color: "clay", points: "only" },
      ],
      x: byStep,
      format: (v) => (Number.isInteger(v) ? `${v}` : v.toFixed(2)),
      incrs: [1, 2, 5, 10, 20, 50],
      xRange: (_, low, high) => (low === null ? [0.5, 1.5] : [low - 0.5, high + 0.5]),
      range: () => [-0.5, Math.max(this.bound, this.top) + 0.9],
      draw: (plot) => this.#draw(plot),
    });
  }

  set({ data, cells }) {
    this.cells = cells;
    this.top = cells.reduce((top, cell) => Math.max(top, cell.age), 0);
    this.chart.set(data);
  }

  #draw(plot) {
    const { ctx } = plot;
    const x = (v) => plot.valToPos(v, "x", true), y = (v) => plot.valToPos(v, "y", true);
    const width = Math.max(1, x(1) - x(0) - (x(1) - x(0) > 6 * devicePixelRatio ? devicePixelRatio : 0));
    ctx.save();
    for (const cell of this.cells) {
      ctx.globalAlpha = 0.1 + 0.8 * Math.sqrt(cell.share);
      ctx.fillStyle = color(cell.masked > 0.5 ? "bad" : "water");
      if (cell.share > 0) ctx.fillRect(x(cell.step - 0.5), y(cell.age + 0.47), width, y(cell.age - 0.47) - y(cell.age + 0.47));
    }
    ctx.globalAlpha = 1;
    ctx.strokeStyle = ctx.fillStyle = color("bad");
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.setLineDash([6 * devicePixelRatio, 4 * devicePixelRatio]);
    const edge = y(this.bound + 0.5);
    ctx.beginPath();
    ctx.moveTo(plot.bbox.left, edge);
    ctx.lineTo(plot.bbox.left + plot.bbox.width, edge);
    ctx.stroke();
    ctx.font = `600 ${11 * devicePixelRatio}px system-ui`;
    ctx.textAlign = "right";
    ctx.fillText(`bound ${this.bound}`, plot.bbox.left + plot.bbox.width - 4 * devicePixelRatio, edge - 5 * devicePixelRatio);
    ctx.restore();
  }
}

// Horizontal bars: what each worker did with its last seconds.
export class Shares {
  constructor(place) {
    this.box = h("div", { class: "share" });
    place.append(this.box);
    this.rows = new Map();
  }

  set(workers) {
    for (const { worker, role, parts } of workers) {
      if (!this.rows.has(worker)) this.#row(worker);
      const split = this.rows.get(worker);
      split.replaceChildren(...parts.map(([what, share]) => {
        const percent = `${Math.round(100 * share)} %`;
        const label = share < ROOM_FOR_TEXT || what === "other" ? "" : what === "busy" ? percent : `waits for ${what}`;
        const part = h("span", { class: what === "busy" ? "busy" : "", title: `${what}: ${percent}` }, label);
        part.style.flex = `${share} 0 0`;
        if (what === "busy") part.style.background = color(role === "learner" ? "clay" : "water");
        return part;
      }));
    }
  }

  #row(worker) {
    const split = h("div", { class: "split" });
    const name = h("span", { class: "who" });
    setText(name, worker);
    this.rows.set(worker, split);
    this.box.append(name, split);
  }
}
