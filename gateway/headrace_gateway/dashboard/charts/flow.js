// The state of every group that was ever admitted: one stream that divides into states, its width proportional to the number of
// groups. Both sides add up to the same number; if they do not, the page says so.

import { h, svg } from "../dom.js";
import { count, finePercent } from "../format.js";

const STATES = [
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
const MIN_ROW = 30; // pixels that a label needs
const STREAM = 170; // pixels: height of all groups together
const LEFT = { wide: 96, narrow: 62 };
const NARROW = 520; // pixels: below this width labels get less space
const BAR = 10;
const MIN_WIDTH = 2; // pixels: so that a single group is visible

export class LedgerFlow {
  #shown = "";

  constructor(place) {
    this.box = h("div", { class: "chart" });
    this.balance = h("p", { class: "balance" });
    place.append(this.box, this.balance);
    this.width = 0; // until the box is laid out
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
    const present = STATES.filter(([state]) => ledger.states[state] > 0), absent = STATES.filter(([state]) => !ledger.states[state]);
    this.balance.className = `balance${ledger.balanced ? "" : " broken"}`;
    const sum = present.map(([state]) => `${count(ledger.states[state])} ${words(state)}`).join(" + ") || "0";
    this.balance.replaceChildren(ledger.balanced ? `✓ ${count(ledger.admitted)} admitted = ${sum}` : `✗ the counts do not add up: ${count(ledger.admitted)} admitted, but ${sum}`,
      absent.length ? h("span", {}, `none ${absent.map(([state]) => words(state)).join(", ")}`) : null);
    this.box.replaceChildren(ledger.admitted ? picture(ledger, present, width) : h("p", { class: "later" }, "After the first group is admitted: the state of every group."));
  }
}

function picture(ledger, present, width) {
  const scale = STREAM / ledger.admitted, narrow = width < NARROW;
  const left = narrow ? LEFT.narrow : LEFT.wide, right = narrow ? left + 44 : width - 300;
  let from = 0, to = 0;
  const parts = present.flatMap(([state, what, color]) => {
    const n = ledger.states[state], high = Math.max(MIN_WIDTH, n * scale), room = Math.max(MIN_ROW, high + 6);
    const y = to + (room - high) / 2;
    const made = [
      svg("path", { class: `stream-${color}`, d: ribbon(left + BAR, from, Math.max(MIN_WIDTH / 2, n * scale), right, y, high) }),
      svg("rect", { class: `fill-${color}`, x: right, y, width: BAR, height: high, rx: 2 }),
      svg("text", { x: right + BAR + 8, y: y + high / 2 - 1, class: "flow-name" }, `${words(state)} ${count(n)}`),
      svg("text", { x: right + BAR + 8, y: y + high / 2 + 13, class: "flow-what" }, `${finePercent(n / ledger.admitted)} · ${what}`),
    ];
    from += n * scale;
    to += room;
    return made;
  });
  const height = Math.max(to, STREAM) + 12;
  return svg("svg", { width, height, viewBox: `0 -6 ${width} ${height}`, role: "img", "aria-label": "Groups by state" },
    svg("rect", { class: "fill-ink", x: left, y: 0, width: BAR, height: STREAM, rx: 2 }),
    svg("text", { x: left - 8, y: STREAM / 2 - 2, class: "flow-name end" }, `${count(ledger.admitted)}`),
    svg("text", { x: left - 8, y: STREAM / 2 + 13, class: "flow-what end" }, "admitted"), ...parts);
}

function ribbon(x, y, high, toX, toY, toHigh) {
  const middle = (x + toX) / 2;
  return `M${x},${y} C${middle},${y} ${middle},${toY} ${toX},${toY} V${toY + toHigh} C${middle},${toY + toHigh} ${middle},${y + high} ${x},${y + high} Z`;
}

const words = (state) => state.replace("_", " ");
