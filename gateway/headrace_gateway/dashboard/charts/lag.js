// A timeline for each rollout worker: how many versions its weights are behind the learner's.

import { color, h } from "../dom.js";
import { elapsed } from "../format.js";
import { Plane } from "./plane.js";
import { lags } from "../data/lag.js";

const PAD = { left: 86, right: 10, top: 6, bottom: 26 };
const BIN = 3; // pixels: width of one point in time
const ROW = { max: 26, min: 8, all: 320 }; // pixels: height of one worker's row, and of all rows together

export class LagTimeline extends Plane {
  #selected = { row: 0, bin: -1 };

  constructor(place) {
    super(place, { height: 120, nothing: "Once workers run: how far their weights are behind.", label: "Versions behind the learner, by worker and time. Arrow keys read single points in time." });
    this.keys.append(h("span", {}, "versions behind ", ...["0", "1", "2", "bound", "beyond"].map((n, i) => h("span", { class: `lag lag-${i}` }, n))), h("span", {}, h("i", { class: "silent" }), "no heartbeat"));
  }

  set(measured, bound, start) {
    Object.assign(this, { measured, bound, start });
    this.redraw();
  }

  prepare(width) {
    if (!this.measured) return;
    this.lags = lags(this.measured, Math.max(20, Math.floor((width - PAD.left - PAD.right) / BIN)));
    const { rows } = this.lags;
    this.row = Math.max(ROW.min, Math.min(ROW.max, ROW.all / (rows.length || 1)));
    this.height = PAD.top + Math.max(80, this.row * rows.length) + PAD.bottom;
    this.nothing.hidden = rows.length > 0;
  }

  paint(ctx, width) {
    if (!this.lags?.rows.length) return;
    const { from, to, rows } = this.lags, bins = rows[0].lags.length;
    this.x = (bin) => PAD.left + (bin / bins) * (width - PAD.left - PAD.right);
    rows.forEach(({ worker, lags: row }, i) => {
      const y = PAD.top + i * this.row, high = this.row - (this.row > 12 ? 4 : 1);
      ctx.fillStyle = color("soft");
      ctx.textAlign = "right";
      if (this.row >= 12 || i % 2 === 0) ctx.fillText(worker.length > 13 ? `${worker.slice(0, 12)}…` : worker, PAD.left - 8, y + high / 2);
      ctx.fillStyle = color("grid");
      ctx.fillRect(PAD.left, y, width - PAD.left - PAD.right, high);
      row.forEach((lag, bin) => {
        if (lag < 0) return;
        ctx.fillStyle = this.#color(lag);
        const x = Math.round(this.x(bin)); // whole pixels, so that neighbours neither overlap nor leave a gap
        ctx.fillRect(x, y, Math.round(this.x(bin + 1)) - x, high);
      });
    });
    ctx.fillStyle = color("soft");
    ctx.textAlign = "center";
    for (let i = 0; i <= 4; i++) ctx.fillText(elapsed(from - this.start + ((to - from) * i) / 4), Math.min(width - 22, this.x((bins * i) / 4)), this.height - 10);
  }

  #color(lag) {
    if (lag > this.bound) return color("bad");
    if (lag === 0) return color("water", 0.18);
    return lag >= this.bound ? color("clay") : color("water", 0.4 + (0.6 * lag) / Math.max(1, this.bound));
  }

  find(x, y) {
    if (!this.x) return null;
    const bins = this.lags.rows[0].lags.length;
    return this.#tip(Math.floor((y - PAD.top) / this.row), Math.floor(((x - PAD.left) / (this.x(bins) - PAD.left)) * bins));
  }

  move(dx, dy) {
    return this.x ? this.#tip(this.#selected.row - dy, this.#selected.bin + dx) : null;
  }

  #tip(row, bin) {
    const timeline = this.lags.rows[row];
    if (!timeline || bin < 0 || bin >= timeline.lags.length) return null;
    this.#selected = { row, bin };
    const { from, to } = this.lags, lag = timeline.lags[bin];
    const when = elapsed(from - this.start + ((bin + 1) * (to - from)) / timeline.lags.length);
    const text = lag < 0 ? "no heartbeat" : lag === 0 ? "has the newest weights" : `${lag} version${lag > 1 ? "s" : ""} behind`;
    return { x: this.x(bin), y: PAD.top + row * this.row, text: `${timeline.worker} at ${when} · ${text}` };
  }
}
