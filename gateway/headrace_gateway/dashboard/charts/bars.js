// The distribution of token ages: a bar for each age (the last steps), with a mark for the whole job, and the bound as a line.

import { color, h } from "../dom.js";
import { count, percent } from "../format.js";
import { Plane, ticks } from "./plane.js";

const PAD = { left: 44, right: 10, top: 18, bottom: 26 };

export class AgeBars extends Plane {
  #selected = -1;

  constructor(place) {
    super(place, { height: 210, nothing: "After the first step: the ages of its tokens.", label: "Tokens by age. Arrow keys read single ages." });
    this.recent = this.whole = [];
    this.keys.append(h("span", {}, h("i", { class: "block" }), "last 20 steps"), h("span", {}, h("i", { class: "tick" }), "whole job"), h("span", {}, h("i", { class: "dashed bound" }), "bound"));
  }

  set(recent, whole, bound) {
    Object.assign(this, { recent: byAge(recent), whole: byAge(whole), bound });
    this.ages = Math.max(bound, ...whole.map((a) => a.age)) + 2;
    this.maxShare = Math.max(0.05, ...recent.map((a) => a.share), ...whole.map((a) => a.share));
    this.nothing.hidden = whole.length > 0;
    this.redraw();
  }

  paint(ctx, width, height) {
    if (!this.ages || !this.nothing.hidden) return;
    this.x = (age) => PAD.left + (age / this.ages) * (width - PAD.left - PAD.right);
    this.y = (share) => height - PAD.bottom - (share / this.maxShare) * (height - PAD.top - PAD.bottom);
    this.#axes(ctx, width, height);
    const wide = this.x(1) - this.x(0);
    for (let age = 0; age < this.ages; age++) {
      const recent = this.recent[age], all = this.whole[age], x = this.x(age) + 0.14 * wide;
      ctx.fillStyle = color(recent && recent.masked === recent.tokens ? "clay" : "water", 0.85); // not by the present bound, which may have changed
      if (recent) ctx.fillRect(x, this.y(recent.share), 0.72 * wide, this.y(0) - this.y(recent.share));
      ctx.fillStyle = color("ink");
      if (all) ctx.fillRect(x - 0.06 * wide, this.y(all.share) - 1, 0.84 * wide, 2);
    }
    this.#boundLine(ctx, height);
  }

  #axes(ctx, width, height) {
    ctx.textAlign = "right";
    for (const hundredth of ticks(0, 100 * this.maxShare, 4)) {
      const y = this.y(hundredth / 100);
      ctx.fillStyle = color("grid");
      ctx.fillRect(PAD.left, y, width - PAD.left - PAD.right, 1);
      ctx.fillStyle = color("soft");
      ctx.fillText(`${hundredth} %`, PAD.left - 8, y);
    }
    ctx.textAlign = "center";
    for (const age of ticks(0, this.ages - 1, Math.min(this.ages, width / 40))) ctx.fillText(`${age}`, this.x(age + 0.5), height - 10);
  }

  #boundLine(ctx, height) {
    const x = this.x(this.bound + 1);
    ctx.strokeStyle = ctx.fillStyle = color("bad");
    ctx.lineWidth = 1.5;
    ctx.setLineDash([6, 4]);
    ctx.beginPath();
    ctx.moveTo(x, 6);
    ctx.lineTo(x, height - PAD.bottom);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.font = "600 12px system-ui";
    ctx.textAlign = "right";
    ctx.fillText(`bound ${this.bound}`, x - 6, 10);
  }

  find(x) {
    return this.x ? this.#tip(Math.floor(((x - PAD.left) / (this.x(this.ages) - PAD.left)) * this.ages)) : null;
  }

  move(dx) {
    return this.x ? this.#tip(this.#selected + dx) : null;
  }

  #tip(age) {
    if (age < 0 || age >= this.ages) return null;
    this.#selected = age;
    const recent = this.recent[age], all = this.whole[age];
    const text = recent ? `${percent(recent.share)} of the tokens of the last steps (${count(recent.tokens)})` : "no tokens in the last steps";
    return { x: this.x(age + 0.5), y: this.y(recent?.share ?? 0), text: `age ${age} · ${text} · ${percent(all?.share ?? 0)} of the whole job's tokens` };
  }
}

function byAge(list) {
  const entries = [];
  for (const entry of list) entries[entry.age] = entry;
  return entries;
}
