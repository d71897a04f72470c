// Stacked bars: how each worker spent its time: busy first, then what it waited for.

import { h, setText } from "../dom.js";
import { percent } from "../format.js";

const MIN_LABELLED = 0.16; // of a bar: smaller parts have no space for text
const COLORS = { window: "gold", groups: "violet", weights: "sky", rewards: "rose", checkpoint: "rose", publish: "sky", settle: "gold", other: "line" };
const MEANS = { window: "the learner is behind", groups: "rollout is behind", weights: "new weights", other: "neither busy nor waiting" };

export class Shares {
  #rows = new Map();

  constructor(place, nothing) {
    this.nothing = h("p", { class: "later" }, nothing);
    this.box = h("div", { class: "share" });
    this.keys = h("div", { class: "keys" });
    place.append(this.nothing, this.box, this.keys);
  }

  set(workers) {
    this.nothing.hidden = workers.length > 0;
    for (const { worker, role, parts } of workers) {
      const split = this.#rows.get(worker) ?? this.#row(worker);
      split.setAttribute("aria-label", parts.map(([what, share]) => `${what} ${percent(share)}`).join(", "));
      split.replaceChildren(...parts.map(([what, share]) => {
        const label = share < MIN_LABELLED ? "" : what === "busy" ? percent(share) : `${what} ${percent(share)}`;
        const part = h("span", { class: `part ${fill(what, role)}`, title: `${what}: ${percent(share)}` }, label);
        part.style.flex = `${share} 0 0`;
        return part;
      }));
    }
    const reasons = [...new Set(workers.flatMap((w) => w.parts.map(([what]) => what)))].filter((what) => what !== "busy");
    this.keys.replaceChildren(...reasons.map((what) => h("span", {}, h("i", { class: `block part ${fill(what)}` }), what === "other" ? "other" : `waits for ${what}`, MEANS[what] ? ` (${MEANS[what]})` : "")));
  }

  #row(worker) {
    const split = h("div", { class: "split", role: "img" }), name = h("span", { class: "who", title: worker });
    setText(name, worker);
    this.#rows.set(worker, split);
    this.box.append(name, split);
    return split;
  }
}

const fill = (what, role) => (what === "busy" ? (role === "learner" ? "of-clay" : "of-water") : `of-${COLORS[what] ?? "slate"}`);
