// Token ages over the steps: steps across, ages up, the share of a step's tokens as colour, the bound as a line. Tokens above the
// line were left out of the gradient; they are hatched, and have another colour.

import { color, h } from "../dom.js";
import { count, finePercent } from "../format.js";
import { columns } from "../data/ages.js";
import { Plane, ticks } from "./plane.js";

const PAD = { left: 38, right: 10, top: 10, bottom: 26 };
const MIN_COLUMN = 3; // pixels: width of a column
const HATCH = 5; // pixels between two lines of a hatched cell
const shade = (share, least) => least + (1 - least) * Math.sqrt(share);
const MIN_SHADE = { trained: 0.08, late: 0.4 }; // so that a single token beyond the bound is visible

export class AgeHeat extends Plane {
  #data = { columns: [], width: 1, top: 0 };
  #selected = null;

  constructor(place) {
    super(place, { height: 260, nothing: "After the first step: the ages of its tokens.", label: "Token ages over the steps. Arrow keys read single cells." });
    this.steps = [];
    this.keys.append(h("span", {}, "share of the step's tokens ", scale()), h("span", {}, h("i", { class: "tick" }), "mean age of trained tokens"), h("span", {}, h("i", { class: "masked" }), "too old: left out of the gradient"), h("span", {}, h("i", { class: "dashed bound" }), "bound"));
  }

  // `bounds`: [[first step, bound]…], in the order of the steps
  set(steps, bounds) {
    this.steps = steps;
    this.bounds = bounds;
    this.nothing.hidden = steps.length > 0;
    this.redraw();
  }

  paint(ctx, width, height) {
    const inner = width - PAD.left - PAD.right;
    this.#data = columns(this.steps, Math.max(1, Math.floor(inner / MIN_COLUMN)));
    if (!this.steps.length) return;
    this.rows = Math.max(this.#data.top, ...this.bounds.map(([, bound]) => bound)) + 2;
    this.first = this.steps[0].step;
    this.last = this.steps.at(-1).step + 1;
    this.x = (step) => PAD.left + ((step - this.first) / (this.last - this.first)) * inner;
    this.y = (age) => height - PAD.bottom - (age / this.rows) * (height - PAD.top - PAD.bottom);
    this.#axes(ctx, width, height);
    for (const column of this.#data.columns) for (const age of column.ages) this.#cell(ctx, column, age);
    this.#mean(ctx);
    this.#boundLine(ctx, width);
  }

  #axes(ctx, width, height) {
    ctx.fillStyle = color("soft");
    ctx.textAlign = "right";
    for (const age of ticks(0, this.rows - 1, 6)) ctx.fillText(`${age}`, PAD.left - 8, this.y(age + 0.5));
    ctx.textAlign = "center";
    for (const step of ticks(this.first, this.last - 1, width / 90)) ctx.fillText(step.toLocaleString("en"), Math.min(width - 16, this.x(step + 0.5)), height - 10);
  }

  #cell(ctx, { from, to }, { age, share, tokens, masked }) {
    if (!tokens) return;
    const x = this.x(from), wide = this.x(Math.min(to + 1, this.last)) - x, gap = wide > 6 ? 1 : 0;
    const y = this.y(age + 1) + 0.5, high = this.y(age) - this.y(age + 1) - 1;
    const late = masked > tokens / 2;
    ctx.fillStyle = late ? color("clay", shade(share, MIN_SHADE.late)) : color("water", shade(share, MIN_SHADE.trained));
    ctx.fillRect(x, y, wide - gap, high);
    if (late) hatch(ctx, x, y, wide - gap, high);
  }

  #mean(ctx) {
    ctx.strokeStyle = color("ink");
    ctx.lineWidth = 1.5;
    ctx.beginPath();
    for (const { from, to, mean } of this.#data.columns) {
      if (mean !== null) ctx.lineTo(this.x(Math.min(this.last, (from + to + 1) / 2)), this.y(mean + 0.5));
    }
    ctx.stroke();
  }

  // The line has a step where the bound was changed; its label gives the present bound.
  #boundLine(ctx, width) {
    ctx.strokeStyle = ctx.fillStyle = color("bad");
    ctx.lineWidth = 1.5;
    ctx.setLineDash([6, 4]);
    ctx.beginPath();
    this.bounds.forEach(([from, bound], i) => {
      const until = this.bounds[i + 1]?.[0] ?? this.last, within = (step) => this.x(Math.min(this.last, Math.max(this.first, step)));
      ctx.lineTo(within(from), this.y(bound + 1));
      ctx.lineTo(within(until), this.y(bound + 1));
    });
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.font = "600 12px system-ui";
    ctx.textAlign = "right";
    const [, now] = this.bounds.at(-1);
    ctx.fillText(`bound ${now}`, width - PAD.right - 4, this.y(now + 1) - 9);
  }

  find(x, y) {
    if (!this.steps.length || x < PAD.left || y > this.y(0)) return null;
    const step = this.first + ((x - PAD.left) / (this.x(this.last) - PAD.left)) * (this.last - this.first);
    const at = this.#data.columns.findLastIndex((c) => c.from <= step);
    const age = Math.floor(((this.y(0) - y) / (this.y(0) - this.y(this.rows))) * this.rows);
    return this.#tip(at, age);
  }

  move(dx, dy) {
    const { at, age } = this.#selected ?? { at: this.#data.columns.length - 1 - dx, age: -dy };
    return this.#tip(at + dx, age + dy);
  }

  #tip(at, age) {
    const column = this.#data.columns[at];
    if (!column || age < 0 || age >= this.rows) return null;
    this.#selected = { at, age };
    const entry = column.ages.find((a) => a.age === age);
    const where = column.from === column.to ? `step ${column.from}` : `steps ${column.from} to ${column.to}`;
    const text = entry ? `${finePercent(entry.share)} of tokens (${count(entry.tokens)})${entry.masked ? `, ${count(entry.masked)} left out` : ""}` : "no token";
    return { x: this.x(column.from), y: this.y(age + 1), text: `${where} · age ${age} · ${text}` };
  }
}

function hatch(ctx, x, y, wide, high) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, wide, high);
  ctx.clip();
  ctx.strokeStyle = color("card", 0.8);
  ctx.lineWidth = 1;
  for (let at = x - high - ((x - high) % HATCH); at < x + wide; at += HATCH) {
    ctx.beginPath();
    ctx.moveTo(at, y + high);
    ctx.lineTo(at + high, y);
    ctx.stroke();
  }
  ctx.restore();
}

const scale = () => h("span", { class: "scale" }, h("small", {}, "0"), h("i"), h("small", {}, "100 %"));
