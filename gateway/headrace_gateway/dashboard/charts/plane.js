// A canvas that redraws itself: sharp on every screen, as wide as its place, in the page's colours. A tip describes the point that
// the mouse, a finger or the arrow keys select. Subclasses draw: `prepare(width)`, which may set the height, then `paint(ctx,
// width, height)`; `find(x, y)` and `move(dx, dy)` return the tip as { x, y, text }, or null.

import { h, setText } from "../dom.js";
import { onTheme } from "../theme.js";

export class Plane {
  constructor(place, { height, label, nothing }) {
    this.height = height;
    this.canvas = h("canvas", { tabindex: "0", role: "img", "aria-label": label });
    this.tip = h("div", { class: "tip", role: "status", hidden: true });
    this.nothing = h("div", { class: "nothing" }, nothing);
    this.box = h("div", { class: "chart plane" }, this.canvas, this.tip, this.nothing);
    this.keys = h("div", { class: "keys" });
    place.append(this.box, this.keys);
    this.canvas.addEventListener("pointermove", (event) => this.#show(this.find(event.offsetX, event.offsetY)));
    this.canvas.addEventListener("pointerleave", () => this.#show(null));
    this.canvas.addEventListener("blur", () => this.#show(null));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.width = 0; // until the box is laid out; asking earlier would make the browser lay out the page again for each chart
    new ResizeObserver(([{ contentRect }]) => this.#resized(contentRect.width)).observe(this.box);
    onTheme(() => this.redraw());
  }

  #resized(width) {
    if (width === this.width) return; // only the height changed
    this.width = width;
    this.redraw();
  }

  redraw() {
    const { width } = this;
    if (!width) return;
    this.prepare(width);
    this.canvas.width = width * devicePixelRatio;
    this.canvas.height = this.height * devicePixelRatio;
    this.canvas.style.height = `${this.height}px`;
    const ctx = this.canvas.getContext("2d");
    ctx.scale(devicePixelRatio, devicePixelRatio);
    ctx.font = "12px system-ui";
    ctx.textBaseline = "middle";
    this.paint(ctx, width, this.height);
  }

  prepare() {}

  #key(event) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    this.#show(this.move(dx, dy));
  }

  #show(tip) {
    this.tip.hidden = !tip;
    if (!tip) return;
    setText(this.tip, tip.text);
    const maxLeft = this.box.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(maxLeft, tip.x - this.tip.offsetWidth / 2))}px`;
    this.tip.style.top = `${Math.max(0, tip.y - this.tip.offsetHeight - 10)}px`;
  }
}

// Round numbers between low and high, about `max` of them at most.
export function ticks(low, high, max) {
  const rough = (high - low) / Math.max(1, max), power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  const by = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough) ?? power;
  const numbers = [];
  for (let tick = Math.ceil(low / by) * by; tick <= high; tick += by) numbers.push(tick);
  return numbers;
}
