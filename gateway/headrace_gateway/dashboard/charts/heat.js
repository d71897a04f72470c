// The staleness picture: steps across, ages up, the share of a step's tokens as colour, the bound as a line. What is above the
// line was left out of the gradient: hatched, and in another colour.

import { color, h } from "../dom.js";
import { count, finePercent } from "../format.js";
import { columns } from "../data/ages.js";
import { Plane, ticks } from "./plane.js";

const PAD = { left: 38, right: 10, top: 10, bottom: 26 };
const NARROWEST = 3; // pixels of a column
const HATCH = 5; // pixels between two lines
const shade = (share, least) => least + (1 - least) * Math.sqrt(share);
const MIN_SHADE = { trained: 0.08, late: 0.4 }; // so that a single token beyond the bound is seen

export class AgeHeat extends Plane {
  #found = { columns: [], width: 1, top: 0 };
  #at = null;

  constructor(place) {
    super(place, { height: 260, nothing: "After the first step: the ages of its tokens.", label: "Token ages over the steps. Arrow keys read single cells." });
    this.steps = [];
    this.keys.append(h("span", {}, "share of the step's tokens ", scale()), h("span", {}, h("i", { class: "tick" }), "mean age of what was trained"), h("span", {}, h("i", { class: "masked" }), "too old: left out of the gradient"), h("span", {}, h("i", { class: "dashed bound" }), "bound"));
  }

  // `bounds`: [first step, bound]… in order
  set(steps, bounds) {
    this.steps = steps;
    this.bounds = bounds;
    this.nothing.hidden = steps.length > 0;
    this.redraw();
  }

  paint(ctx, width, height) {
    const inner = width - PAD.left - PAD.right;
    this.#found = columns(this.steps, Math.max(1, Math.floor(inner / NARROWEST)));
    if (!this.steps.length) return;
    this.rows = Math.max(this.#found.top, ...this.bounds.map(([, bound]) => bound)) + 2;
    this.first = this.steps[0].step;
    this.last = this.steps.at(-1).step + 1;
    this.x = (step) => PAD.left + ((step - this.first) / (this.last - this.first)) * inner;
    this.y = (age) => height - PAD.bottom - (age / this.rows) * (height - PAD.top - PAD.bottom);
    this.#axes(ctx, width, height);
    for (const column of this.#found.columns) for (const age of column.ages) this.#cell(ctx, column, age);
    this.#mean(ctx);
    this.#edge(ctx, width);
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
    for (const { from, to, mean } of this.#found.columns) {
      if (mean !== null) ctx.lineTo(this.x(Math.min(this.last, (from + to + 1) / 2)), this.y(mean + 0.5));
    }
    ctx.stroke();
  }

  // Stepped where the bound was changed; named where it now is.
  #edge(ctx, width) {
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
    const at = this.#found.columns.findLastIndex((c) => c.from <= step);
    const age = Math.floor(((this.y(0) - y) / (this.y(0) - this.y(this.rows))) * this.rows);
    return this.#told(at, age);
  }

  move(dx, dy) {
    const { at, age } = this.#at ?? { at: this.#found.columns.length - 1 - dx, age: -dy };
    return this.#told(at + dx, age + dy);
  }

  #told(at, age) {
    const column = this.#found.columns[at];
    if (!column || age < 0 || age >= this.rows) return null;
    this.#at = { at, age };
    const of = column.ages.find((a) => a.age === age);
    const where = column.from === column.to ? `step ${column.from}` : `steps ${column.from} to ${column.to}`;
    const says = of ? `${finePercent(of.share)} of tokens (${count(of.tokens)})${of.masked ? `, ${count(of.masked)} left out` : ""}` : "no token";
    return { x: this.x(column.from), y: this.y(age + 1), text: `${where} · age ${age} · ${says}` };
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
