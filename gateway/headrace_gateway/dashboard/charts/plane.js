// A canvas that redraws itself: sharp on every screen, as wide as its place, in the page's colours, with a tip of what is
// pointed at, by mouse, finger or arrow keys. What is drawn is a subclass's: `paint(ctx, width, height)`, `prepare(width)`
// before it, which may set the height, and `find(x, y)` and `move(dx, dy)`, which return { x, y, text } or null.

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
    this.width = 0; // until it is laid out: to ask before would have the browser lay out the page for each chart anew
    new ResizeObserver(([{ contentRect }]) => this.#resized(contentRect.width)).observe(this.box);
    onTheme(() => this.redraw());
  }

  #resized(width) {
    if (width === this.width) return; // its height changed
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

  #show(found) {
    this.tip.hidden = !found;
    if (!found) return;
    setText(this.tip, found.text);
    const most = this.box.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(most, found.x - this.tip.offsetWidth / 2))}px`;
    this.tip.style.top = `${Math.max(0, found.y - this.tip.offsetHeight - 10)}px`;
  }
}

// Round numbers between low and high, at most about `most` of them.
export function ticks(low, high, most) {
  const rough = (high - low) / Math.max(1, most), power = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  const by = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough) ?? power;
  const found = [];
  for (let tick = Math.ceil(low / by) * by; tick <= high; tick += by) found.push(tick);
  return found;
}
