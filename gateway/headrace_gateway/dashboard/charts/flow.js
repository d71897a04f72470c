// Where every group that was ever admitted is now: one stream that divides, as wide as groups are many. Both sides are equal, or
// the page says that the books do not balance.

import { h, svg } from "../dom.js";
import { count, finePercent } from "../format.js";

const ENDS = [
  ["trained", "in the model", "leaf"],
  ["claimed", "in a step now", "water"],
  ["queued", "waiting for the learner", "water"],
  ["leased", "being generated", "water"],
  ["dropped_stale", "dropped: too old", "clay"],
  ["filtered", "filtered by the algorithm", "gold"],
  ["reward_failed", "reward failed", "bad"],
  ["generation_failed", "generation failed", "bad"],
  ["cancelled", "cancelled with the job", "slate"],
];
const ROW = 30; // pixels that a label needs
const STREAM = 170; // height of all groups together
const LEFT = { wide: 96, narrow: 62 };
const NARROW = 520;
const BAR = 10;
const THINNEST = 2;

export class LedgerFlow {
  #shown = "";

  constructor(place) {
    this.box = h("div", { class: "chart" });
    this.balance = h("p", { class: "balance" });
    place.append(this.box, this.balance);
    this.width = 0; // until it is laid out
    new ResizeObserver(([{ contentRect }]) => this.#resized(contentRect.width)).observe(this.box);
  }

  set(ledger) {
    const now = JSON.stringify([ledger.admitted, ledger.states]);
    if (now === this.#shown) return;
    this.#shown = now;
    this.ledger = ledger;
    this.#draw();
  }

  #resized(width) {
    if (width === this.width) return;
    this.width = width;
    this.#draw();
  }

  #draw() {
    const { ledger, width } = this;
    if (!ledger || !width) return;
    const there = ENDS.filter(([state]) => ledger.states[state] > 0), none = ENDS.filter(([state]) => !ledger.states[state]);
    this.balance.className = `balance${ledger.balanced ? "" : " broken"}`;
    const sum = there.map(([state]) => `${count(ledger.states[state])} ${words(state)}`).join(" + ") || "0";
    this.balance.replaceChildren(ledger.balanced ? `✓ ${count(ledger.admitted)} admitted = ${sum}` : `✗ the counts do not add up: ${count(ledger.admitted)} admitted, but ${sum}`,
      none.length ? h("span", {}, `none ${none.map(([state]) => words(state)).join(", ")}`) : null);
    this.box.replaceChildren(ledger.admitted ? picture(ledger, there, width) : h("p", { class: "later" }, "Once a worker has the first prompt: where its group is."));
  }
}

function picture(ledger, there, width) {
  const scale = STREAM / ledger.admitted, narrow = width < NARROW;
  const left = narrow ? LEFT.narrow : LEFT.wide, right = narrow ? left + 44 : width - 300;
  let from = 0, to = 0;
  const parts = there.flatMap(([state, what, color]) => {
    const n = ledger.states[state], high = Math.max(THINNEST, n * scale), room = Math.max(ROW, high + 6);
    const y = to + (room - high) / 2;
    const made = [
      svg("path", { class: `stream-${color}`, d: ribbon(left + BAR, from, Math.max(THINNEST / 2, n * scale), right, y, high) }),
      svg("rect", { class: `fill-${color}`, x: right, y, width: BAR, height: high, rx: 2 }),
      svg("text", { x: right + BAR + 8, y: y + high / 2 - 1, class: "flow-name" }, `${words(state)} ${count(n)}`),
      svg("text", { x: right + BAR + 8, y: y + high / 2 + 13, class: "flow-what" }, `${finePercent(n / ledger.admitted)} · ${what}`),
    ];
    from += n * scale;
    to += room;
    return made;
  });
  const height = Math.max(to, STREAM) + 12;
  return svg("svg", { width, height, viewBox: `0 -6 ${width} ${height}`, role: "img", "aria-label": "Where every group is" },
    svg("rect", { class: "fill-ink", x: left, y: 0, width: BAR, height: STREAM, rx: 2 }),
    svg("text", { x: left - 8, y: STREAM / 2 - 2, class: "flow-name end" }, `${count(ledger.admitted)}`),
    svg("text", { x: left - 8, y: STREAM / 2 + 13, class: "flow-what end" }, "admitted"), ...parts);
}

function ribbon(x, y, high, toX, toY, toHigh) {
  const middle = (x + toX) / 2;
  return `M${x},${y} C${middle},${y} ${middle},${toY} ${toX},${toY} V${toY + toHigh} C${middle},${toY + toHigh} ${middle},${y + high} ${x},${y + high} Z`;
}

const words = (state) => state.replace("_", " ");
